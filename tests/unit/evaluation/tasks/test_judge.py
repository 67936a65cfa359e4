"""A judge behind a real HTTP server, which marks an answer by a rule of its own."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.tasks import config_of, task_of

from distributed_ft.artifacts import RunDirectory
from distributed_ft.errors import ConfigError, DataError, EvaluationError
from distributed_ft.evaluation import http
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.endpoint import Endpoint
from distributed_ft.evaluation.task import Response
from distributed_ft.evaluation.tasks import build_task
from distributed_ft.evaluation.tasks.judge import Judge
from distributed_ft.evaluation.tasks.rule import RuledTask

RUBRIC = "Q: {question}\nA: {answer}\nR: {reference}\nMark it."
Reply = Callable[[dict[str, Any], int], tuple[int, str]]  # what was asked, how often before -> HTTP code, text


class Server(ThreadingHTTPServer):
    """Keeps what it was asked; `reply` can be replaced."""

    asked: list[dict[str, Any]]
    keys: list[str | None]
    reply: Reply


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        before = len(self.server.asked)
        self.server.asked.append({"path": self.path, **asked})
        self.server.keys.append(self.headers["Authorization"])
        code, text = self.server.reply(asked, before)
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}) if code == 200 else text
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked, running.keys = [], []
        running.reply = lambda asked, before: (
            200,
            f"Well.\n**Score:** {len(asked['messages'][0]['content']) % 10 + 1}",
        )
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def judge(folder: Path, address: str, **keys: Any) -> tuple[RuledTask, Judge]:
    rows = [{"prompt": "2 + 2?", "completion": "4", "id": "sum"}]
    named = {"metric": "judge", "url": address, "model": "j", "rubric": RUBRIC, **keys}
    task = task_of(folder, rows, **named)
    assert isinstance(task, RuledTask)
    assert isinstance(task.rule, Judge)
    return task, task.rule


def mark(task: RuledTask, text: str = "four") -> Response:
    return task.judged(task.examples(), [Response((text,))])[0]


@pytest.mark.parametrize(
    ("judgement", "scale", "value"),
    [
        ("Good. Score: 10", [1, 10], 1.0),
        ("Score: 1", [1, 10], 0.0),
        ("**Score: 5.5**", [1, 10], 0.5),
        ("**Score**: 8/10", [0, 10], 0.8),
        ("I thought of score: 2, but no.\nScore: 3", [1, 5], 0.5),
        (" 4 ", [1, 5], 0.75),
        ("Score: -1", [-1, 1], 0.0),
    ],
)
def test_a_mark_becomes_a_score_between_0_and_1(
    tmp_path: Path, server: Server, judgement: str, scale: list[float], value: float
) -> None:
    server.reply = lambda asked, before: (200, judgement)
    task, _ = judge(tmp_path, url(server), scale=scale)
    response = mark(task)
    assert response.judgement == judgement
    assert task.score(task.examples()[0], response).value == pytest.approx(value)


def test_the_judge_is_shown_question_answer_and_reference(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    task, _ = judge(tmp_path, url(server), api_key_env="JUDGE_KEY", judge_tokens=77)
    mark(task, "I say {reference}")  # a field in an answer is text
    (asked,) = server.asked
    assert asked["path"] == "/v1/chat/completions"
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("j", 0, 77)
    text = asked["messages"][0]["content"]
    assert text.startswith("Q: 2 + 2?\nA: I say {reference}\nR: 4\nMark it.\n\nEnd with a line `Score: N`")
    assert server.keys == ["Bearer s3cret"]


@pytest.mark.parametrize(
    ("judgement", "says"),
    [
        ("It is fine.", r"item 'sum': the judge's answer holds no `Score: N`, \"It is fine\.\""),
        ("", "holds no `Score: N`"),
        ("Score: 11", r"item 'sum': the judge's score 11 is not from 1 to 10, \"Score: 11\""),
    ],
)
def test_a_judgement_that_is_no_mark_is_an_error_that_names_item_and_text(
    tmp_path: Path, server: Server, judgement: str, says: str
) -> None:
    server.reply = lambda asked, before: (200, judgement)
    task, _ = judge(tmp_path, url(server))
    with pytest.raises(EvaluationError, match=says):
        mark(task)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WAITS", (0.01, 0.01))


def test_a_server_that_is_busy_is_asked_again(tmp_path: Path, server: Server) -> None:
    server.reply = lambda asked, before: (503, "busy") if before < 2 else (200, "Score: 7")
    task, _ = judge(tmp_path, url(server))
    assert mark(task).judgement == "Score: 7"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("code", "text", "says", "times"),
    [
        (503, "busy", "HTTP 503: busy", 3),
        (401, "no such key", "HTTP 401: no such key", 1),
        (200, "", "holds no", 1),
    ],
)
def test_a_server_that_refuses_is_an_error(
    tmp_path: Path, server: Server, code: int, text: str, says: str, times: int
) -> None:
    server.reply = lambda asked, before: (code, text)
    task, _ = judge(tmp_path, url(server))
    with pytest.raises(EvaluationError, match=says):
        mark(task)
    assert len(server.asked) == times


def test_a_server_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    task, _ = judge(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(EvaluationError, match=r"item 'sum': the judge gave no judgement: http.*cannot be reached"):
        mark(task)


def test_a_key_that_is_not_in_the_environment_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q"}\n')
    keys = {"metric": "judge", "url": "http://x/v1", "model": "j", "rubric": "{answer}", "api_key_env": "NOT_SET"}
    with pytest.raises(
        ConfigError, match=r"evaluation\.tasks\[t\]\.api_key_env: NOT_SET: the environment has no such variable"
    ):
        build_task(config_of(name="t", path=str(tmp_path / "rows.jsonl"), **keys))


def test_a_rubric_with_a_reference_needs_one_in_each_row(tmp_path: Path) -> None:
    keys = {"metric": "judge", "url": "http://x/v1", "model": "j", "rubric": "{answer} {reference}"}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no answer, and the rubric shows \{reference\}"):
        task_of(tmp_path, [{"prompt": "q"}], **keys)


def test_where_the_judge_is_does_not_change_the_question_but_who_it_is_does() -> None:
    def digest(address: str, model: str) -> Any:
        return Judge(8, Endpoint(address, model), "{answer}").settings

    assert digest("http://a/v1", "j") == digest("http://b/v1", "j")
    assert digest("http://a/v1", "j") != digest("http://a/v1", "k")


def test_judgements_are_kept_and_nobody_is_asked_twice(
    tmp_path: Path, server: Server, make_run: Callable[..., RunDirectory], files: Path
) -> None:
    rows = [{"prompt": f"upper {w}", "completion": w.upper(), "id": w} for w in ("cat", "dog", "sun", "ann", "bob")]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "judged", "path": str(path), "metric": "judge", "url": url(server), "model": "j", "rubric": RUBRIC}
    run = make_run({}, tasks=[{**task, "max_new_tokens": 8}], few_shot=0, batch_size=1)
    good = server.reply
    server.reply = lambda asked, before: (200, "no mark") if before == 3 else good(asked, before)
    with pytest.raises(EvaluationError, match=r"base, judged, item '.*': the judge's answer holds no"):
        evaluate(run.path)
    assert len(server.asked) == 4
    server.reply = good
    evaluate(run.path)
    assert len(server.asked) == 6  # three were marked, one was not, and the last had not been asked
    shown = [asked["messages"][0]["content"] for asked in server.asked]
    assert len(set(shown)) == 5
    samples = run.samples("base", "judged")
    assert all(sample.judgement and f"**Score:** {sample.answer}" in sample.judgement for sample in samples)
    evaluate(run.path)
    assert len(server.asked) == 6
