"""The guide's example of every metric passes `dft check`, and the base model is judged by it."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config.load import load, resolved_json
from distributed_ft.config.tasks import MetricTask
from distributed_ft.evaluation.sandbox import problem
from distributed_ft.records import TaskResult

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
HEAD = {"name": "x", "model": {"base": "shipped:base"}, "data": {"train": "shipped:tickets/train.jsonl"}}


class Judge(BaseHTTPRequestHandler):
    """Gives every answer a 4."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": "Polite.\nScore: 4"}}]}).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


def examples(folder: Path) -> dict[str, Any]:
    """The section that all examples of the page make together; their rows are written into the folder."""
    text = PAGE.read_text()
    for name, rows in re.findall(r"^```jsonl (\S+)\n(.*?)^```$", text, flags=re.M | re.S):
        (folder / name).write_text(rows)
    section: dict[str, Any] = {"tasks": [], "few_shot": 1}
    for block in re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.M | re.S):
        part = YAML(typ="safe", pure=True).load(block)["evaluation"]
        section = {**section, **part, "tasks": section["tasks"] + part["tasks"]}
    return section


def dft(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "launcher", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1500)


def metric_names() -> list[str]:
    """Of all classes of a task."""
    classes = (get_args(member)[0] for member in get_args(MetricTask))
    return [get_args(task.model_fields["metric"].annotation)[0] for task in classes]


@pytest.mark.skipif(problem() is not None, reason=f"no sandbox here: {problem()}")
def test_the_base_is_judged_by_every_metric_of_the_guide(tmp_path: Path, judge: str) -> None:
    section = examples(tmp_path)
    assert {task.get("metric", "exact_match") for task in section["tasks"]} == set(metric_names())
    for task in section["tasks"]:
        task |= {"url": judge} if "url" in task else {}
    section["general"] = [{**section["tasks"][0], "name": "suite"}]
    (tmp_path / "run.yaml").write_text(json.dumps({**HEAD, "evaluation": section}))
    checked = dft("check", "run.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "functions (pass_at_k)" in checked.stdout
    assert "suite (exact_match)" in checked.stdout
    run = RunDirectory(tmp_path / "runs" / "x")
    run.path.mkdir(parents=True)
    (run.path / "run.yaml").write_text((tmp_path / "run.yaml").read_text())
    run.config.write_text(resolved_json(load(tmp_path / "run.yaml").config))
    judged = dft("eval", str(run.path), cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    for task in [*section["tasks"], section["general"][0]]:
        result = TaskResult(**json.loads((run.results("base", task["name"]) / "result.json").read_text()))
        rows = (tmp_path / task["path"]).read_text().splitlines()
        assert (result.metric, result.n) == (task.get("metric", "exact_match"), len(rows))
        assert 0 <= result.score <= 1
        assert len(run.samples("base", task["name"])) == len(rows)
    assert run.samples("base", "letters")[0].score == 0.75
    assert [len(s.draws or []) for s in run.samples("base", "functions")] == [2]
    assert [len(s.choices or []) for s in run.samples("base", "colours")] == [3, 2]
    totals = {t["name"]: run.results("base", t["name"]) / "result.json" for t in section["tasks"]}
    told = {name: set(json.loads(path.read_text())["totals"]) for name, path in totals.items()}
    assert {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"} == told["prose"]
    assert "macro_f1" in told["moods"]
    assert told["german"] == {"corpus_bleu"}


def test_the_guide_names_what_is_reported_and_every_metric() -> None:
    page = PAGE.read_text()
    table = page.split("| metric |")[1].split("\n\n")[0]
    assert [name for name in metric_names() if f"`{name}`" not in table] == []
