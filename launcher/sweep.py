"""`dft sweep`: every combination of some settings, a run of its own each, one after the other.

What is done is on disk: the same command goes on where an earlier one stopped.
"""

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from distributed_ft.artifacts import RunDirectory, read_json, step_name, write_json
from distributed_ft.config.document import dotted, parse_override
from distributed_ft.config.load import LoadedRun, load, load_resolved
from distributed_ft.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, CheckpointError, ConfigError, FtError, Stopped
from distributed_ft.records import SCHEMA, Sweep, SweptRun
from launcher import local
from launcher.plan import Start

LONGEST_VALUE = 24  # characters of a value in a name; a longer one is cut, and told apart by its digest
_PLAIN = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Combination:
    """One point of the grid: the run's name, and the overrides that make it, `name=…` among them."""

    name: str
    overrides: tuple[str, ...]


def combinations(base: str, settings: Sequence[str]) -> list[Combination]:
    """The grid of `method.rank=4,16 optim.lr=1e-4,2e-4 seed=1`, the last key fastest; what has one value applies to
    all and is in no name. Pure.

    A name is `<base>-rank4-lr1e-4`: a key's last part where no other swept key has the same, and the value as it is
    written; it does not depend on which other values there are, so that a grid can grow. A value that contains commas
    is written as YAML: `key=[a,b],[c]`.

    Raises ConfigError, with a line for each setting that is malformed or gives the same value twice.
    """
    grid: dict[str, list[str]] = {}
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        try:
            if not equals or key in grid:
                raise ConfigError(f"{setting!r}: a setting is key=value or key=value,value, each key once")
            grid[key] = _values(setting, key, split_values(text))
        except ConfigError as error:
            problems.append(str(error))
    swept = [key for key, values in grid.items() if len(values) > 1]
    problems += [f"{key}: every combination has its own run" for key in swept if key in ("name", "runs_dir")]
    if not swept:
        problems.append("nothing to sweep: give several values, for example method.rank=4,16,64")
    if problems:
        raise ConfigError("\n".join(problems))
    base = parse_override(f"name={grid.pop('name')[0]}")[1] if "name" in grid else base
    labels = _labels(swept)
    found = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = "-".join([base, *(f"{labels[key]}{_in_name(chosen[key])}" for key in swept)])
        found.append(Combination(name, (*(f"{key}={value}" for key, value in chosen.items()), f"name={name}")))
    return found


def split_values(text: str) -> list[str]:
    """At commas outside of brackets, braces and quotes."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            values.append("")
            continue
        values[-1] += character
    return [value.strip() for value in values]


def _values(setting: str, key: str, values: list[str]) -> list[str]:
    seen: dict[str, str] = {}
    for value in values:
        if not value:
            raise ConfigError(f"{setting!r}: a value is missing; write key=first,second without spaces")
        read = json.dumps(parse_override(f"{key}={value}")[1], sort_keys=True)
        if read in seen:
            raise ConfigError(f"{key}: {seen[read]} and {value} are the same value; give it once")
        seen[read] = value
    return values


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """A key's last part, or all of it where another one ends alike."""
    last = {key: re.sub(r"[^A-Za-z0-9_.]+", "", key.rpartition(".")[2]) for key in keys}
    return {
        key: label
        if list(last.values()).count(label) == 1
        else dotted(parse_override(f"{key}=0")[0]).replace("[", ".").replace("]", "")
        for key, label in last.items()
    }


def _in_name(value: str) -> str:
    if _PLAIN.fullmatch(value) and len(value) <= LONGEST_VALUE:
        return value
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", value).strip("-")[:LONGEST_VALUE]
    return f"{readable}-{hashlib.sha256(value.encode()).hexdigest()[:6]}"


