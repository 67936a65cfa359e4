"""One thread a process (a test machine has few cores, and sums must not depend on their number), no hub, no GPU kernels
chosen behind our back; tiny bases that every folder uses."""

import os
import signal

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from collections.abc import Callable
from pathlib import Path

import bitsandbytes  # noqa: F401  # before a command that runs in this process leaves it out (distributed_ft.imports)
import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`bases("qwen2", tie_word_embeddings=True)`: a tiny base of that architecture, made once a session."""
    from support.tiny import make_base

    made: dict[str, Path] = {}

    def base(architecture: str = "llama", **overrides: object) -> Path:
        key = repr((architecture, sorted(overrides.items())))
        if key not in made:
            made[key] = make_base(tmp_path_factory.mktemp("bases") / architecture, architecture, **overrides)
        return made[key]

    return base
