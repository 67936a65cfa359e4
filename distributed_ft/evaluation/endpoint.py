"""A model behind an OpenAI-compatible endpoint, asked one question."""

from dataclasses import dataclass

from distributed_ft.data.files import shorten
from distributed_ft.errors import ConfigError, EngineError, EvaluationError
from distributed_ft.evaluation import http


@dataclass(frozen=True)
class Endpoint:
    """`url` is that of the API (…/v1); `api_key_env` names the variable of the environment with the key."""

    url: str
    model: str
    api_key_env: str | None = None
    max_tokens: int = 512
    timeout: float = 120.0  # seconds

    def __post_init__(self) -> None:
        http.bearer(self.api_key_env)  # that it is there is known before anything is asked

    def answer(self, text: str) -> str:
        """What the model writes to one message, as likely as it can. Raises EvaluationError."""
        message = {"role": "user", "content": text}
        asked = {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": self.max_tokens}
        url = f"{self.url.rstrip('/')}/chat/completions"
        try:
            reply = http.post(url, asked, key_env=self.api_key_env, timeout=self.timeout)
        except (ConfigError, EngineError) as error:
            raise EvaluationError(str(error)) from None
        try:
            content = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise EvaluationError(f"{self.url}: no text in the reply, {shorten(reply, 200)}")
        return content
