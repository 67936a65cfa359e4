"""From what a command raises to its exit code, and what its user reads of it."""

import os
import sys
from collections.abc import Callable

from distributed_ft.errors import EXIT_FAULT, EXIT_STOPPED, EXIT_USER, FtError, Stopped, disk_problem

EXIT_INTERRUPTED = 130  # 128 + SIGINT, what shells expect


def guarded(command: Callable[[], int]) -> int:
    """Run a command; an error that is meant for the user is one message on stderr, anything else a traceback."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except Stopped as stopped:
        print(f"dft: stopped: {stopped}", file=sys.stderr)
        return EXIT_STOPPED
    except FtError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("\ndft: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `dft check run.yaml | head`: whoever read has read enough
        _mute_stdout()
        return EXIT_FAULT
    except OSError as error:
        message = disk_problem(error)
        if message is None:
            raise
        _mute_stdout()
        return _refuse(message)
    except SystemExit as end:  # argparse has said what is wrong
        return end.code if isinstance(end.code, int) else EXIT_USER


def _refuse(message: str) -> int:
    first, *more = message.splitlines() or [""]
    if more and not more[0].startswith(" "):  # several problems rather than one with details
        message = f"{1 + len(more)} problems\n" + "\n".join(f"  {line}" for line in (first, *more))
    print(f"dft: error: {message}", file=sys.stderr)
    return EXIT_USER


def _mute_stdout() -> None:
    """Keep the interpreter from failing once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
