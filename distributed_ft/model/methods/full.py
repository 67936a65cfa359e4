"""Full fine-tuning: every weight is trained and saved."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from distributed_ft.model.load import load_tokenizer


def apply(model: PreTrainedModel) -> nn.Module:
    """All parameters trainable."""
    return cast(nn.Module, model.requires_grad_(True))


def saved_tensors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Every parameter and persistent buffer; a tied weight once, under its first name, as transformers does."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, name


def write_description(model: nn.Module, base: str, dtype: torch.dtype, directory: Path) -> None:
    """config.json, the base's own generation_config.json and the tokenizer's files."""
    lm = cast(PreTrainedModel, model)
    config = type(lm.config).from_pretrained(base)  # as it was before training settings were put in
    config.architectures = [type(lm).__name__]
    config.dtype = dtype  # of the file: transformers loads it in the dtype that is said here
    config.save_pretrained(directory)
    # As it is: transformers reads some that it may refuse to write (a temperature beside do_sample: false).
    generation = cached_file(base, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    if generation is not None:
        shutil.copyfile(generation, directory / GENERATION_CONFIG_NAME)
    load_tokenizer(base).save_pretrained(directory)
