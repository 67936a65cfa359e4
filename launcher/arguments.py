"""The command lines of the verbs, for argparse: one function a verb, and the pieces that several share."""

import argparse
from pathlib import Path


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def nproc(parser: argparse.ArgumentParser, default: int = 1) -> None:
    parser.add_argument("--nproc", type=positive, default=default, metavar="N", help=f"local processes ({default})")


def run_yaml(parser: argparse.ArgumentParser, what: str = "a run.yaml") -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help=what)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optim.lr=1e-4")
    nproc(parser)


def check(parser: argparse.ArgumentParser) -> None:
    run_yaml(parser)
    parser.add_argument("--config-only", action="store_true", help="without looking at model and data")


def plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optim.micro_batch_size=2")
    parser.add_argument("--gpu", required=True, metavar="KIND[:N]", help="GPUs of a node, for example h100:8")
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="nodes (1)")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="your prices, USD a GPU hour: lines like h100: 2.1")
    parser.add_argument(
        "--patience", type=natural, default=40, metavar="S", help="begin no proposal after S seconds (40); 0: none"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def train(parser: argparse.ArgumentParser) -> None:
    run_yaml(parser, "a run.yaml, or the directory of a run to continue")
    parser.add_argument("--resume", action="store_true", help="continue where the run stands (the default)")
    parser.add_argument("--prepare-only", action="store_true", help="make the run directory, and say how to start it")
    launcher(parser)


def verify_resume(parser: argparse.ArgumentParser) -> None:
    run_yaml(parser)
    parser.add_argument("--steps", type=steps, default=8, metavar="S", help="steps to train (8)")
    parser.add_argument("--resume-nproc", type=positive, metavar="M", help="resume on M processes (as many as before)")
    launcher(parser)


def sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run.yaml")
    parser.add_argument(
        "overrides", nargs="+", metavar="key=a,b", help="for example method.rank=4,16; of lists key=[a,b],[c]"
    )
    nproc(parser)
    parser.add_argument("--no-eval", action="store_true", help="train only")
    parser.add_argument("--dry-run", action="store_true", help="check and list the combinations, start none")
    launcher(parser)
    parser.add_argument("--submit", action="store_true", help="as a Slurm job array")
    parser.add_argument("--at-once", type=positive, metavar="N", help="most jobs of the array at a time (all)")
    slurm(parser)


def compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, or a NAME.sweep.json")
    parser.add_argument("--json", action="store_true", help="for programs")


def steps(text: str) -> int:
    if positive(text) < 4:
        raise argparse.ArgumentTypeError("4 steps are the least: some before the kill, some after")
    return int(text)


def launcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--launcher", choices=("dft", "torchrun", "accelerate"), default="dft", help="what starts the processes (dft)"
    )
    parser.add_argument(
        "--accelerate-config",
        type=Path,
        metavar="FILE",
        help="of accelerate; default: one that says what run.yaml says",
    )


def matrix(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="for programs")
    how.add_argument("--verify", action="store_true", help="train every cell here, and compare with one process")


def demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-replay", action="store_true", help="without general data: shows catastrophic forgetting")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs go (runs)")
    nproc(parser, default=2)


def schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there instead of printing it")


def run_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, for example runs/demo")


def report(parser: argparse.ArgumentParser) -> None:
    run_directory(parser)
    parser.add_argument(
        "--gate",
        action="store_true",
        help="for CI: exit with 0 (ship), 3 (do not ship) or 4 (not enough evidence)",
    )


def eval(parser: argparse.ArgumentParser) -> None:
    run_directory(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="evaluation.key=value", help="for example evaluation.few_shot=2; kept in RUN"
    )
    parser.add_argument("--checkpoints", default="all", metavar="WHICH", help="all, latest, or steps: 500,1000 (all)")
    parser.add_argument("--watch", action="store_true", help="score each checkpoint as it comes, until the run is done")
    parser.add_argument("--train-job", metavar="JOB", help="with --watch: the Slurm job that trains, to know its end")
    nproc(parser)


