"""What a process need not import. Torch-free.

PEFT imports bitsandbytes wherever it is installed, which loads torch's compiler when it is imported; transformers does
so with scipy, for losses of object detection. That is a third of what a rank's start costs (4 of 12 s of CPU), and each
of several ranks pays it.
"""

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed_ft.config.schema import QloraMethod, RunConfig


def leave_out(configs: Sequence[RunConfig], *others: str) -> None:
    """Have bitsandbytes, unless one of the runs needs it, and `others` count as not installed in this process (`None`
    in `sys.modules` says so to every import). For a process that is there for these runs alone, before its imports."""
    modules: dict[str, Any] = sys.modules
    unused = () if any(map(_needs_bitsandbytes, configs)) else ("bitsandbytes",)
    for name in (*unused, *others):
        modules.setdefault(name, None)


def _needs_bitsandbytes(config: RunConfig) -> bool:
    """Or perhaps: a base may be quantised already, and of one on the hub nobody knows before it is there."""
    if isinstance(config.method, QloraMethod) or "8bit" in config.optim.name:
        return True
    try:
        return "quantization_config" in json.loads(_config_of(config.model.base).read_bytes())
    except (OSError, ValueError):
        return True


def _config_of(base: str) -> Path:
    """Of a directory, or of what is in the hub's cache."""
    if Path(base).is_dir():
        return Path(base) / "config.json"
    from huggingface_hub import try_to_load_from_cache

    return Path(str(try_to_load_from_cache(base, "config.json")))


def all_imported() -> None:
    """What is there now stays: look for garbage (from which `gc.disable` kept the imports) in what comes after it. For
    once, before there is a model: what is frozen is never freed."""
    gc.enable()
    gc.freeze()
