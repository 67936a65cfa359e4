"""The grid of a sweep: names that can be read, that stay, and that never collide."""

import pytest

from distributed_ft.errors import ConfigError
from launcher.sweep import combinations, split_values


def test_every_combination_has_a_readable_name_and_its_overrides() -> None:
    found = combinations("demo", ["method.rank=4,16", "seed=1", "optim.lr=1e-4,2e-4"])
    assert [c.name for c in found] == [
        "demo-rank4-lr1e-4",
        "demo-rank4-lr2e-4",
        "demo-rank16-lr1e-4",
        "demo-rank16-lr2e-4",
    ]
    assert found[1].overrides == ("method.rank=4", "seed=1", "optim.lr=2e-4", "name=demo-rank4-lr2e-4")


def test_a_name_stays_when_the_grid_grows() -> None:
    few = {c.name for c in combinations("demo", ["method.rank=4,16"])}
    assert few < {c.name for c in combinations("demo", ["method.rank=4,16,64"])}


def test_values_with_commas_are_yaml_and_their_names_differ() -> None:
    assert split_values("[a,b],[c],{x: 1, y: 2},'d,e'") == ["[a,b]", "[c]", "{x: 1, y: 2}", "'d,e'"]
    found = combinations("demo", ["method.target_modules=[q_proj,v_proj],[q_proj v_proj]"])
    names = [c.name for c in found]
    assert len(set(names)) == 2
    assert all(name.startswith("demo-target_modulesq_proj-v_proj-") for name in names)


def test_keys_that_end_alike_are_written_out() -> None:
    (first, *_) = combinations("demo", ["data.train[0].weight=1,2", "data.train[1].weight=1,2"])
    assert first.name == "demo-data.train.0.weight1-data.train.1.weight1"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["optim.lr=1e-4,0.0001"], "optim.lr: 1e-4 and 0.0001 are the same value"),
        (["optim.lr=1e-4, 2e-4,"], "a value is missing"),
        (["optim.lr=1e-4"], "nothing to sweep"),
        (["name=a,b"], "name: every combination has its own run"),
        (["rank"], "a setting is key=value"),
    ],
)
def test_a_grid_that_is_none_is_refused(settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        combinations("demo", settings)
