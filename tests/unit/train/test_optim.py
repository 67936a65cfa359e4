"""The update: AdamW as torch computes it unfused, clipping, and the steps that are skipped."""

import copy
import math

import pytest
import torch
from support.tiny import make_model
from torch import Tensor, nn

from distributed_ft.config.schema import OptimConfig
from distributed_ft.parallel.update import clip_and_step
from distributed_ft.train.optim import make_optimizer

OPTIM = OptimConfig(lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)


def set_gradients(module: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_vectors_are_not_decayed_matrices_are_and_frozen_parameters_are_not_held() -> None:
    model = make_model("qwen2")  # has biases
    model.model.embed_tokens.requires_grad_(False)
    groups = make_optimizer(model, OPTIM).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in decay
        else:
            is_vector = "norm" in name or name.endswith(".bias")
            assert decay[id(parameter)] == (0.0 if is_vector else 0.1), name


def test_the_trajectory_equals_adamw_written_out() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in fp64, with a rate that changes every step and clipping at work."""
    ours = nn.Linear(5, 3).double()
    beta1, beta2 = OPTIM.betas
    weights = {name: p.detach().clone() for name, p in ours.named_parameters()}
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    optimizer = make_optimizer(ours, OPTIM)
    for step in range(1, 8):
        set_gradients(ours, step)
        gradients = {name: p.grad.clone() for name, p in ours.named_parameters()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        lr = 1e-2 / step
        info = clip_and_step(optimizer, 0.5, lr, usable=True)
        assert not info.skipped
        assert info.grad_norm == pytest.approx(norm, rel=1e-12)
        for name, weight in weights.items():
            gradient = gradients[name] * min(1.0, 0.5 / (norm + 1e-6))
            first[name] = beta1 * first[name] + (1 - beta1) * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * gradient**2
            weight *= 1 - lr * (0.1 if weight.ndim == 2 else 0.0)
            denominator = (second[name] / (1 - beta2**step)).sqrt() + OPTIM.eps
            weight -= lr * (first[name] / (1 - beta1**step)) / denominator
            torch.testing.assert_close(dict(ours.named_parameters())[name].detach(), weight, rtol=1e-9, atol=1e-12)
        assert all(p.grad is None for p in ours.parameters())


def test_sgd_is_that_of_nesterov_written_out() -> None:
    """Sutskever et al. 2013, as torch writes it: v = m v + g; w -= lr (g + m v)."""
    ours = nn.Linear(5, 3).double()
    weights = {name: p.detach().clone() for name, p in ours.named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    optimizer = make_optimizer(ours, OptimConfig(name="sgd", lr=1.0, momentum=0.8, weight_decay=0.1))
    for step in range(1, 6):
        set_gradients(ours, step)
        for name, p in ours.named_parameters():
            gradient = p.grad + (0.1 * weights[name] if weights[name].ndim == 2 else 0.0)
            velocity[name] = 0.8 * velocity[name] + gradient
            weights[name] -= 0.05 * (gradient + 0.8 * velocity[name])
        clip_and_step(optimizer, None, 0.05, usable=True)
        for name, p in ours.named_parameters():
            torch.testing.assert_close(p.detach(), weights[name], rtol=1e-10, atol=1e-12)


def test_without_a_limit_nothing_is_clipped() -> None:
    one, other = nn.Linear(5, 3), nn.Linear(5, 3)
    other.load_state_dict(one.state_dict())
    for module, limit in ((one, None), (other, 1e9)):
        set_gradients(module, 1, scale=100.0)
        clip_and_step(make_optimizer(module, OPTIM), limit, 1e-2, usable=True)
    assert torch.equal(one.weight, other.weight)


def snapshot(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [v for state in optimizer.state.values() for v in state.values()]
    return copy.deepcopy([p.detach() for p in module.parameters()] + moments)


@pytest.mark.parametrize(("bad", "usable"), [(float("nan"), True), (float("inf"), True), (1.0, False)])
def test_a_step_that_cannot_be_used_changes_no_weight_no_moment_and_leaves_no_gradient(
    bad: float, usable: bool
) -> None:
    module = nn.Linear(5, 3)
    optimizer = make_optimizer(module, OPTIM)
    set_gradients(module, 1)
    clip_and_step(optimizer, 0.5, 1e-2, usable=True)
    before = snapshot(module, optimizer)
    set_gradients(module, 2)
    module.weight.grad[1, 2] = bad
    info = clip_and_step(optimizer, 0.5, 1e-2, usable)
    assert info.skipped
    assert math.isfinite(info.grad_norm) == math.isfinite(bad)
    for now, then in zip(snapshot(module, optimizer), before, strict=True):
        assert torch.equal(now, then)
    assert all(p.grad is None for p in module.parameters())
