"""One base in memory, loaded once when it is first needed, and one checkpoint's weights on it at a time."""

import copy
import inspect
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftModelForCausalLM
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache, PreTrainedModel

from distributed_ft.errors import CheckpointError, brief, some
from distributed_ft.model.adapters import num_virtual_tokens, put_on, refill, take_off
from distributed_ft.model.load import DTYPES
from distributed_ft.model.methods import bottleneck
from distributed_ft.model.quantized import keep_layout


class Weights:
    """Adapters are put on the base and taken off, full weights replace it; there is never memory for two models."""

    def __init__(
        self, base: Path, dtype: Literal["bf16", "fp32"], bits: BitsAndBytesConfig | None, device: torch.device
    ) -> None:
        """`bits`: a base that was quantised for training answers as it was trained."""
        self.device = device
        self.num_virtual = 0  # tokens that the adapter puts before every prompt
        self._base, self._dtype, self._bits = base, dtype, bits
        self._model: PreTrainedModel | None = None
        self._adapter: PeftModelForCausalLM | None = None
        self._settings: tuple[bytes, float] | None = None  # of the adapter, if another's weights can take their place
        self._bottlenecks: list[RemovableHandle] = []
        self._is_base = False  # the weights under the adapter are the base's
        self._shapes: dict[str, torch.Size] = {}  # of the base's tensors
        self._accepted: frozenset[str] = frozenset()  # what the model's forward takes
        self._read: tuple[tuple[int, ...], DynamicCache] | None = None  # see `read`

    def use(self, weights: Path | None, strength: float = 1.0) -> None:
        """See `Engine`. Raises CheckpointError when the weights do not fit the base, whatever the difference."""
        self._read = None
        if weights is not None and self._settings is not None and self._settings == _settings(weights, strength):
            self._refill(weights)
            return
        self._take_off()
        if weights is not None and not is_adapter(weights):
            if strength != 1:
                raise CheckpointError(f"{weights}: is a whole model, not an adapter: its strength cannot be changed")
            self._load_full(weights)
            return
        if not self._is_base:
            self._model = None  # before the load: there is never memory for two
            self._model = self._load(self._base)
            self._shapes = {name: tensor.shape for name, tensor in self._model.state_dict().items()}
            self._is_base = True
        if weights is not None:
            self._attach(weights, strength)

    @property
    def model(self) -> PreTrainedModel:
        """The base, with an adapter's layers in it where one is on."""
        assert self._model is not None, "use() comes first"
        return self._model

    def forward(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache | None, keep: int
    ) -> Tensor:
        """Logits (rows, at least `keep`, vocabulary), of which the last `keep` columns are meant.

        Args:
            tokens: (rows, new tokens).
            mask: (rows, virtual, cached and new tokens), 1 for what may be seen; None: everything. Or (rows, 1, new
                tokens, the same tokens), what is added to the scores of attention (`takes_any_mask`).
            positions: (rows, new tokens).
        """
        known: dict[str, Any] = {"position_ids": positions, "logits_to_keep": keep}
        inputs = {name: value for name, value in known.items() if name in self._accepted}
        if cache is not None:
            inputs |= {"past_key_values": cache, "use_cache": True}
        logits: Tensor = self.model(input_ids=tokens, attention_mask=mask, **inputs).logits
        return logits

    def _virtual_tokens(self) -> DynamicCache:
        """A cache of one row, with the adapter's virtual tokens in it if it has any."""
        virtual = self._adapter.get_prompt(batch_size=1) if self._adapter is not None and self.num_virtual else None
        if isinstance(virtual, DynamicCache):  # prefix tuning: keys and values as they are
            return virtual
        cache = DynamicCache(config=self.model.config)
        if virtual is not None:  # prompt tuning: embeddings, to be read
            embedded = virtual.to(self.model.get_input_embeddings().weight.dtype)
            self.model.base_model(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        return cache

    def read(self, tokens: tuple[int, ...], rows: int) -> DynamicCache:
        """A cache of so many rows, in each the virtual tokens and these; no logits are computed.

        What was read last is kept, for the batches of a task begin alike. The rows are views of it until more is read.
        """
        if not tokens and not self.num_virtual:
            return DynamicCache(config=self.model.config)
        if self._read is None or self._read[0] != tokens:
            cache = self._virtual_tokens()
            if tokens:
                ids = torch.tensor([tokens], device=self.device)
                self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            self._read = tokens, cache
        return _with_rows(self._read[1], rows)

    @property
    def takes_any_mask(self) -> bool:
        """Whether attention is computed by a mask of (query, key) that is ours to choose."""
        return self.model.config._attn_implementation in ("sdpa", "eager") and "position_ids" in self._accepted

    def _refill(self, weights: Path) -> None:
        assert self._adapter is not None
        try:
            refill(self._adapter, "default", weights, str(self._base))
        except CheckpointError:
            self._take_off()
            raise

    def _take_off(self) -> None:
        """Take the adapter off that is on, if one is."""
        if self._adapter is not None:
            take_off(self._adapter)
        if self._bottlenecks:
            bottleneck.detach(self.model, self._bottlenecks)
        self._adapter, self._bottlenecks, self.num_virtual, self._settings = None, [], 0, None

    def _load(self, directory: Path) -> PreTrainedModel:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=DTYPES[self._dtype],
                output_loading_info=True,
                quantization_config=self._bits,
                device_map=None if self._bits is None else {"": self.device},
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{directory}: the model cannot be loaded: {brief(error)}") from None
        model, info = loaded
        if self._bits is not None:
            keep_layout(model)
        # keys of the file that the model does not have are harmless in a base; a key without a value never is
        strict = ("missing_keys", "mismatched_keys") + (() if directory == self._base else ("unexpected_keys",))
        wrong = [f"{kind.replace('_', ' ')}: {some(info[kind])}" for kind in strict if info.get(kind)]
        if wrong:
            raise CheckpointError(f"{directory}: the weights do not fit the architecture; {'; '.join(wrong)}")
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        return cast(PreTrainedModel, (model if self._bits else model.to(self.device)).eval())

    def _load_full(self, weights: Path) -> None:
        if not (weights / "config.json").is_file():
            raise CheckpointError(f"{weights}: neither adapter_config.json nor config.json: no model is here")
        if not self._shapes:
            self.use(None)
        self._model, self._is_base = None, False
        model = self._load(weights)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if shapes != self._shapes:
            differing = [n for n in {**shapes, **self._shapes} if shapes.get(n) != self._shapes.get(n)]
            raise CheckpointError(f"{weights}: not a fine-tune of {self._base}: {some(differing)} differ in shape")
        self._model = model

    def _attach(self, weights: Path, strength: float) -> None:
        if (weights / bottleneck.DESCRIPTION).is_file():
            if strength != 1:
                raise CheckpointError(f"{weights}: is a bottleneck adapter, not LoRA: its strength cannot be changed")
            self._bottlenecks = bottleneck.load(self.model, weights)
            return
        self._is_base = False  # until it is known that taking the adapter off restores the base
        self._adapter = put_on(self.model, "default", weights, str(self._base), strength)
        self.num_virtual = num_virtual_tokens(self._adapter)
        # PEFT leaves the trained copies of such modules in the base when it takes an adapter off
        self._is_base = not getattr(self._adapter.active_peft_config, "modules_to_save", None)
        self._settings = _settings(weights, strength) if self._is_base and not self.num_virtual else None


def _settings(weights: Path, strength: float) -> tuple[bytes, float] | None:
    """All that an adapter's layers are made by; None of what is no adapter of PEFT."""
    try:
        return (weights / "adapter_config.json").read_bytes(), strength
    except OSError:  # not there, or not any more
        return None


def _with_rows(cache: DynamicCache, rows: int) -> DynamicCache:
    """Of one row, as many times, without a copy: what is read behind it makes one."""
    expanded = copy.copy(cache)
    expanded.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in expanded.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    return expanded


def is_adapter(weights: Path) -> bool:
    """Whether a checkpoint's `model/` holds an adapter, of PEFT or of ours, and no whole model."""
    return any((weights / name).is_file() for name in ("adapter_config.json", bottleneck.DESCRIPTION))
