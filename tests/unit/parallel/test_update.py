"""The state that resume needs, on disk."""

import copy
import math
from pathlib import Path

import pytest
import torch
from support.tiny import make_model
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from distributed_ft.config.schema import OptimConfig
from distributed_ft.parallel.update import clip_and_step, load_state, save_state
from distributed_ft.train.optim import make_optimizer


def test_a_state_that_torch_collected_is_read_as_our_own_is(tmp_path: Path) -> None:
    """Checkpoints of before hold what torch's `get_state_dict` gives."""
    model = make_model("qwen2", tie_word_embeddings=True)
    model.model.layers[0].requires_grad_(False)
    optimizer = make_optimizer(model, OptimConfig(lr=1e-2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    clip_and_step(optimizer, None, 1e-2, usable=True)
    options = StateDictOptions(ignore_frozen_params=True, strict=False)
    parameters, moments = get_state_dict(model, optimizer, options=options)
    state_dict_saver.save({"parameters": parameters, "optimizer": moments}, checkpoint_id=tmp_path / "before")
    save_state(model, optimizer, tmp_path / "now")
    for directory in ("before", "now"):
        fresh = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.zero_()
        fresh.model.layers[0].load_state_dict(model.model.layers[0].state_dict())
        made = make_optimizer(fresh, OptimConfig(lr=1e-2))
        load_state(fresh, made, tmp_path / directory)
        for name, parameter in model.named_parameters():
            assert torch.equal(fresh.get_parameter(name), parameter), name
            if parameter.requires_grad:
                for key, value in optimizer.state[parameter].items():
                    assert torch.equal(made.state[fresh.get_parameter(name)][key], value)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_save_before_the_first_update_leaves_no_trace(tmp_path: Path, name: str) -> None:
    """When every step until then was skipped: neither in the run that goes on nor in the one that is resumed."""
    optim = OptimConfig.model_validate({"name": name, "lr": 1e-2, "weight_decay": 0.1})
    trained = []
    for how in ("not saved", "saved", "resumed"):
        model = make_model("qwen2")
        optimizer = make_optimizer(model, optim)
        for step in range(3):
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter) if step else torch.full_like(parameter, math.nan)
            assert clip_and_step(optimizer, None, 1e-2, usable=True).skipped == (step == 0)
            if step == 0 and how == "saved":
                save_state(model, optimizer, tmp_path)
            if step == 0 and how == "resumed":
                load_state(model, optimizer, tmp_path)
        trained.append(dict(model.named_parameters()))
    for others in trained[1:]:
        for key, parameter in trained[0].items():
            assert torch.equal(others[key], parameter), key
