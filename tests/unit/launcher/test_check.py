"""What `dft check` says of a run."""

from pathlib import Path

import pytest
from support.tiny import make_config

from distributed_ft.config.schema import OptimConfig
from launcher.check import _file_lines, _optimizer


@pytest.mark.parametrize(
    ("optim", "says"),
    [
        (OptimConfig(name="sgd", momentum=0.8), "sgd with momentum 0.8, "),
        (OptimConfig(name="adamw"), "adamw, "),
        (OptimConfig(name="adamw_8bit"), "adamw_8bit, "),
    ],
)
def test_momentum_is_said_of_the_optimizer_that_has_one(optim: OptimConfig, says: str) -> None:
    assert _optimizer(optim).startswith(says)


def test_data_is_told_by_what_it_is_a_mapped_table_a_folder_of_shards_or_a_data_set_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("question,answer\nq,a\n")
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl"):
        (folder / name).write_text('{"text": "one"}\n{"text": "two"}\n')
    mapped = {"path": str(tmp_path / "table.csv"), "columns": {"prompt": "question", "completion": "answer"}}
    sources = [mapped, {"path": str(folder), "fraction": 0.2}, {"path": "someone/somewhere", "split": "sft"}]
    config = make_config(tmp_path, tmp_path, tmp_path, data={"train": sources})
    assert list(_file_lines(config))[:5] == [
        ("train", f"{tmp_path}/table.csv, 20 bytes, 1 row"),
        (
            "",
            "CSV, 'prompt', 'completion' rows, prompt from 'question', completion from 'answer', "
            "columns 'question', 'answer'",
        ),
        ("", f"{folder}, 2 files, 64 bytes, 4 rows, 0.2 of an epoch"),
        ("", "JSON Lines in 2 files, plain text ('text'), columns 'text'"),
        ("", "someone/somewhere on the hub, split sft"),
    ]
