"""What a node finds on itself before a training: its devices, its disks, its software."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from distributed_ft.artifacts import RunDirectory
from distributed_ft.errors import CheckpointError, brief, disk_problem
from distributed_ft.train.fitness import Look

TMP_BYTES = 64 * 2**20  # that a temporary directory shall have left
LEAST_BYTES = 64 * 2**20  # and the run directory, where no checkpoint says more
GPU_SHARE = 0.9  # of a GPU's memory that shall be free
_ECC = ["nvidia-smi", "--query-gpu=ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits"]


def look(run: RunDirectory, token: Path, wanted: int, needed: int | None, at: Callable[[str], None]) -> Look:
    """Look at this node.

    Args:
        token: a file that shall be in the run directory after it, for the others to see.
        wanted: devices that it shall have; needed: bytes of one checkpoint (None: as the newest one has).
        at: told what is looked at, for whoever waits for a node that hangs.
    """
    at("its software")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "distributed_ft": _source_digest()}
    at("its run directory")
    directory, free = _directory(run, token, needed)
    at("its temporary directory")
    faults, tmp_free = _temporary()
    at("its devices")
    granted = _granted()
    if torch.version.cuda is None or (torch.cuda.device_count() == 0 and granted is None):
        kind, devices, granted, warnings = "core", len(os.sched_getaffinity(0)), None, []
    else:
        kind, devices = "GPU", torch.cuda.device_count()
        faults += _gpus(devices)
        warnings = [f"it has {devices} GPUs, and {wanted} are used"] if devices > wanted else []
    return Look(devices, wanted, granted, kind, tuple(faults), directory, tuple(warnings), versions, free, tmp_free)


def _granted() -> int | None:
    """GPUs that Slurm gave on this node."""
    number = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return int(number) if number.isdigit() and int(number) > 0 else None


def _source_digest() -> str:
    """Of the package's source, which may be a checkout: its version says little."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _directory(run: RunDirectory, token: Path, needed: int | None) -> tuple[str, int | None]:
    """What is wrong with the run directory, and the bytes that are free there."""
    if not run.config.is_file():
        return f"{run.path}: it is not there; mount its file system", None
    try:
        with token.open("xb") as file:
            file.write(b"seen by all nodes\n")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(run.path).free
    except OSError as error:
        token.unlink(missing_ok=True)
        return disk_problem(error) or f"{run.path}: it cannot be written to ({error})", None
    needed = _newest_bytes(run) if needed is None else needed
    if free < needed:
        return f"{run.path}: {_mib(free)} free, and a checkpoint takes {_mib(needed)}; free some space", free
    return "", free


def _newest_bytes(run: RunDirectory) -> int:
    newest = run.pointer("LATEST")
    try:
        sizes = [entry.size for entry in newest.manifest().files.values()] if newest else []
    except CheckpointError:  # damaged: the training looks for another
        sizes = []
    return max(LEAST_BYTES, sum(sizes))


def _temporary() -> tuple[list[str], int | None]:
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile() as file:
            file.write(bytes(4096))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [f"its temporary directory cannot be written to ({error})"], None
    return [f"its temporary directory {folder} is full: {_mib(free)} free"] if free < TMP_BYTES else [], free


def _gpus(count: int) -> Iterator[str]:
    """What is wrong with the GPUs. The matrices hold -1, 0 and 1 and are 256 deep, so that every sum on the way is
    exact in every precision, TF32 and bf16 too, and the product must equal the CPU's."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-1, 2, shape, generator=generator).float() for shape in ((2048, 256), (256, 2048)))
    product = left @ right
    for index in range(count):
        try:
            device = torch.device("cuda", index)
            free, total = torch.cuda.mem_get_info(device)
            if free < GPU_SHARE * total:
                yield f"GPU {index}: {_mib(free)} of {_mib(total)} are free; another process holds the rest"
            for dtype in (torch.float32, torch.bfloat16):
                if not torch.equal((left.to(device, dtype) @ right.to(device, dtype)).float().cpu(), product):
                    yield f"GPU {index}: it computes wrongly (a product of {dtype} matrices)"
            torch.empty(int(GPU_SHARE * torch.cuda.mem_get_info(device)[0]), dtype=torch.uint8, device=device)
        except RuntimeError as error:
            yield f"GPU {index}: {brief(error)}"
    yield from _uncorrected_errors(count)


def _uncorrected_errors(count: int) -> Iterator[str]:
    """Memory errors since the driver was loaded, as far as nvidia-smi knows of any."""
    try:
        names = ",".join(f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count))
        said = subprocess.run([*_ECC, f"--id={names}"], capture_output=True, text=True, timeout=20).stdout
    except (RuntimeError, OSError, subprocess.TimeoutExpired):
        return
    for index, number in enumerate(line.strip() for line in said.splitlines()):
        if number.isdigit() and int(number) > 0:
            yield f"GPU {index}: {number} uncorrected memory error(s) (ECC)"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
