"""What turns requests into answers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distributed_ft.config.schema import EndpointEngineConfig, RunConfig
from distributed_ft.errors import ConfigError
from distributed_ft.evaluation.engines.crew import Crew
from distributed_ft.evaluation.engines.endpoint import EndpointEngine
from distributed_ft.evaluation.engines.engine import Engine
from distributed_ft.evaluation.engines.local import TransformersEngine, base_digest
from distributed_ft.evaluation.engines.weights import is_adapter
from distributed_ft.model.load import DTYPES
from distributed_ft.model.quantized import quantization

__all__ = ["Engine", "TransformersEngine", "base_digest", "engine_of", "is_adapter", "opened"]


def engine_of(config: RunConfig, batch_size: int | None = None) -> TransformersEngine:
    """The engine of a run: its base, quantised where training quantised it; by its batches, or of so many rows."""
    dtype, batches = config.model.dtype, config.evaluation
    bits = quantization(config.method, DTYPES[dtype])
    if batch_size is not None:
        return TransformersEngine(config.model.base, dtype, batch_size, bits)
    tokens = batches.batch_tokens
    return TransformersEngine(config.model.base, dtype, batches.batch_size, bits, batch_tokens=tokens)


@contextmanager
def opened(config: RunConfig, num_processes: int = 1) -> Iterator[Engine]:
    """What a run is evaluated by: this process, or several, each with a GPU of its own or a thread of the CPU.

    On a CPU the number of threads decides the last digits of a likelihood. So a process has one, however many there
    are, or what OMP_NUM_THREADS says.

    Raises ConfigError: the base cannot be read, there are more processes than GPUs, or several beside a server.
    """
    engine = config.evaluation.engine
    if isinstance(engine, EndpointEngineConfig):
        if num_processes > 1:
            raise ConfigError("--nproc: a server answers (evaluation.engine); its concurrency says how many at a time")
        yield EndpointEngine(config, engine)
        return
    head = engine_of(config)
    gpus = torch.cuda.device_count() if head.device.type == "cuda" else 0
    if gpus and num_processes > gpus:
        raise ConfigError(f"--nproc: {num_processes}: each process needs a GPU of its own, and there are {gpus}")
    before = torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    torch.set_num_threads(int(asked) if asked.isdecimal() and int(asked) > 0 else 1)
    devices = [f"cuda:{i}" if gpus else "cpu" for i in range(num_processes)]
    crew = Crew(head, num_processes, devices) if num_processes > 1 else None
    try:
        yield head if crew is None else crew
    finally:
        torch.set_num_threads(before)
        if crew is not None:
            crew.close()
