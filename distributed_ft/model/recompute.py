"""Activations that are computed again in the backward pass instead of being kept (Chen et al. 2016, arXiv:1604.06174).

`full` recomputes every decoder layer. `selective` recomputes every second one. The usual meaning of the word, to keep
the outputs of matrix products and recompute the rest (Korthikanti et al. 2022, arXiv:2205.05198), was measured and
left: for full fine-tuning it keeps as much as every second layer does (26.1 against 24.6 of 41.1 MiB, of a Llama with
six layers), but over a *frozen* base the outputs of products are not needed for the backward pass at all, so for LoRA
it keeps more than no recomputation (43.3 of 38.5 MiB; every second layer 23.4), and its bookkeeping costs time at every
operation.
"""

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from distributed_ft.config.schema import Recompute
from distributed_ft.errors import ConfigError


def set_recompute(model: PreTrainedModel, mode: Recompute) -> None:
    """Switch recomputation on in `model`'s decoder layers, as `mode` says.

    Raises ConfigError when the architecture cannot recompute its layers, or only all of them.
    """
    if mode == "none":
        return
    name = type(model).__name__
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        raise ConfigError(f"model.gradient_checkpointing: {mode}: {name} cannot recompute; write none") from None
    if mode == "full":
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if len(layers) < 2:
        raise ConfigError(f"model.gradient_checkpointing: {mode}: {name} can only recompute all layers; write full")
    for layer in layers[1::2]:
        layer.gradient_checkpointing = False
