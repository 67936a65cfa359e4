"""Several adapters on one base, which is loaded once: put on, swapped and listed, by PEFT.

adapters = Adapters("meta-llama/Llama-3.1-8B", torch.bfloat16)
adapters.load("triage", "runs/triage/checkpoints/step-00000500/model")
adapters.load("tone", "runs/tone/checkpoints/step-00000200/model")
adapters.use("tone")
adapters.model.generate(...)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModelForCausalLM
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from distributed_ft.errors import CheckpointError, ConfigError, brief, some
from distributed_ft.model.methods import bottleneck
from distributed_ft.model.quantized import keep_layout
from distributed_ft.model.strength import rescale


class Adapters:
    """A base and the adapters that were loaded for it; the base itself answers until `use` names one."""

    def __init__(self, base: str, dtype: torch.dtype, bits: BitsAndBytesConfig | None = None) -> None:
        """
        Args:
            base: a directory in Hugging Face format, or a hub id.
            dtype: of the base's weights.
            bits: how they are quantised (see `distributed_ft.model.quantized.quantization`).

        Raises ConfigError when it cannot be loaded.
        """
        self.base = base
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        place = {"": device}
        try:
            model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=bits, device_map=place)
        except Exception as error:  # the libraries below raise anything from OSError to their own types
            raise ConfigError(f"base: {base!r}: the model cannot be loaded: {brief(error)}") from None
        if bits is not None:
            keep_layout(model)
        self._base: PreTrainedModel = model.eval()
        self._adapted: PeftModelForCausalLM | None = None
        self._active: str | None = None

    @property
    def model(self) -> nn.Module:
        """What to call, or to `generate` with: the base, or the base as the adapter in use makes it."""
        return self._base if self._adapted is None or self._active is None else cast(nn.Module, self._adapted)

    @property
    def active(self) -> str | None:
        """The adapter in use; None for the base."""
        return self._active

    def names(self) -> tuple[str, ...]:
        """The adapters that are loaded, in that order."""
        return () if self._adapted is None else tuple(self._adapted.peft_config)

    def load(self, name: str, path: Path | str) -> None:
        """Load the adapter in a directory (PEFT's format), beside those that are there; `use` puts it on.

        Raises:
            ConfigError: the name is taken, or cannot be one.
            CheckpointError: it is damaged, for another base, or of another kind than the others; nothing has changed.
        """
        if not name or "." in name:
            raise ConfigError(f"name: {name!r}: a name is not empty and has no dot; choose another")
        if name in self.names():
            raise ConfigError(f"name: {name!r}: is taken; choose another, there are: {', '.join(self.names())}")
        try:
            self._adapted = put_on(self._adapted or self._base, name, Path(path), self.base)
        finally:
            self.use(self._active)

    def use(self, name: str | None) -> None:
        """Answer as this adapter from now on, or as the base for None. Raises ConfigError when it is not loaded."""
        if name is not None and name not in self.names():
            known = ", ".join(self.names()) or "none is"
            raise ConfigError(f"name: {name!r}: no such adapter is loaded; loaded: {known}")
        self._active = name
        if self._adapted is None:
            return
        if name is not None:
            self._adapted.set_adapter(name, inference_mode=True)
        if not self._adapted.active_peft_config.is_prompt_learning:  # virtual tokens leave the base as it is
            tuner = self._adapted.base_model
            tuner.enable_adapter_layers() if name is not None else tuner.disable_adapter_layers()


def put_on(
    model: PreTrainedModel | PeftModelForCausalLM, name: str, path: Path, base: str, strength: float = 1.0
) -> PeftModelForCausalLM:
    """The adapter of `path` on a base, or beside the adapters that are on it already, frozen and in eval mode.

    `strength`: what its difference to the base is multiplied with (see `distributed_ft.model.strength`).

    Raises CheckpointError when it does not fit `base`, whatever the difference, is of another kind than those that are
    on it, or cannot be scaled; the model is then as it was.
    """
    if not (path / "adapter_config.json").is_file():
        ours = f" (bottleneck adapters are no PEFT: {bottleneck.load.__module__}.load puts them on)"
        here = ours if (path / bottleneck.DESCRIPTION).is_file() else ""
        raise CheckpointError(f"{path}: no adapter_config.json: no adapter of PEFT is here{here}")
    beside = isinstance(model, PeftModelForCausalLM)
    adapted: Any = model if beside else None
    try:
        with _fits(path, base):
            config = _config(path)
            if strength != 1:
                rescale(config, strength, path)
            if beside:
                if config.peft_type != adapted.peft_type:
                    raise CheckpointError(
                        f"{path}: a {config.peft_type.value} adapter cannot stand beside {adapted.peft_type.value} "
                        "ones on one base; load the base once more for it"
                    )
                adapted.add_adapter(name, config)
            else:
                adapted = PeftModelForCausalLM(model, config, name)
            return _filled(adapted, name, path, base)
    except CheckpointError:
        _undo(adapted, name, beside)
        raise


def refill(adapted: PeftModelForCausalLM, name: str, path: Path, base: str) -> None:
    """Put the weights of `path` into the layers of an adapter that was made with the same settings, which is quicker
    than to make them anew.

    Raises CheckpointError when they do not fit; what is on the base then is neither adapter: take it off.
    """
    with _fits(path, base):
        _filled(adapted, name, path, base)


@contextmanager
def _fits(path: Path, base: str) -> Iterator[None]:
    """Whatever PEFT raises is a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: an adapter for another base than {base}: {brief(error)}") from None


def _filled(adapted: Any, name: str, path: Path, base: str) -> PeftModelForCausalLM:
    device = next(iter(adapted.parameters())).device
    result = adapted.load_adapter(str(path), name, torch_device=str(device))
    missing, unexpected = result.missing_keys, result.unexpected_keys
    if adapted.peft_config[name].is_prompt_learning:  # PEFT reads it, and says all the same that it did not expect it
        unexpected = [key for key in unexpected if key != "prompt_embeddings"]
    wrong = [f"{kind}: {some(keys)}" for kind, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    if wrong:
        raise CheckpointError(f"{path}: an adapter for another base than {base}; {'; '.join(wrong)}")
    return cast(PeftModelForCausalLM, adapted.eval())


def num_virtual_tokens(adapted: PeftModelForCausalLM) -> int:
    """How many tokens the adapter in use puts before every prompt; 0 for those that change the base's layers."""
    config = adapted.active_peft_config
    return int(config.num_virtual_tokens) if config.is_prompt_learning else 0


def virtual_tokens_in(path: Path) -> int:
    """The same of the adapter in a directory, if one is there."""
    config = PeftConfig.from_pretrained(str(path)) if (path / "adapter_config.json").is_file() else None
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def take_off(adapted: PeftModelForCausalLM) -> None:
    """Take all adapters off the base. (PEFT leaves trained copies of whole modules in it: `modules_to_save`.)"""
    if not adapted.active_peft_config.is_prompt_learning:
        adapted.unload()


def _config(path: Path) -> Any:
    config = PeftConfig.from_pretrained(str(path))
    config.inference_mode = True
    if config.is_prompt_learning:  # sizes from the base that is there, so that an adapter for another one does not fit
        config.token_dim = config.num_layers = config.num_attention_heads = None
    return config


def _undo(adapted: Any, name: str, beside: bool) -> None:
    if adapted is None or name not in adapted.peft_config:
        return
    if beside:
        adapted.delete_adapter(name)
    else:
        take_off(adapted)
