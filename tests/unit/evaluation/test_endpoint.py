"""The engine behind a server, beside the same model in this process. The server is a real one, over HTTP."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config.load import load_resolved
from distributed_ft.data.examples import TEXT, Message
from distributed_ft.errors import CheckpointError, ConfigError, EngineError, EvaluationError
from distributed_ft.evaluation import http
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.engines import Engine, TransformersEngine, opened
from distributed_ft.evaluation.task import Choose, Generate, Read, Request, Response

MakeRun = Callable[..., RunDirectory]


@dataclass
class Server:
    """What an OpenAI-compatible server does with these models. `fail`: HTTP codes of the next replies."""

    engine: TransformersEngine
    models: dict[str, Path | None]
    url: str = ""
    fail: list[int] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    echo: bool = True
    turn: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, method: str, asked: dict[str, Any], key: str | None) -> tuple[int, Any]:
        with self.turn:
            self.keys.append(key)
            if self.fail:
                return self.fail.pop(0), {"error": "busy"}
            if asked["model"] not in self.models:
                return 404, {"error": f"no model {asked['model']}"}
            self.engine.use(self.models[asked["model"]])
            if method.endswith("/chat/completions"):
                messages = tuple(Message(m["role"], m["content"]) for m in asked["messages"])
                return 200, {"choices": [{"message": {"content": text}} for text in self.texts(messages, asked)]}
            if isinstance(asked["prompt"], str):
                return 200, {"choices": [{"text": t} for t in self.texts((Message(TEXT, asked["prompt"]),), asked)]}
            return 200, {"choices": [{"text": "", "logprobs": self.logprobs(asked["prompt"]) if self.echo else None}]}

    def texts(self, messages: tuple[Message, ...], asked: dict[str, Any]) -> list[str]:
        request = Generate(
            "asked",
            messages,
            asked["max_tokens"],
            stop=tuple(asked.get("stop", ())),
            draws=asked.get("n", 1),
            temperature=asked["temperature"],
            seed=asked.get("seed", 0),
        )
        return list(self.engine.answer([request])[0].texts)

    def logprobs(self, ids: list[int]) -> dict[str, Any]:
        with torch.no_grad():
            shares = self.engine._loaded(torch.tensor([ids])).logits[0].log_softmax(-1)
        values: list[float | None] = [None, *(float(shares[i, token]) for i, token in enumerate(ids[1:]))]
        top: list[dict[str, float] | None] = [None, *({"x": float(row.max())} for row in shares[:-1])]
        return {"token_logprobs": [*values, 0.0], "top_logprobs": [*top, {"x": 0.0}]}  # and a token more: max_tokens


@pytest.fixture
def server(base: Path, adapters: dict[str, Path]) -> Iterator[Server]:
    made = Server(TransformersEngine(str(base), "fp32", batch_size=4), {"tiny": None, "run-20": adapters["kept"]})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code, content = made.reply(self.path, asked, self.headers.get("Authorization"))
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{listening.server_port}/v1"
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield made
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WAITS", (0.01, 0.02, 0.02, 0.02))


def asked() -> list[Request]:
    ask = (Message("user", "upper cat"),)
    return [
        Generate("a", ask, 8),
        Generate("stopped", ask, 8, stop=("T",)),
        Generate("text", (Message(TEXT, "user name"),), 5),
        Generate("drawn", ask, 6, draws=3, temperature=2.0),
        Choose("choose", ask, ("CAT", "DOG", "a longer one")),
        Choose("text", (Message(TEXT, "user name"),), (" vip", " true")),
        Read("read", "upper cat"),
    ]


def answered(engine: Engine) -> list[Response]:
    requests = asked()
    batches = engine.batches(requests)
    found: dict[int, Response] = {}
    for which, answers in engine.answers([[requests[i] for i in batch] for batch in batches]):
        found |= zip(batches[which], answers, strict=True)
    return [found[i] for i in range(len(requests))]


def run_with(make_run: MakeRun, server: Server, checkpoints: dict[int, Path], **engine: object) -> RunDirectory:
    return make_run(checkpoints, engine={"type": "endpoint", "url": server.url, "model": "tiny", **engine})


def test_a_server_answers_as_the_model_in_this_process(
    make_run: MakeRun, server: Server, base: Path, adapters: dict[str, Path]
) -> None:
    run = run_with(make_run, server, {20: adapters["kept"]})
    alone = TransformersEngine(str(base), "fp32", batch_size=4)
    with opened(load_resolved(run.config)) as engine:
        for weights in (None, run.checkpoints / "step-00000020" / "model"):
            engine.use(weights)
            alone.use(weights)
            for one, other in zip(answered(engine), answered(alone), strict=True):
                if len(one.texts) < 3:  # the noise of a draw is the server's own
                    assert (one.texts, one.tokens, one.greedy) == (other.texts, other.tokens, other.greedy)
                assert one.nats == pytest.approx(other.nats, abs=1e-3)
        with pytest.raises(CheckpointError, match="strength"):
            engine.use(run.checkpoints / "step-00000020" / "model", 0.5)


def test_a_run_is_judged_by_a_server_that_fails_now_and_then(
    make_run: MakeRun, server: Server, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_KEY", "secret")
    server.fail += [503, 429, 500, 503]
    run = run_with(make_run, server, {20: adapters["kept"]}, api_key_env="TINY_KEY", concurrency=1)
    evaluate(run.path)
    scores = {(r.model, r.task): r.score for r in run.task_results()}
    assert scores["step-00000020", "people"] == 1
    assert scores["base", "skills"] == 1
    assert run.best_file.read_text() == "step-00000020\n"
    assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in "".join(path.read_text() for path in run.evaluation.rglob("*.json*"))


def test_a_server_that_goes_away_ends_the_evaluation_and_answers_are_kept(
    make_run: MakeRun, server: Server, adapters: dict[str, Path]
) -> None:
    run = run_with(make_run, server, {20: adapters["kept"]}, concurrency=1)
    reply = server.reply

    def for_a_while(method: str, question: dict[str, Any], key: str | None) -> tuple[int, Any]:
        return reply(method, question, key) if len(server.keys) < 4 else (503, {"error": "maintenance"})

    server.reply = for_a_while  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"HTTP 503: .*maintenance"):
        evaluate(run.path)
    assert len(run.answers("base", "people").read_text().splitlines()) == 4
    server.reply = reply  # type: ignore[method-assign]
    server.keys.clear()
    evaluate(run.path)
    assert len(server.keys) == 2 * (6 + 9) + 6 - 4


def test_what_a_server_does_not_offer_is_said(
    make_run: MakeRun, server: Server, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(make_run, server, {30: adapters["kept"]})
    config = load_resolved(run.config)
    with opened(config) as engine:
        engine.use(run.checkpoints / "step-00000030" / "model")
        with pytest.raises(EngineError, match=r"HTTP 404: .*no model run-30"):
            answered(engine)
        engine.use(None)
        server.echo = False
        with pytest.raises(EngineError, match=r"gives no log-likelihoods of prompts.*type: transformers"):
            list(engine.answers([[asked()[4]]]))
        server.echo = True
        whole = server.logprobs
        for spoilt in (lambda top: top[:-2], lambda top: [{} for _ in top], lambda top: [{"x": "?"} for _ in top]):
            server.logprobs = lambda ids, spoilt=spoilt: {
                **whole(ids),
                "top_logprobs": spoilt(whole(ids)["top_logprobs"]),
            }
            with pytest.raises(EngineError, match="gives no log-likelihoods of prompts"):
                list(engine.answers([[asked()[4]]]))
        server.fail += [401]
        with pytest.raises(ConfigError, match="is the key right"):
            list(engine.answers([[asked()[0]]]))
        server.fail += [400]
        with pytest.raises(EvaluationError, match=r"item 'a': .*HTTP 400"):
            list(engine.answers([[asked()[0]]]))
    with pytest.raises(ConfigError, match="--nproc: a server answers"), opened(config, 2):
        pass
    monkeypatch.delenv("NO_KEY", raising=False)
    settings = config.evaluation.engine.model_copy(update={"api_key_env": "NO_KEY"})
    without = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"engine": settings})})
    with pytest.raises(ConfigError, match="api_key_env: NO_KEY"), opened(without):
        pass


def test_scores_of_other_names_of_the_checkpoints_are_not_reused(
    make_run: MakeRun, server: Server, adapters: dict[str, Path]
) -> None:
    server.models["other-20"] = adapters["untrained"]
    run = run_with(make_run, server, {20: adapters["kept"]})
    evaluate(run.path)
    settings = json.loads(run.config.read_text())
    settings["evaluation"]["engine"]["checkpoint_model"] = "other-{step}"
    run.config.write_text(json.dumps(settings))
    evaluate(run.path)
    scores = {(r.model, r.task): r.score for r in run.task_results()}
    assert scores["step-00000020", "people"] == 0
