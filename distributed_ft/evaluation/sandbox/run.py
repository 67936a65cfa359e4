"""A Python program in the cage: started, watched, killed as a group."""

import math
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CAGE = Path(__file__).with_name("cage.py")
_CAUGHT = 125  # exit code of a cage that could not be put on
_OUTPUT = 64 * 1024  # bytes of output that are kept


@dataclass(frozen=True)
class Limits:
    """What one program may take: seconds of CPU (of the clock, twice as many and five more), MiB of memory."""

    seconds: float = 10.0
    memory: int = 1024


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its exit code (negative: the signal that killed it), or None when the clock ran out."""

    code: int | None
    output: str  # of stdout and stderr, its end

    @property
    def succeeded(self) -> bool:
        return self.code == 0


def problem() -> str | None:
    """Why nothing can be run here, or None. Takes as long as Python takes to start."""
    if sys.platform != "linux":
        return f"the sandbox needs Linux, and this is {sys.platform}"
    try:
        outcome = run_python("print('held')", Limits())
    except RuntimeError as error:
        return str(error)
    return (
        None if outcome.output.strip() == "held" else f"Python does not start in the sandbox: {outcome.output[-300:]}"
    )


def run_python(program: str, limits: Limits) -> Outcome:
    """Run a program to its end, or to the end of its time. Raises RuntimeError where the cage cannot be put on."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as place:
        folder, output = Path(place, "own"), Path(place, "output")  # the output is out of the program's reach
        folder.mkdir()
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        code = _code(folder, output, limits)
        with output.open("rb") as file:
            file.seek(max(0, output.stat().st_size - _OUTPUT))
            said = file.read().decode(errors="replace")
    if code == _CAUGHT:
        raise RuntimeError(said.strip() or "the sandbox could not be set up")
    return Outcome(code, said)


def _code(folder: Path, output: Path, limits: Limits) -> int | None:
    cpu = math.ceil(limits.seconds)
    libraries = os.environ.get("LD_LIBRARY_PATH")
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CAGE), str(limits.memory), str(cpu), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={} if libraries is None else {"LD_LIBRARY_PATH": libraries},  # nothing else: keys are in the others
            start_new_session=True,
        )
    try:
        return process.wait(2 * limits.seconds + 5)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
