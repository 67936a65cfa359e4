"""Reading a base model and its tokenizer from a directory in Hugging Face format, or a hub id."""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import logging as hf_logging

from distributed_ft.config.schema import ModelConfig
from distributed_ft.errors import ConfigError
from distributed_ft.model import attention, weights
from distributed_ft.model.quantized import keep_layout
from distributed_ft.model.recompute import set_recompute
from distributed_ft.model.weights import Slot, Weights

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


MODEL_FILES = (  # all that decides an answer: weights, architecture, tokenizer, template, end tokens
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.jinja",
    "*.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
)


def load_tokenizer(base: str) -> PreTrainedTokenizerFast:
    """The base's tokenizer. Raises ConfigError when it cannot be read, or is not a fast one (no character offsets)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except Exception as error:  # the libraries below raise anything from OSError to their own types
        where = "" if Path(base).is_dir() else "no directory here has that name, and from the hub "
        raise ConfigError(f"model.base: {base!r}: {where}its tokenizer cannot be read: {_first_line(error)}") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"model.base: {base!r}: needs a fast tokenizer (a tokenizer.json beside the model)")
    return tokenizer


def load_model(
    config: ModelConfig, storage: torch.dtype, device: torch.device, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """The base with its weights, on the CPU, in training mode's attention implementation.

    Args:
        config: which base, and how it attends.
        storage: dtype that the weights are kept in, but for those that are quantised.
        device: where it will run (decides which attention kernels are at hand); the weights stay on the CPU.

    Raises:
        ConfigError: the base is missing, damaged, or not a causal language model.
    """
    attend = attention.implementation(config, device, build_empty(config))
    device_map = None if quantization is None else {"": torch.device("cpu")}
    if quantization is not None and quantization.load_in_8bit:
        device_map = {"": device}  # the scales of 8-bit weights lie beside the tensor: they do not move with it
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            config.base,
            dtype=storage,
            attn_implementation=attend,
            output_loading_info=True,
            quantization_config=quantization,
            device_map=device_map,
        )
    except Exception as error:
        raise ConfigError(f"model.base: {config.base!r}: the model cannot be loaded: {_first_line(error)}") from None
    # transformers fills what is not in the files with random numbers, and says so in a log line only
    for key, what in (("missing_keys", "are not in its files"), ("mismatched_keys", "have another shape in its files")):
        names = sorted(str(name) for name in info[key])
        if names:
            raise ConfigError(
                f"model.base: {config.base!r}: {len(names)} tensors of the model {what} ({', '.join(names[:3])}…); "
                "restore the files, or save the model there again"
            )
    if quantization is not None:
        keep_layout(model)
    return _prepared(cast(PreTrainedModel, model), config)


def build_model(
    config: ModelConfig,
    storage: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
    find: Callable[[PreTrainedModel, Path], tuple[Slot, ...] | None] = weights.slots,
) -> tuple[PreTrainedModel, Weights | None]:
    """The base without memory, and what to fill it with once it is sharded; or, where its files cannot be read tensor
    by tensor (`find` gives None: see `weights.slots`), the base as `load_model` loads it, and None. Other arguments and
    errors as there.

    What no file holds (rotary tables) is there, on the CPU.
    """
    from accelerate import init_empty_weights

    attend = attention.implementation(config, device, build_empty(config))
    folder = base_directory(config.base)
    architecture = AutoConfig.from_pretrained(folder)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(architecture, dtype=storage, attn_implementation=attend)
    model.tie_weights()  # which the line above undoes
    _fill_tables(model)
    odd = bool(getattr(model, "_keep_in_fp32_modules_strict", None)) or hasattr(architecture, "quantization_config")
    if quantization is not None and not odd:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model, device_map={"": "cpu"})
        quantizer.postprocess_model(model)
    slots = None if odd else find(model, folder)
    if slots is None:
        return load_model(config, storage, device, quantization), None
    content = Weights(slots, storage, quantization)
    content.pack()
    if quantization is not None:
        keep_layout(model)
    return _prepared(cast(PreTrainedModel, model), config), content


def _fill_tables(model: PreTrainedModel) -> None:
    """Compute what no file holds once more, as transformers does when it loads: within `from_config` some tables (of
    GPT-J's rotary embeddings) are computed in the weights' dtype, and in bf16 they are then far off."""
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()  # parameters have no memory: nothing is drawn for them


def build_empty(config: ModelConfig) -> PreTrainedModel:
    """The base's architecture on the meta device: names and shapes, no memory, no weights read.

    Raises ConfigError as `load_model` does (but for the weights, which it does not read).
    """
    try:
        architecture = AutoConfig.from_pretrained(config.base)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(architecture)
    except Exception as error:
        raise ConfigError(f"model.base: {config.base!r}: its config cannot be used: {_first_line(error)}") from None
    problem = attention.problem(config, model)
    if problem is not None:
        raise ConfigError(f"model.attention: {problem}")
    return _prepared(model, config)


def base_directory(base: str) -> Path:
    """The local directory of a base: itself, or a hub id's files. Raises ConfigError when there are none."""
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=list(MODEL_FILES)))
    except Exception as error:  # the hub client raises many kinds: no such id, no network, no permission
        raise ConfigError(
            f"model.base: {base!r} is no directory, nor to be had from the hub: {_first_line(error)}"
        ) from None


def weights_problem(base: str) -> str | None:
    """What is wrong with a local base's safetensors files (headers only are read), or None."""
    folder = Path(base)
    if not folder.is_dir():
        return None  # a hub id: its files are checked when they are fetched
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return f"{folder}: no *.safetensors file"
    problems = (_index_problem(folder), *map(_header_problem, files))
    return next((problem for problem in problems if problem is not None), None)


def _index_problem(folder: Path) -> str | None:
    """What is wrong with the list of a sharded base's files, of which all must be there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file() or (folder / "model.safetensors").is_file():  # which is read then
        return None
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{index}: not an index of safetensors files; download it again, or save the model there again"
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        return f"{folder / missing[0]}{more}: missing, and {index.name} names it; download it again"
    return None


def _header_problem(file: Path) -> str | None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        try:
            tensors = json.loads(stream.read(header) if header < size else b"")
            end = max((entry["data_offsets"][1] for key, entry in tensors.items() if key != "__metadata__"), default=0)
            expected = 8 + header + int(end)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return f"{file}: damaged safetensors header; download it again, or save the model there again"
    if expected != size:
        return f"{file}: {size} bytes, {expected} expected (half-written?)"
    return None


def base_identity(base: str) -> dict[str, str]:
    """What tells one base's weights from another's: a digest of samples of each file (its first MiB and 64 blocks all
    over it), so that it takes no longer for a large one; for a hub id its commit."""
    folder = Path(base)
    if not folder.is_dir():
        return {base: str(getattr(AutoConfig.from_pretrained(base), "_commit_hash", None))}
    return {
        file.name: _sampled_digest(file) for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    }


def _sampled_digest(file: Path, blocks: int = 64, block: int = 2**16) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        digest.update(stream.read(2**20))
        for number in range(blocks):
            stream.seek(size * number // blocks)
            digest.update(stream.read(block))
    return digest.hexdigest()


def quiet_libraries() -> None:
    """Keep the progress bars and advice of the libraries below off the user's terminal; their errors still come."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a warning a layer and step, of what int8 always does
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")


def _prepared(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    model.config.use_cache = False  # with a cache, packed documents would see one another
    set_recompute(model, config.gradient_checkpointing)
    model.train()
    return model


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
