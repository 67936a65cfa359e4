"""`dft smoke`: every part of a run, on a tenth of its data, before the long one is started.

The real commands in a throw-away directory: a few steps, a save, a resume in new processes, an evaluation, a report.
Before them the whole of the data is checked, and what is prepared for that is what the long run will read.
"""

import json
import shlex
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_ft.artifacts import RunDirectory, write_atomic
from distributed_ft.config.load import LoadedRun, resolved_json
from distributed_ft.config.paths import is_harness_name
from distributed_ft.config.schema import FINDING_IDS, RunConfig
from distributed_ft.config.tasks import ClassificationTask
from distributed_ft.errors import EXIT_DONE
from launcher import local
from launcher.plan import Start
from launcher.trial import throw_away

if TYPE_CHECKING:
    from distributed_ft.data.examples import Example
    from distributed_ft.data.reading import Reading

SHARE = 10  # every tenth row
MIN_ROWS = 8  # but not fewer than these
STEPS_BEFORE_RESUME, STEPS = 2, 4


def smoke(loaded: LoadedRun, nproc: int) -> int:
    """Returns 0 when every part works; the exit code of the first part that does not, with its own message."""
    with throw_away(loaded.config, "smoke") as folder:
        config = thinned(loaded.config, folder)
        run = RunDirectory(folder / config.name)
        parts: dict[str, Callable[[], int]] = {
            "check all of its data": lambda: _check(loaded.config, nproc),
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
    """The config on every tenth row of its data files (at least MIN_ROWS), copied into `folder` as JSON Lines.

    Raises DataError as reading does.
    """
    from distributed_ft.data.reading import Reading

    tree: dict[str, Any] = json.loads(config.model_dump_json())
    data, evaluation = tree["data"], tree["evaluation"]
    sensitive, skip_bad = config.data.audit.sensitive, config.data.skip_bad
    data["train"] = [
        {
            "path": _thin(Reading.of(source, (sensitive,) if sensitive else ()), folder, skip_bad),
            "weight": source.weight,
            "fraction": source.fraction,
        }
        for source in config.data.sources
    ]
    if config.data.validation_file is not None:
        data["validation"] = _thin(Reading.of(config.data.validation_file), folder, skip_bad)
    data["waive"] = FINDING_IDS  # the whole of the data has passed; of a few rows, one fault is a great share
    for (_, name, index), given in config.evaluation.entries:
        task = evaluation[name][index]
        if isinstance(given, ClassificationTask) and given.labels is None:
            task["labels"] = _labels(given)  # a few rows may not have them all
        task |= {"path": _thin(Reading.of(given), folder), "format": "auto", "columns": {}, "split": None}
        if "max_new_tokens" in task:
            task["max_new_tokens"] = min(task["max_new_tokens"], 16)
        if isinstance(given.validation, float):
            task["validation"] = 0.5  # of a few rows a small share is none
        elif given.on_validation is not None:
            task["validation"] = _thin(Reading.of(given.on_validation), folder)
    shipped = str(files("distributed_ft") / "assets" / "general" / "test.jsonl")
    evaluation["general"] = [
        _thin(Reading(shipped if entry == "shipped" else entry), folder) if isinstance(entry, str) else entry
        for entry in evaluation["general"]
        if not isinstance(entry, str) or not is_harness_name(entry)
    ]
    for name in ("tasks", "general"):  # of the harness's documents there is no thin file
        evaluation[name] = [e for e in evaluation[name] if isinstance(e, str) or e["metric"] != "harness"]
    tree["runs_dir"] = str(folder)
    tree["checkpoint"]["every"] = STEPS_BEFORE_RESUME
    tree["tracking"] = ["tensorboard"]
    tree["optim"]["warmup_steps"] = None  # it may be longer than these few steps
    return RunConfig.model_validate_json(json.dumps(tree))


def _labels(task: ClassificationTask) -> list[str]:
    from distributed_ft.data.reading import Reading, read

    return sorted({row.answer.strip() for row in read(Reading.of(task))})


def _thin(reading: "Reading", folder: Path, skip_bad: int = 0) -> str:
    """Every tenth row of what is read, as chat rows or plain text; the file."""
    from distributed_ft.data.reading import read

    rows = list(read(reading, skip_bad, []))
    kept = rows[:: max(1, min(SHARE, len(rows) // MIN_ROWS))]
    target = folder / "data" / f"{len(list(folder.glob('data/*')))}-{Path(reading.path).name.split('.')[0]}.jsonl"
    write_atomic(target, "".join(json.dumps(_written(row), ensure_ascii=False) + "\n" for row in kept))
    return str(target)


def _written(row: "Example") -> dict[str, Any]:
    """The row as JSON that reads as the same row."""
    from distributed_ft.data.examples import TEXT

    named = {**row.columns, "id": row.id, "group": row.group}
    if row.messages[0].role == TEXT:
        return {**named, "text": row.answer}
    return {**named, "messages": [message.as_written() for message in row.messages], "tools": row.tools}


def _check(config: RunConfig, nproc: int) -> int:
    from distributed_ft.train import preflight

    local.check_tasks(config)
    preflight.check(config, nproc, fresh=True)
    return EXIT_DONE


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
