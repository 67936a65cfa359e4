"""The README says what is so."""

import re
from pathlib import Path

from distributed_ft.config import compat
from distributed_ft.config.load import load

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_support_matrix_is_the_one_of_the_code() -> None:
    assert compat.markdown().strip() in README


def test_the_first_command_stands_within_ten_lines() -> None:
    assert "make demo" in "\n".join(README.splitlines()[:10])


def test_the_run_yaml_of_the_readme_is_valid(tmp_path: Path) -> None:
    text = re.search(r"```yaml\n(.*?)```", README, flags=re.S)
    assert text is not None
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.jsonl", "general.jsonl", "validation.jsonl", "test.jsonl"):
        (data / name).write_text(
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        )
    (data / "ticket.schema.json").write_text("{}")
    (tmp_path / "run.yaml").write_text(text.group(1))
    config = load(tmp_path / "run.yaml").config
    assert config.optim.lr == 1e-4
    assert len(text.group(1).splitlines()) <= 16


def test_every_path_of_the_tree_exists() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    prefix = ""
    for line in tree.strip().splitlines():
        name = line.split()[0]
        prefix = "" if not line.startswith("  ") else "distributed_ft/"
        assert (ROOT / prefix / name.strip("/")).exists(), name


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"@[A-Z]+@", README)
