"""LoRA (Hu et al. 2021, arXiv:2106.09685), by PEFT: the base is frozen, small matrices beside it are trained."""

from difflib import get_close_matches
from typing import cast

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from distributed_ft.config.schema import LowRank
from distributed_ft.errors import ConfigError


def apply(model: PreTrainedModel, method: LowRank) -> nn.Module:
    """The model with adapters in fp32 (whatever the base's dtype) on the target modules; those of PiSSA are not at
    their start yet (see `distributed_ft.model.methods.pissa.begin`).

    Raises ConfigError when a name in `target_modules` matches no linear layer.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=cast(int, method.alpha),  # PEFT's annotation is narrower than what it computes with
        lora_dropout=method.dropout,
        target_modules=_targets(model, method.target_modules),
        use_rslora=method.rslora,
        use_dora=method.dora,
    )
    return cast(nn.Module, get_peft_model(model, config))


def _targets(model: nn.Module, targets: str | tuple[str, ...]) -> str | list[str]:
    if targets == "attention":
        return _attention(model)
    return targets if isinstance(targets, str) else _checked_targets(model, targets)


def _attention(model: nn.Module) -> list[str]:
    """`self_attn.q_proj` and the like: with the name of the block, as others may have layers of the same name."""
    linear = (name.split(".") for name, module in model.named_modules() if isinstance(module, nn.Linear))
    found = {".".join(path[-2:]) for path in linear if any("attn" in part or "attention" in part for part in path[:-1])}
    if not found:
        raise ConfigError("method.target_modules: attention: no linear layer of this base is in one; name them")
    return sorted(found)


def _checked_targets(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = {name.rpartition(".")[2] for name in linear}
    for target in targets:
        if target not in known and not any(name.endswith(f".{target}") for name in linear):
            close = get_close_matches(target, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"method.target_modules: {target!r} matches no linear layer{hint} "
                f"(there are: {', '.join(sorted(known))})"
            )
    return list(targets)
