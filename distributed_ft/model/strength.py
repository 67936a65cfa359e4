"""An adapter at less than its full strength: W + c s B A in place of W + s B A.

Interpolation between the weights before and after fine-tuning trades what was learned for what was forgotten, at no
training cost (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903). Of a low-rank adapter,
whose difference to the base is the product that it adds, it is a matter of its scale s = alpha / rank alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_ft.errors import CheckpointError


def scaled(config: Mapping[str, Any], strength: float, where: Path) -> dict[str, Any]:
    """What changes in an adapter_config.json. Raises CheckpointError, naming `where`, for one that cannot be scaled."""
    problem = _problem(config)
    if problem is not None:
        raise CheckpointError(f"{where}: {problem}: its strength cannot be changed")
    alphas = {name: _times(alpha, strength) for name, alpha in (config.get("alpha_pattern") or {}).items()}
    return {"lora_alpha": _times(config["lora_alpha"], strength), "alpha_pattern": alphas}


def rescale(config: Any, strength: float, where: Path) -> None:
    """The same for PEFT's own object."""
    for key, value in scaled({**config.to_dict(), "peft_type": config.peft_type.value}, strength, where).items():
        setattr(config, key, value)


def _problem(config: Mapping[str, Any]) -> str | None:
    kind = config.get("peft_type")
    if kind != "LORA":
        return f"is a {kind} adapter, not LoRA"
    if config.get("use_dora"):
        return "is a DoRA adapter, whose trained magnitudes are no difference to the base"
    if config.get("modules_to_save"):
        return f"holds whole trained modules ({', '.join(config['modules_to_save'])}) beside LoRA"
    if config.get("bias", "none") != "none":
        return "holds trained biases beside LoRA"
    return None


def _times(alpha: float, strength: float) -> float:
    """Whole numbers stay so where they can: some readers of the file expect one."""
    product = alpha * strength
    return int(product) if float(product).is_integer() else product
