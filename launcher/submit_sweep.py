"""`dft sweep --submit`: the combinations of a sweep as the tasks of one job array, a run directory each."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed_ft.artifacts import RunDirectory, write_atomic, write_json
from distributed_ft.config.load import LoadedRun
from distributed_ft.records import Sweep
from launcher import attempts, local, slurm
from launcher.attempts import Event
from launcher.cluster import ClusterConfig
from launcher.plan import Start
from launcher.submit import (
    Options,
    check,
    for_evaluation,
    record_submission,
    refuse_what_slurm_refuses,
    script,
    submission,
    write_scripts,
)


def submit_sweep(
    loaded: Sequence[LoadedRun],
    record: Sweep,
    file: Path,
    given: dict[str, Any],
    cluster: ClusterConfig,
    *,
    evaluate: bool,
    dry_run: bool,
) -> int:
    """Check every combination, make its run directory, and submit them all as one array, whose task i trains the i-th;
    with `evaluate` a second array scores each when it is trained.

    Args:
        loaded, record, file: of `launcher.sweep.plan`.
        given: options of the command line; None where nothing was said. `at_once`: most tasks at a time.

    Raises ConfigError, DataError, CheckpointError before anything is submitted."""
    options = Options.of(cluster, {}, {**given, "array": None})
    start = Start(options.num_ranks, options.launcher)
    runs = [RunDirectory((Path(run.config.runs_dir) / run.config.name).absolute()) for run in loaded]
    for run, of in zip(runs, loaded, strict=True):
        check(run, of.config, options, cluster, dry_run)
    folder = file.with_suffix("").absolute()  # runs/NAME.sweep
    listed = folder / "runs.txt"
    limit = f"%{given['at_once']}" if given.get("at_once") else ""
    tasks = replace(options, array=f"0-{len(runs) - 1}{limit}")
    chosen = f'$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(listed))})'
    name = f"dft-{folder.stem}"
    scripts = {"train.sbatch": script("train", name, folder, chosen, tasks, cluster)}
    if evaluate:
        scripts["eval.sbatch"] = script("eval", f"{name}-eval", folder, chosen, for_evaluation(tasks), cluster)
    if dry_run:
        print("\n".join(f"# {folder / which}\n{text}" for which, text in scripts.items()))
        return 0
    refuse_what_slurm_refuses(scripts.values())
    write_json(file, record.model_dump(by_alias=True))
    for of in loaded:
        write_scripts(submission(local.prepare(of, start), options, cluster))
    write_atomic(listed, "".join(f"{run.path}\n" for run in runs))
    for which, text in scripts.items():
        write_atomic(folder / which, text)
    for run in runs:
        attempts.record(run, Event(event="submit", job="", at=attempts.now()))
    job = slurm.submit(folder / "train.sbatch")
    scores = (
        slurm.submit(folder / "eval.sbatch", [f"--dependency=aftercorr:{job}", "--kill-on-invalid-dep=yes"])
        if evaluate
        else None
    )
    for number, run_directory in enumerate(runs):
        evaluation = f"{scores}_{number}" if scores else None
        record_submission(run_directory, f"{job}_{number}", options, evaluation)
    print(f"submitted {len(runs)} runs as job array {job}" + (f", their evaluation as {scores}" if scores else ""))
    print(f"watch them: dft status {loaded[0].config.runs_dir}; compare them: dft compare {file}")
    return 0
