"""`python -m distributed_ft.evaluation RUN_DIR [--checkpoints all|latest|500,1000]`: the process of `dft eval`."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from distributed_ft.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, FtError, disk_problem

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


_GOES_ON = "finished scores are kept, and the same command goes on from there"


class _StopRequested(BaseException):
    """SIGTERM came. No library's `except Exception` may keep it, as with KeyboardInterrupt."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit code. A signal may come at any moment: files appear whole or not at all."""
    parser = argparse.ArgumentParser(prog="python -m distributed_ft.evaluation", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--checkpoints", default="all", help="all (default), latest, or steps: 500,1000")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it tells of kernels that nobody asked for
    try:
        from distributed_ft.evaluation.driver import evaluate
        from distributed_ft.model.load import quiet_libraries

        quiet_libraries()
        evaluate(options.run_dir, options.checkpoints)
    except _StopRequested:
        print(f"stopped on request; {_GOES_ON}", file=sys.stderr)
        return EXIT_STOPPED
    except FtError as error:
        print(f"dft: error: {error}", file=sys.stderr)
        return EXIT_USER
    except OSError as error:
        message = disk_problem(error)
        if message is None:
            raise
        print(f"dft: error: {message}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print(f"\ninterrupted; {_GOES_ON}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_DONE


def _stop(number: int, frame: FrameType | None) -> None:
    raise _StopRequested


if __name__ == "__main__":
    sys.exit(main())
