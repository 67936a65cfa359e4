"""`dft smoke`: every part of a run, on a tenth of its data, before the long one is started.

The real commands in a throw-away directory: a few steps, a save, a resume in new processes, an evaluation, a report.
"""

import json
import shlex
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import RunDirectory, write_atomic
from distributed_ft.config.load import LoadedRun, resolved_json
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import EXIT_DONE, DataError
from launcher import local
from launcher.plan import Start
from launcher.trial import throw_away

SHARE = 10  # every tenth row
MIN_ROWS = 8  # but not fewer than these
STEPS_BEFORE_RESUME, STEPS = 2, 4


def smoke(loaded: LoadedRun, nproc: int) -> int:
    """Returns 0 when every part works; the exit code of the first part that does not, with its own message."""
    with throw_away(loaded.config, "smoke") as folder:
        config = thinned(loaded.config, folder)
        run = RunDirectory(folder / config.name)
        parts: dict[str, Callable[[], int]] = {
            f"train {STEPS_BEFORE_RESUME} steps and save": lambda: _train(loaded, config, STEPS_BEFORE_RESUME, nproc),
            f"resume in new processes to step {STEPS}": lambda: _train(loaded, config, STEPS, nproc),
        }
        if config.evaluation.tasks or config.evaluation.general:
            parts["evaluate"] = lambda: local.evaluate(run.path, "latest")
        parts["report"] = lambda: _report(run)
        for name, part in parts.items():
            print(f"smoke: {name}", flush=True)
            code = part()
            if code != EXIT_DONE:
                print(f"smoke: FAILED at: {name}")
                return code
        print(f"smoke: every part of this run works; start it with: {start_command(loaded, nproc)}")
        return EXIT_DONE


def start_command(loaded: LoadedRun, nproc: int) -> str:
    """The training that was tried, for the shell."""
    processes = ("--nproc", str(nproc)) if nproc > 1 else ()
    return shlex.join(["dft", "train", str(loaded.source), *loaded.overrides, *processes])


def thinned(config: RunConfig, folder: Path) -> RunConfig:
    """The config on every tenth row of its data files (at least MIN_ROWS), copied into `folder`."""
    tree: dict[str, Any] = json.loads(config.model_dump_json())
    data, evaluation = tree["data"], tree["evaluation"]
    if isinstance(data["train"], str):
        data["train"] = [data["train"]]
    data["train"] = [
        {"path": _thin(source, folder), "weight": None}
        if isinstance(source, str)
        else {**source, "path": _thin(source["path"], folder)}
        for source in data["train"]
    ]
    if isinstance(data["validation"], str):
        data["validation"] = _thin(data["validation"], folder)
    for task in evaluation["tasks"]:
        task["path"] = _thin(task["path"], folder)
        task["max_new_tokens"] = min(task["max_new_tokens"], 16)
    shipped = str(files("distributed_ft") / "assets" / "general" / "test.jsonl")
    evaluation["general"] = [_thin(shipped if path == "shipped" else path, folder) for path in evaluation["general"]]
    tree["runs_dir"] = str(folder)
    tree["checkpoint"]["every"] = STEPS_BEFORE_RESUME
    tree["tracking"] = ["tensorboard"]
    tree["optim"]["warmup_steps"] = None  # it may be longer than these few steps
    return RunConfig.model_validate_json(json.dumps(tree))


def _thin(path: str, folder: Path) -> str:
    """Every tenth row of a data file, in the same format."""
    from distributed_ft.data.reading import read_examples

    rows = read_examples(path)
    if not rows:
        raise DataError(f"{path}: no rows")
    kept = rows[:: max(1, min(SHARE, len(rows) // MIN_ROWS))]
    lines = []
    for row in kept:
        messages = [{"role": m.role, "content": m.content} for m in row.messages]
        lines.append(json.dumps({"id": row.id, "group": row.group, "messages": messages}, ensure_ascii=False))
    target = folder / "data" / f"{len(list(folder.glob('data/*')))}-{Path(path).stem}.jsonl"
    write_atomic(target, "\n".join(lines) + "\n")
    return str(target)


def _train(loaded: LoadedRun, config: RunConfig, steps: int, nproc: int) -> int:
    tree = json.loads(config.model_dump_json())
    tree["optim"]["max_steps"] = steps
    shortened = RunConfig.model_validate_json(json.dumps(tree))
    run = RunDirectory(Path(config.runs_dir) / config.name)
    if run.config.exists():  # the same run, asked to go further
        write_atomic(run.config, resolved_json(shortened))
    return local.train(LoadedRun(shortened, loaded.source, loaded.text, loaded.preset_values), Start(nproc))


def _report(run: RunDirectory) -> int:
    from distributed_ft.evaluation.report.write import write

    write(run.path)
    return EXIT_DONE