def export(parser: argparse.ArgumentParser) -> None:
    run_directory(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new directory")
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help="best, latest or a step (best)")
    parser.add_argument(
        "--scale",
        default="1",
        metavar="X",
        help="strength of the adapter, for example 0.5; recommended: by dft eval with evaluation.adapter_strength (1)",
    )
    parser.add_argument("--merge", action="store_true", help="a whole model, in place of an adapter for its base")


def chat(parser: argparse.ArgumentParser) -> None:
    run_directory(parser)
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help="best, latest, base or a step (best)")


def submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run.yaml, or the directory of a run to continue")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optim.lr=1e-4")
    slurm(parser)
    parser.add_argument("--launcher", choices=("torchrun", "accelerate"), help="what starts the processes of a node")
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--until-done", action="store_true", default=None, help="requeue until the run is finished")
    until.add_argument("--once", dest="until_done", action="store_false", help="one job, whatever it reaches")
    parser.add_argument("--with-eval", action="store_true", default=None, help="a second job scores each checkpoint")
    parser.add_argument("--array", metavar="TASKS", help="1-8%%1: eight jobs in a row, where requeues are not allowed")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")


def slurm(parser: argparse.ArgumentParser) -> None:
    """What a job asks for; cluster.yaml has the defaults."""
    parser.add_argument("--nodes", type=positive, metavar="N")
    parser.add_argument("--gpus-per-node", type=positive, metavar="G", help="each GPU has one process")
    parser.add_argument("--processes-per-node", type=positive, metavar="P", help="on CPUs")
    parser.add_argument("--time", metavar="H:MM:SS", help="limit of a job")
    for name in ("partition", "account", "qos"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="habits of the cluster (./cluster.yaml)")


def status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run directory (all in ./runs)")


def logs(parser: argparse.ArgumentParser) -> None:
    run_directory(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="and what is added, until Ctrl-C")
    parser.add_argument("--rank", type=int, metavar="R", help="of this rank (what the job says)")


def data_prepare(parser: argparse.ArgumentParser) -> None:
    from typing import get_args

    from distributed_ft.config.schema import DataFormat

    parser.add_argument("raw", nargs="+", metavar="RAW", help="data files, folders of shards, or hub ids")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder, or that of an earlier run")
    parser.add_argument("--format", choices=get_args(DataFormat), default="auto", help="what a row looks like (auto)")
    parser.add_argument("--columns", default="", metavar="A=B,…", help="for example prompt=question,completion=answer")
    parser.add_argument("--group-by", metavar="COLUMN", help="a user or conversation: its rows stay in one split")
    parser.add_argument("--stratify", metavar="COLUMN", help="whose shares are reported (the category of the row)")
    parser.add_argument("--keep", default="", metavar="A,B", help="further columns to keep in the rows")
    parser.add_argument("--split", default="80/10/10", metavar="T/V/T", help="train/validation/test (80/10/10)")
    parser.add_argument("--min-answer", type=positive, default=1, metavar="N", help="characters of an answer (1)")
    parser.add_argument(
        "--near",
        type=share,
        default=0.8,
        metavar="S",
        help="similarity of near-duplicates, 0 to 1; 0: not looked at (0.8)",
    )
    parser.add_argument("--drop-near", action="store_true", help="keep one of near-duplicates, not all in one split")
    parser.add_argument("--skip-bad", type=natural, default=0, metavar="N", help="rows that may be unreadable (0)")


def data_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", metavar="RUN|FILE", help="a run.yaml, or data files")
    parser.add_argument("--json", action="store_true", help="for programs: data/report.json")


def data_preview(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.supervise=last")
    parser.add_argument("-n", dest="count", type=positive, default=3, metavar="N", help="rows (3)")
    parser.add_argument("--row", type=positive, metavar="N", help="this row only, counted from 1")
