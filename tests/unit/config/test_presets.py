"""Presets fill what the user left out, and only that."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_ft.config.load import load
from distributed_ft.config.presets import PRESETS, preset_values
from distributed_ft.config.schema import FullMethod, LoraMethod, OptimConfig

Write = Callable[[str], Path]

# The course's values: rank, alpha, peak rate, epochs.
PUBLISHED = {
    "style": (8, 16, 1e-4, 2),
    "support": (8, 16, 2e-4, 2),
    "domain": (32, 64, 1e-4, 2),
    "code": (64, 128, 1e-4, 3),
}


@pytest.mark.parametrize(("name", "values"), PUBLISHED.items())
def test_a_preset_gives_the_published_values(run_yaml: Write, name: str, values: tuple[float, ...]) -> None:
    config = load(run_yaml(f"MINIMAL\npreset: {name}\n")).config
    assert isinstance(config.method, LoraMethod)
    assert (config.method.rank, config.method.alpha, config.optim.lr, config.optim.epochs) == values


def test_without_a_preset_the_defaults_are_the_published_ones(run_yaml: Write) -> None:
    loaded = load(run_yaml("MINIMAL\n"))
    assert loaded.preset_values == {}
    assert (LoraMethod().rank, LoraMethod().alpha, OptimConfig().lr, OptimConfig().epochs) == (16, 32, 1e-4, 2)


def test_the_users_own_keys_win_and_the_presets_are_still_known(run_yaml: Write) -> None:
    loaded = load(run_yaml("MINIMAL\npreset: code\nmethod: {rank: 4}\n"), ["optim.epochs=1"])
    method = loaded.config.method
    assert isinstance(method, LoraMethod)
    assert (method.rank, method.alpha, loaded.config.optim.epochs) == (4, 128, 1)
    assert loaded.preset_values == {"method.rank": 64, "method.alpha": 128, "optim.lr": 1e-4, "optim.epochs": 3}


def test_a_preset_gives_no_rank_to_a_full_method(run_yaml: Write) -> None:
    loaded = load(run_yaml("MINIMAL\npreset: code\nmethod: {type: full}\n"))
    assert loaded.config.method == FullMethod(type="full")
    assert loaded.preset_values == {"optim.lr": 1e-4, "optim.epochs": 3}


def test_a_preset_can_be_an_override(run_yaml: Write) -> None:
    assert load(run_yaml("MINIMAL\n"), ["preset=support"]).config.optim.lr == 2e-4


def test_every_preset_of_the_schema_has_values() -> None:
    assert set(PRESETS) == set(PUBLISHED)
    assert preset_values({"preset": ["a"]}) == preset_values({"preset": "unknown"}) == {}
