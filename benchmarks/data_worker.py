"""Prepares one file in a fresh process, ours or TRL's way, and reports the cost and what came of it.

    python -m benchmarks.data_worker {ours,trl} ROWS.jsonl SEQ_LEN CORES OUT
    python -m benchmarks.data_worker same ROWS.jsonl SEQ_LEN 1 OUT       raises AssertionError at the first other row

The process is pinned to CORES cores. Ours: read, parse, tokenise, mask, check and store (`prepare`), then the packs of
the first epoch. TRL's: `SFTTrainer._prepare_dataset`, which its constructor calls, of a data set that is loaded already
(loading is timed apart), with as many processes as cores and no progress bars. Imports and tokenizer are not counted;
caches are cold.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import DEMO
from benchmarks.harness import Measurement, report, timed
from distributed_ft.config.schema import RunConfig
from distributed_ft.data.order import Order
from distributed_ft.data.prepare import prepare
from distributed_ft.data.store import TokenStore
from distributed_ft.model.load import load_tokenizer

BASE = str(DEMO.parent / "base")
Document = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # ids, labels (-100: not learned)


def config_of(rows: Path, seq_len: int) -> RunConfig:
    """A run on the embedded base."""
    tree = {"name": "data", "model": {"base": BASE}, "data": {"train": str(rows), "seq_len": seq_len}}
    return RunConfig.model_validate_json(json.dumps(tree))


def measure_ours(rows: Path, seq_len: int, folder: Path) -> Measurement:
    config, tokenizer = config_of(rows, seq_len), load_tokenizer(BASE)

    def work() -> tuple[TokenStore, int]:
        prepared = prepare(config, tokenizer, folder / "cache")
        return prepared.train[0], Order.of(config, prepared).num_packs(0)

    (store, num_packs), spent = timed(work)
    return {"prepare": spent, "packs": num_packs, **_told(our_documents(store))}


def our_documents(store: TokenStore) -> list[Document]:
    """In the order of the file."""
    found = []
    for index in range(len(store)):
        ids, supervised = store.example(index)
        found.append((ids.astype(np.int64), np.where(supervised, ids, -100).astype(np.int64)))
    return found


def measure_trl(rows: Path, seq_len: int, folder: Path, num_proc: int) -> Measurement:
    dataset, read = timed(lambda: _loaded(rows, folder))
    trainer = _trainer(dataset, seq_len, folder, num_proc)
    packed, spent = timed(lambda: _prepared(trainer, dataset, packing=True))
    return {"read": read, "prepare": spent, "packs": len(packed), **_told(_documents_of(packed))}


def assert_same(rows: Path, seq_len: int, folder: Path) -> Measurement:
    """Raises AssertionError unless every row has the same ids and labels in both."""
    config, dataset = config_of(rows, seq_len), _loaded(rows, folder)
    theirs = _documents_of(_prepared(_trainer(dataset, None, folder, 1), dataset, packing=False))
    ours = our_documents(prepare(config, load_tokenizer(BASE), folder / "cache").train[0])
    assert len(ours) == len(theirs), f"{len(ours)} rows against {len(theirs)}"
    for line, (mine, other) in enumerate(zip(ours, theirs, strict=True), 1):
        for what, left, right in zip(("ids", "labels"), mine, other, strict=True):
            assert np.array_equal(left, right), f"{rows}:{line}: {what}: {left.tolist()} against {right.tolist()}"
    return _told(ours)


def _loaded(rows: Path, folder: Path) -> Any:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    return load_dataset("json", data_files=str(rows), split="train", cache_dir=str(folder / "datasets"))


def _trainer(dataset: Any, seq_len: int | None, folder: Path, num_proc: int) -> Any:
    """Made of eight rows, so that preparing the others can be timed alone."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    logging.set_verbosity_error()
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=seq_len,
        packing=seq_len is not None,
        packing_strategy="bfd",
        assistant_only_loss=True,
        dataset_num_proc=num_proc if num_proc > 1 else None,  # 1 would start a process for nothing
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(BASE)
    few = dataset.select(range(8))
    return SFTTrainer(model=model, args=arguments, train_dataset=few, processing_class=load_tokenizer(BASE))


def _prepared(trainer: Any, dataset: Any, packing: bool) -> Any:
    return trainer._prepare_dataset(dataset, trainer.processing_class, trainer.args, packing, None, "train")


def _documents_of(dataset: Any) -> list[Document]:
    """Rows of TRL's, or the documents in its packs."""
    found: list[Document] = []
    for batch in dataset.with_format("arrow").iter(1000):
        columns = [batch.column(name).combine_chunks() for name in ("input_ids", "labels")]
        ids, labels = (column.flatten().to_numpy().astype(np.int64) for column in columns)
        lengths = np.diff(columns[0].offsets.to_numpy())
        if "seq_lengths" in batch.column_names:
            lengths = batch.column("seq_lengths").combine_chunks().flatten().to_numpy()
        cuts = np.cumsum(lengths)[:-1]
        found += zip(np.split(ids, cuts), np.split(labels, cuts), strict=True)
    return found


def _told(documents: list[Document]) -> Measurement:
    """The digest does not depend on the order."""
    hashes = sorted(hashlib.sha256(ids.tobytes() + labels.tobytes()).digest() for ids, labels in documents)
    return {
        "documents": len(documents),
        "tokens": sum(len(ids) for ids, _ in documents),
        "supervised": int(sum((labels != -100).sum() for _, labels in documents)),
        "digest": hashlib.sha256(b"".join(hashes)).hexdigest()[:16],
    }


def main() -> None:
    arm, rows, seq_len, cores, out = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):  # or TRL would wait for a world of one
        os.environ.pop(name, None)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    folder = Path(out)
    match arm:
        case "ours":
            found = measure_ours(rows, seq_len, folder)
        case "trl":
            found = measure_trl(rows, seq_len, folder, cores)
        case "same":
            found = assert_same(rows, seq_len, folder)
        case _:
            raise SystemExit(f"no such arm: {arm}")
    report(folder, found)


if __name__ == "__main__":
    main()
