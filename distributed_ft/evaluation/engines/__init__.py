"""What turns requests into answers."""

from distributed_ft.config.schema import RunConfig
from distributed_ft.evaluation.engines.engine import Engine
from distributed_ft.evaluation.engines.local import TransformersEngine, base_digest
from distributed_ft.evaluation.engines.weights import is_adapter
from distributed_ft.model.load import DTYPES
from distributed_ft.model.quantized import quantization

__all__ = ["Engine", "TransformersEngine", "base_digest", "engine_of", "is_adapter"]


def engine_of(config: RunConfig, batch_size: int) -> TransformersEngine:
    """The engine of a run: its base, quantised where training quantised it."""
    dtype = config.model.dtype
    return TransformersEngine(config.model.base, dtype, batch_size, quantization(config.method, DTYPES[dtype]))
