"""`python -m launcher` is `dft`."""

import signal
import sys
from typing import NoReturn

from launcher.cli import main


def run() -> NoReturn:
    """The process of a command. A request to stop that comes when it is over finds nothing to stop, and must not put a
    code of its own in the place of the command's: with torch loaded, Python's end takes a second or two."""
    code = main()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    run()
