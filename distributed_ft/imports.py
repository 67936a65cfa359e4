"""What a process need not import. Torch-free.

PEFT imports bitsandbytes wherever it is installed, which loads torch's compiler when it is imported; transformers does
so with scipy, for losses of object detection. That is a third of what a rank's start costs (4 of 12 s of CPU), and each
of several ranks pays it.
"""

import gc
import sys
from collections.abc import Sequence
from typing import Any

from distributed_ft.config.schema import QloraMethod, RunConfig


def leave_out(configs: Sequence[RunConfig], *others: str) -> None:
    """Have bitsandbytes, unless one of the runs needs it, and `others` count as not installed in this process (`None`
    in `sys.modules` says so to every import). For a process that is there for these runs alone, before its imports."""
    modules: dict[str, Any] = sys.modules
    for name in ("bitsandbytes", *others) if not any(map(_needs_bitsandbytes, configs)) else others:
        modules.setdefault(name, None)


def _needs_bitsandbytes(config: RunConfig) -> bool:
    return isinstance(config.method, QloraMethod) or "8bit" in config.optim.name


def all_imported() -> None:
    """What is there now stays: look for garbage (from which `gc.disable` kept the imports) in what comes after it."""
    gc.enable()
    gc.freeze()
