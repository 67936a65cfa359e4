"""`python -m distributed_ft.evaluation RUN_DIR [--checkpoints all|latest|500,1000] [--watch [--train-job JOB]]
[--nproc N]`: the process of `dft eval`."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from distributed_ft.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, FtError, disk_problem

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit code: 0 done, 2 for the user to fix. (75 is of `heed_requests`.)"""
    parser = argparse.ArgumentParser(prog="python -m distributed_ft.evaluation", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--checkpoints", default="all", help="all (default), latest, or steps: 500,1000")
    parser.add_argument("--watch", action="store_true", help="score each checkpoint as it comes, until the run is done")
    parser.add_argument("--train-job", metavar="JOB", help="with --watch: the Slurm job that trains")
    parser.add_argument("--nproc", type=int, default=1, help="processes that answer (1)")
    options = parser.parse_args(arguments)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it tells of kernels that nobody asked for
    try:
        if options.watch:
            from distributed_ft.evaluation.watch import watch

            watch(options.run_dir, options.train_job, options.nproc)
        else:
            from distributed_ft import imports
            from distributed_ft.config.load import load_resolved

            imports.leave_out([load_resolved(options.run_dir / "config.json")])
            from distributed_ft.evaluation.driver import evaluate
            from distributed_ft.model.load import quiet_libraries

            quiet_libraries()
            evaluate(options.run_dir, options.checkpoints, options.nproc)
    except FtError as error:
        print(f"dft: error: {error}", file=sys.stderr)
        return EXIT_USER
    except OSError as error:
        message = disk_problem(error)
        if message is None:
            raise
        print(f"dft: error: {message}", file=sys.stderr)
        return EXIT_USER
    return EXIT_DONE


def heed_requests() -> None:
    """End at the first SIGINT, SIGTERM or SIGUSR1, at once and whatever the process does (main thread, first of all).

    A kill at any moment loses no finished item (files appear whole or not at all, answers are appended), so a request
    needs no more than that and a word. A thread hears it, for the main thread may be in a C call for minutes.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # for every thread that is started from here on
    threading.Thread(target=_hear, name="signals", daemon=True).start()


def _hear() -> None:
    signal.sigwait(STOP_SIGNALS)
    said = "stopped on request; scores of finished items are kept, and the same command goes on from there\n"
    os.write(sys.stderr.fileno(), said.encode())
    os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    heed_requests()
    sys.exit(main())