def runs_named(paths: Sequence[Path]) -> list[Path]:
    """Run directories, each once; a sweep's file stands for those of its runs that exist.

    Raises CheckpointError when such a file cannot be read."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.name.endswith(".sweep.json"):
            found[path] = None
            continue
        try:
            swept = Sweep(**read_json(path)).runs
        except (ValidationError, TypeError):
            raise CheckpointError(f"{path}: is not what `dft sweep` writes; name the run directories") from None
        for run in swept:
            if RunDirectory(run.run_dir).config.exists():
                found[Path(run.run_dir)] = None
            else:
                print(f"{run.run_dir}: not started yet", file=sys.stderr)
    return list(found)


# --- running it ----------------------------------------------------------------------------------------------------


def plan(run_yaml: Path, settings: Sequence[str]) -> tuple[list[LoadedRun], Sweep, Path]:
    """Every combination, read and checked as a config, and the file in which the sweep is recorded (not yet written).

    Raises ConfigError with what is wrong with each of them."""
    single = [setting for setting in settings if len(split_values(setting.partition("=")[2])) == 1]
    base = load(run_yaml, single).config
    loaded, problems = [], []
    for combination in combinations(base.name, settings):
        try:
            loaded.append(load(run_yaml, combination.overrides))
        except ConfigError as error:
            problems += [f"{combination.name}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    runs = tuple(
        SweptRun(name=run.config.name, overrides=run.overrides, run_dir=str(Path(run.config.runs_dir, run.config.name)))
        for run in loaded
    )
    sweep = Sweep(schema=SCHEMA, run_yaml=str(run_yaml.absolute()), settings=tuple(settings), runs=runs)
    return loaded, sweep, Path(base.runs_dir) / f"{base.name}.sweep.json"


def sweep(run_yaml: Path, settings: Sequence[str], start: Start, *, evaluate: bool, dry_run: bool) -> int:
    """Train (and evaluate) every combination. Returns 0, or the code of the first that failed; the others are run.

    Raises:
        ConfigError, DataError, CheckpointError: some combination cannot be trained; none is started.
        Stopped: asked to stop; the same command goes on.
    """
    loaded, record, file = plan(run_yaml, settings)
    totals = _check_all(loaded, start)
    for swept, total in zip(record.runs, totals, strict=True):
        print(f"{swept.name}: {total} steps: {' '.join(swept.overrides[:-1])}")
    if dry_run:
        return EXIT_DONE
    write_json(file, record.model_dump(by_alias=True))
    failed: dict[str, int] = {}
    for number, (run, total) in enumerate(zip(loaded, totals, strict=True), 1):
        print(f"\nsweep {number}/{len(loaded)}: {run.config.name}", flush=True)
        code = _one(run, start, total, evaluate)
        if code == EXIT_STOPPED or code > 128:
            raise Stopped("sweep stopped on request; the same command goes on from there")
        if code != EXIT_DONE:
            failed[run.config.name] = code
            print(f"sweep: FAILED (exit code {code}): {run.config.name}; the others go on", flush=True)
    print(f"\nsweep: {len(loaded) - len(failed)} of {len(loaded)} runs are done; compare them: dft compare {file}")
    return next(iter(failed.values()), EXIT_DONE)


def _check_all(loaded: Sequence[LoadedRun], start: Start) -> list[int]:
    """The steps of each combination. Raises with what is wrong with any, before one is started."""
    problems, totals = [], []
    for run in loaded:
        try:
            totals.append(local.total_steps(run.config, start))
        except FtError as error:
            problems += [f"{run.config.name}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    return totals


def _one(loaded: LoadedRun, start: Start, total: int, evaluate: bool) -> int:
    config = loaded.config
    run = RunDirectory(Path(config.runs_dir) / config.name)
    evaluate = evaluate and bool(config.evaluation.tasks or config.evaluation.general)
    try:
        newest = run.newest_complete() if run.path.exists() else None
        trained = newest is not None and newest.step >= total and load_resolved(run.config) == config
        if trained and (not evaluate or _is_evaluated(run)):
            print("finished before: skipped", flush=True)
            return EXIT_DONE
        code = EXIT_DONE if trained else local.train(loaded, start)
        return local.evaluate(run.path) if code == EXIT_DONE and evaluate else code
    except FtError as error:
        print(f"dft: error: {error}", file=sys.stderr)
        return EXIT_USER


def _is_evaluated(run: RunDirectory) -> bool:
    """All checkpoints are scored, and the chosen one on its test rows, where they are kept for it."""
    file = run.evaluation / "summary.json"
    if not file.exists():
        return False
    selection = read_json(file)["selection"]
    scored = {candidate["step"] for candidate in selection["candidates"]}
    apart = any(task != by for task, by in selection.get("chosen_on", {}).items())
    tested = selection["best_step"] is None or step_name(selection["best_step"]) in selection.get("judged_on_test", ())
    return {checkpoint.step for checkpoint in run.all_checkpoints()} <= scored and (tested or not apart)
