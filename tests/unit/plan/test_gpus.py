"""GPUs and prices are asked for by name; what is not known is said with what is."""

from pathlib import Path

import pytest

from distributed_ft.errors import ConfigError
from distributed_ft.plan import gpus

KINDS = ("t4", "l4", "a10g", "a100-40", "a100-80", "h100", "h200", "b200")


def test_the_known_gpus_have_sizes_rates_and_prices() -> None:
    known, prices_of = gpus.table()
    assert tuple(known) == KINDS
    assert prices_of == "2025-11-01"
    assert known["h200"].memory > known["h100"].memory > known["a100-40"].memory > known["t4"].memory


def test_nodes_of_several_gpus_are_so_many_ranks() -> None:
    cluster = gpus.cluster("H100:8", 4, gpus.table()[0])
    assert (cluster.kind, cluster.per_node, cluster.nodes, cluster.size) == ("h100", 8, 4, 32)
    assert gpus.cluster("t4", 1, gpus.table()[0]).size == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h101:8", "did you mean h100"),
        ("abacus", "known are t4, l4, a10g"),
        ("h100:", "the number of GPUs of a node goes after the colon, for example h100:8"),
        ("h100:none", "the number of GPUs"),
        ("h100:0", "the number of GPUs"),
    ],
)
def test_a_gpu_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        gpus.cluster(text, 1, gpus.table()[0])


def test_prices_of_ones_own_take_the_place_of_the_shipped_ones(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("h100: 1.5\n")
    known, prices_of = gpus.table(file)
    assert known["h100"].price == 1.5
    assert known["h200"].price == gpus.table()[0]["h200"].price
    assert prices_of == f"{file}; of others {gpus.table()[1]}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h100: cheap\n", "h100: not a price"),
        ("h100: -1\n", "-1.0 is no price"),
        ("h110: 1\n", "'h110': did you mean h100"),
        ("- 1\n", "prices.yaml"),
    ],
)
def test_a_file_of_prices_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        gpus.table(file)


def test_a_missing_file_of_prices_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        gpus.table(tmp_path / "none.yaml")
