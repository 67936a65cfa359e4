"""A model behind an OpenAI-compatible endpoint, asked one question."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from distributed_ft.data.files import shorten
from distributed_ft.errors import ConfigError, EvaluationError

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP: too busy, or down for a moment
_WAITS = (1.0, 4.0, 15.0)  # seconds before the second, third and fourth try


@dataclass(frozen=True)
class Endpoint:
    """`url` is that of the API (…/v1); `api_key_env` names the variable of the environment with the key."""

    url: str
    model: str
    api_key_env: str | None = None
    max_tokens: int = 512
    timeout: float = 120.0  # seconds
    waits: tuple[float, ...] = _WAITS

    def __post_init__(self) -> None:
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise ConfigError(
                f"api_key_env: the environment has no {self.api_key_env}; export it, or leave the key out"
            )

    def answer(self, text: str) -> str:
        """What the model writes to one message, as likely as it can. Raises EvaluationError."""
        message = {"role": "user", "content": text}
        asked = {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": self.max_tokens}
        reply = self._post("chat/completions", asked)
        try:
            content = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise EvaluationError(f"{self.url}: no text in the reply, {shorten(reply, 200)}")
        return content

    def _post(self, path: str, asked: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_env]}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", json.dumps(asked).encode(), headers)
        for wait in (*self.waits, None):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")
                if error.code not in _AGAIN or wait is None:
                    raise EvaluationError(f"{self.url}: HTTP {error.code}: {shorten(said, 200)}") from None
            except ValueError:
                raise EvaluationError(f"{self.url}: the reply is not JSON; is this the address of the API?") from None
            except (OSError, http.client.HTTPException) as error:
                if wait is None:
                    reason = getattr(error, "reason", None) or error
                    raise EvaluationError(f"{self.url}: cannot be reached: {reason}") from None
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")
