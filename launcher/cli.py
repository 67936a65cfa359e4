"""The front door: `dft VERB …`. Answers at once: what a verb needs is imported when it runs."""

import argparse
import difflib
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_ft.errors import EXIT_DONE, GATE_CODES, ConfigError, disk_problem
from launcher import arguments
from launcher.guard import guarded

if TYPE_CHECKING:
    from distributed_ft.config.load import LoadedRun
    from launcher.plan import Start


@dataclass(frozen=True)
class Verb:
    """One command: what it does, its arguments, and the sentence in `dft --help`."""

    run: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None]
    help: str


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a fault, 2 for the user to fix, 75 stopped and resumable."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it tells of kernels that nobody asked for
    if isinstance(sys.stdout, io.TextIOWrapper):  # in a locale without `→` it is written as \u2192, as stderr does
        sys.stdout.reconfigure(errors="backslashreplace")
    return guarded(lambda: _dispatch(sys.argv[1:] if argv is None else argv))


def _dispatch(argv: list[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(_overview(VERBS))
        return EXIT_DONE
    if name in ("-V", "--version"):
        from importlib.metadata import version

        print(f"dft {version('distributed_ft')}")
        return EXIT_DONE
    family = {verb: VERBS[verb] for verb in VERBS if verb.startswith(f"{name} ")}
    if family and (not rest or rest[0] in ("-h", "--help")):
        print(_overview(family))
        return EXIT_DONE
    if family:
        name, rest = f"{name} {rest[0]}", rest[1:]
    verb = VERBS.get(name)
    if verb is None:
        close = difflib.get_close_matches(name, family or VERBS, n=1, cutoff=0.5 if not family else 0.7)
        hint = f"did you mean {close[0]!r}?" if close else f"verbs: {', '.join(family or VERBS)}"
        raise ConfigError(f"{name!r} is not a command; {hint}")
    parser = argparse.ArgumentParser(prog=f"dft {name}", description=verb.help, allow_abbrev=False)
    verb.arguments(parser)
    return verb.run(parser.parse_intermixed_args(rest))


def _overview(verbs: dict[str, Verb]) -> str:
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in verbs.items()]
    return "\n".join(
        [
            f"usage: dft {'VERB' if verbs is VERBS else next(iter(verbs))} …",
            "",
            "Fine-tune a language model from one run.yaml, on one process or many, and know which checkpoint to ship.",
            "",
            *lines,
            "",
            "dft VERB --help says more. To begin: dft demo",
        ]
    )


# --- verbs ---------------------------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> int:
    from launcher.demo import demo as run_demo

    return run_demo(no_replay=args.no_replay, nproc=args.nproc, runs_dir=args.runs_dir)


def check(args: argparse.Namespace) -> int:
    from distributed_ft.config import compat
    from launcher import check as text

    loaded = _load(args)
    config = loaded.config
    misfits = compat.world_problems(config, args.nproc)
    if misfits:
        raise ConfigError("\n".join(misfits))
    lines, warnings = text.config_lines(loaded, args.nproc), text.config_warnings(config)
    if not args.config_only:
        from distributed_ft.train import preflight
        from launcher import local

        local.check_tasks(config)
        inspection = preflight.inspect(config, args.nproc)
        lines += text.inspection_lines(inspection, config)
        warnings += inspection.warnings
    print(text.render([*lines, *(("warning", warning) for warning in warnings)]))
    return EXIT_DONE


def schema(args: argparse.Namespace) -> int:
    from distributed_ft.artifacts import write_json
    from distributed_ft.config.schema import json_schema

    if args.out is None:
        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    elif args.out.is_dir():
        raise ConfigError(f"--out {args.out}: is a directory; give a file name")
    else:
        try:
            write_json(args.out, json_schema())
        except OSError as error:
            raise ConfigError(f"--out {disk_problem(error) or error}") from None
        print(f"wrote {args.out}; for editors, begin a run.yaml with\n# yaml-language-server: $schema={args.out}")
    return EXIT_DONE


def smoke(args: argparse.Namespace) -> int:
    from launcher.smoke import smoke as run_smoke

    return run_smoke(_load(args), args.nproc)


def train(args: argparse.Namespace) -> int:
    os.environ["DFT_BEGAN"] = str(time.time())  # for the ranks to say how long the start took
    from distributed_ft import imports
    from distributed_ft.config.load import load_resolved
    from launcher import local

    start = _start(args)
    if not args.run.is_dir() and args.prepare_only:
        loaded = _load(args)
        run = local.prepare(loaded, start)
        print(f"prepared {run.path}; start it with:\n  {local.by_hand(run, loaded.config, start)}")
        return EXIT_DONE
    if not args.run.is_dir():
        return local.train(_load(args), start)
    _no_overrides(args)
    path = _run_directory(args.run)
    imports.leave_out([load_resolved(path / "config.json")])
    return local.resume(path, start)


def verify_resume(args: argparse.Namespace) -> int:
    from launcher.verify_resume import verify_resume as run_verify

    return run_verify(_load(args), _start(args), args.steps, args.resume_nproc)


def sweep(args: argparse.Namespace) -> int:
    from launcher.sweep import plan
    from launcher.sweep import sweep as run_sweep

    if args.submit:
        from launcher import cluster
        from launcher.submit_sweep import submit_sweep

        given = {**vars(args), "launcher": None if args.launcher == "dft" else args.launcher}
        habits, _ = cluster.load(args.cluster)
        planned = plan(args.run, args.overrides)
        return submit_sweep(*planned, given, habits, evaluate=not args.no_eval, dry_run=args.dry_run)
    return run_sweep(args.run, args.overrides, _start(args), evaluate=not args.no_eval, dry_run=args.dry_run)


def compare(args: argparse.Namespace) -> int:
    from launcher.sweep import runs_named

    runs = [_run_directory(path) for path in runs_named(args.runs)]
    from distributed_ft.evaluation import compare as side_by_side

    found = side_by_side.compare(runs)
    as_json = args.json and json.dumps(side_by_side.as_json(found), indent=2, ensure_ascii=False)
    print(as_json or side_by_side.text(found))
    return EXIT_DONE


def _start(args: argparse.Namespace) -> "Start":
    from launcher.plan import Start

    file: Path | None = args.accelerate_config
    if file is None:
        return Start(args.nproc, args.launcher)
    if args.launcher != "accelerate":
        raise ConfigError(f"--accelerate-config: is for --launcher accelerate, not {args.launcher}")
    if not file.is_file():
        raise ConfigError(f"--accelerate-config: {file}: no such file")
    return Start(args.nproc, args.launcher, file.absolute())


def matrix(args: argparse.Namespace) -> int:
    if args.verify:
        from launcher.verify import verify

        return verify()
    from distributed_ft.config import compat

    print(json.dumps(compat.tables(), indent=2, ensure_ascii=False) if args.json else compat.text())
    return EXIT_DONE


def evaluate(args: argparse.Namespace) -> int:
    from launcher import local

    if not re.fullmatch(r"all|latest|\d+(,\d+)*", args.checkpoints):
        raise ConfigError(f"--checkpoints: {args.checkpoints!r} is none of all, latest, or steps such as 500,1000")
    if (args.watch and args.checkpoints != "all") or (args.train_job is not None and not args.watch):
        raise ConfigError("--watch: scores every checkpoint, so it goes without --checkpoints; --train-job needs it")
    may_come = args.train_job is not None and not (args.run / "config.json").exists()
    run = args.run if may_come else _run_directory(args.run)
    return local.evaluate(run, args.checkpoints, args.overrides, args.watch, args.train_job, args.nproc)


def plan(args: argparse.Namespace) -> int:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing of this machine's is planned for, or touched
    os.environ["DS_ACCELERATOR"] = "cpu"
    from distributed_ft.config.load import load
    from distributed_ft.plan import gpus

    gpus.cluster(args.gpu, args.nodes, gpus.table(args.prices)[0])  # a mistake is answered at once
    loaded = load(args.run, args.overrides)  # with all that is installed: what is proposed may need it
    from distributed_ft.plan.answer import plan as make_plan
    from launcher import planning

    found = make_plan(loaded, args.gpu, args.nodes, args.prices, args.patience)
    print(planning.as_json(loaded, found) if args.json else planning.text(loaded, found))
    return EXIT_DONE


def report(args: argparse.Namespace) -> int:
    run = _run_directory(args.run)  # before the heavy imports: a mistake is answered at once
    from distributed_ft.evaluation.report.write import write

    written = write(run)
    verdict = written.verdict
    if not args.gate:
        print(f"{verdict.headline}\n\nreport: {written.html}")
        return EXIT_DONE
    print(f"{verdict.kind}: {verdict.headline}")
    print(f"report: {written.html}", file=sys.stderr)
    return GATE_CODES[verdict.kind]


def export(args: argparse.Namespace) -> int:
    run = _run_directory(args.run)
    from distributed_ft.export import write

    print(write.as_line(write.export(run, args.out, args.checkpoint, args.scale, args.merge), args.out))
    return EXIT_DONE


def chat(args: argparse.Namespace) -> int:
    run = _run_directory(args.run)
    from distributed_ft.evaluation.chat import chat as talk

    talk(run, args.checkpoint)
    return EXIT_DONE


def data_audit(args: argparse.Namespace) -> int:
    from launcher import audit

    files = [text for text in args.data if not (re.fullmatch(r"[a-z_.]+=.*", text) and not Path(text).exists())]
    overrides = [text for text in args.data if text not in files]
    if not audit.is_run([Path(text) for text in files]):
        if overrides:
            raise ConfigError(f"{overrides[0]}: data files have no settings; give a run.yaml")
        return audit.audit_files(files, args.json)
    from distributed_ft.config.load import load

    return audit.audit_run(load(Path(files[0]), overrides), args.json)


def data_preview(args: argparse.Namespace) -> int:
    from launcher.preview import preview

    return preview(_load(args), args.count, args.row)


def data_prepare(args: argparse.Namespace) -> int:
    from launcher.data import prepare

    return prepare(args)


def submit(args: argparse.Namespace) -> int:
    from launcher import cluster
    from launcher.submit import submit as run_submit

    habits, _ = cluster.load(args.cluster)
    if not args.run.is_dir():
        return run_submit(_load(args), vars(args), habits, args.dry_run)
    _no_overrides(args)
    return run_submit(_run_directory(args.run), vars(args), habits, args.dry_run)


def status(args: argparse.Namespace) -> int:
    from distributed_ft.artifacts import RunDirectory
    from launcher import status as state

    if args.run is None or (args.run.is_dir() and not _is_run_directory(args.run)):
        print(state.overview(args.run or _runs_here()))
    else:
        print(state.status(RunDirectory(_run_directory(args.run))))
    return EXIT_DONE


def logs(args: argparse.Namespace) -> int:
    from distributed_ft.artifacts import RunDirectory
    from launcher import status as state

    return state.logs(RunDirectory(_run_directory(args.run)), args.rank, args.follow)


def cancel(args: argparse.Namespace) -> int:
    from distributed_ft.artifacts import RunDirectory
    from launcher import status as state

    return state.cancel(RunDirectory(_run_directory(args.run)))


def _no_overrides(args: argparse.Namespace) -> None:
    if args.overrides:
        raise ConfigError(
            f"{args.overrides[0]}: a run directory keeps the config it began with; give a run.yaml and another name"
        )


def _runs_here() -> Path:
    if not Path("runs").is_dir():
        raise ConfigError("there is no directory runs here; give a run directory, or the directory that holds runs")
    return Path("runs")


def _load(args: argparse.Namespace) -> "LoadedRun":
    from distributed_ft import imports
    from distributed_ft.config.load import load

    loaded = load(args.run, args.overrides)
    imports.leave_out([loaded.config])
    return loaded


def _run_directory(path: Path) -> Path:
    if _is_run_directory(path):
        return path
    if path.is_file():
        raise ConfigError(f"{path}: is a file; give the run directory, for example runs/{path.stem}")
    what = "not a run directory: it lacks run.yaml or config.json" if path.is_dir() else "no such run directory"
    meant = Path("runs") / path
    hint = f"; did you mean {meant}?" if _is_run_directory(meant) else "; `dft train run.yaml` makes one"
    raise ConfigError(f"{path}: {what}{hint}")


def _is_run_directory(path: Path) -> bool:
    return all((path / name).is_file() for name in ("run.yaml", "config.json"))  # a model has a config.json too


VERBS = {
    "demo": Verb(demo, arguments.demo, "train, evaluate and report on the embedded model and data"),
    "check": Verb(check, arguments.check, "say what a run.yaml would do, and what is wrong with it"),
    "schema": Verb(schema, arguments.schema, "JSON Schema of run.yaml, for editors"),
    "smoke": Verb(smoke, arguments.run_yaml, "try a run.yaml on a little of its data: steps, save, resume, evaluation"),
    "matrix": Verb(matrix, arguments.matrix, "say which methods, strategies, dtypes and devices work together"),
    "data audit": Verb(data_audit, arguments.data_audit, "say what is wrong with a run's data, or with data files"),
    "data preview": Verb(data_preview, arguments.data_preview, "rows as the model sees them, what is learned marked"),
    "data prepare": Verb(data_prepare, arguments.data_prepare, "clean raw data, split it by group, write a data card"),
    "plan": Verb(plan, arguments.plan, "say whether a run.yaml fits on given GPUs, how fast it is, and what it costs"),
    "train": Verb(train, arguments.train, "train a run.yaml, or continue a run"),
    "verify-resume": Verb(
        verify_resume,
        arguments.verify_resume,
        "prove on a run.yaml that a killed and resumed run is the same run",
    ),
    "sweep": Verb(sweep, arguments.sweep, "train and evaluate every combination of some settings"),
    "compare": Verb(compare, arguments.compare, "several runs side by side: settings, scores, forgetting, cost"),
    "eval": Verb(evaluate, arguments.eval, "score every checkpoint of a run, beside base and few-shot"),
    "submit": Verb(submit, arguments.submit, "train a run.yaml, or continue a run, as a Slurm job"),
    "status": Verb(status, arguments.status, "say where runs are: step, loss, time left, checkpoint, job"),
    "logs": Verb(logs, arguments.logs, "print what a run's job, or one of its ranks, has said"),
    "cancel": Verb(cancel, arguments.run_directory, "end a run's jobs; it can go on later"),
    "report": Verb(report, arguments.report, "write report.html, .md and .json, and print the verdict"),
    "export": Verb(export, arguments.export, "write a checkpoint for PEFT, scaled, or merged into its base"),
    "chat": Verb(chat, arguments.chat, "talk to the tuned model"),
}
