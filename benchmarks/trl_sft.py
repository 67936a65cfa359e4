"""Worker: TRL's SFTTrainer on the same tokens, one of its arms. Arguments: CASE ARM STEPS LOG(0|1) OUT.

CASE/trl holds what the driver gives to every arm: `adapter/` (the initial adapter), `packs.json` (the packs of all
steps in our order, documents with ids and labels). Arms:

packed        rows are the packs, `padding_free` (what `packing="bfd"` turns on): restarted position ids, no attention
              mask, from which transformers derives a block mask: documents are isolated.
padded        the very same micro-batches, each document a padded row of its own.
grouped       documents as rows, `train_sampling_strategy="group_by_length"`, as many a batch as the packs have on
              average: the least padding, in TRL's own order.

All of them: no gradient checkpointing, fp32, SDPA, fused AdamW, DDP over gloo without looking for unused parameters,
nothing logged (LOG 0), nothing reported, no checkpoint, no progress bar.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from datasets import Dataset
from peft import PeftModel
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging as hf_logging
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from benchmarks.cases import Case
from benchmarks.harness import memory_bytes, report
from distributed_ft.config.schema import RunConfig
from distributed_ft.parallel.world import leave

Arm = Literal["packed", "padded", "grouped"]
Row = dict[str, Any]
Collate = Callable[[list[Row]], dict[str, Any]]


class Stopwatch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Notes when each step is done, and what was logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.cpu_ends: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())
        self.cpu_ends.append(time.process_time())

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.logged.append(logs)


class Counting:
    """A collator that remembers what it collated: documents, tokens and targets of each batch."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate
        self.documents: list[list[int]] = []
        self.tokens: list[int] = []
        self.supervised: list[int] = []

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        batch = self.collate([{key: row[key] for key in row if key != "documents"} for row in rows])
        self.documents.append([document for row in rows for document in row["documents"]])
        self.tokens.append(sum(len(row["input_ids"]) for row in rows))
        self.supervised.append(sum(label != -100 for row in rows for label in row["labels"]))
        return batch


def dataset(packs: list[list[Row]], arm: Arm) -> Dataset:
    """Rows for an arm: packs (with `seq_lengths`, as TRL's own packing leaves them), or documents."""
    if arm == "grouped":
        documents = [document for pack in packs for document in pack]
        rows = [{**d, "documents": [i], "length": len(d["input_ids"])} for i, d in enumerate(documents)]
        return Dataset.from_list(rows)
    first, rows = 0, []
    for pack in packs:
        row: Row = {key: [value for document in pack for value in document[key]] for key in ("input_ids", "labels")}
        row["seq_lengths"] = [len(document["input_ids"]) for document in pack]
        row["documents"] = list(range(first, first + len(pack)))
        first += len(pack)
        rows.append(row)
    return Dataset.from_list(rows)


def cut_into_documents(rows: list[Row]) -> list[Row]:
    """Packs as the documents they are made of."""
    documents = []
    for row in rows:
        begin = 0
        for length in row["seq_lengths"]:
            cut = slice(begin, begin + length)
            documents.append({"input_ids": row["input_ids"][cut], "labels": row["labels"][cut]})
            begin += length
    return documents


def arguments(config: RunConfig, arm: Arm, rows_a_batch: int, steps: int, log: bool, out: Path) -> SFTConfig:
    """TRL's settings: the run's hyper-parameters, and the fastest of what is correct on a CPU."""
    optim = config.optim
    return SFTConfig(
        output_dir=str(out / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,  # the rows are cut already
        packing=False,  # and packed
        padding_free=arm == "packed",
        train_sampling_strategy="group_by_length" if arm == "grouped" else "sequential",
        per_device_train_batch_size=rows_a_batch,
        gradient_accumulation_steps=1,
        max_steps=steps,
        optim="adamw_torch_fused",
        learning_rate=optim.lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        max_grad_norm=optim.max_grad_norm,
        seed=config.seed,
        average_tokens_across_devices=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        dataloader_num_workers=0,  # both cores compute; collating a batch is a millisecond
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        logging_strategy="steps" if log else "no",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main() -> None:
    case, arm, steps, log, out = Case(Path(sys.argv[1])), _arm(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    hf_logging.set_verbosity_error()
    config = case.config
    packs = json.loads((case.directory / "trl" / "packs.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(config.model.base)
    base = AutoModelForCausalLM.from_pretrained(config.model.base, dtype=torch.float32, attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, str(case.directory / "trl" / "adapter"), is_trainable=True)
    initial = adapter_digest(model)
    rows_a_batch = config.optim.micro_batch_size
    if arm == "grouped":
        rows_a_batch = round(rows_a_batch * sum(map(len, packs)) / len(packs))
    stopwatch = Stopwatch()
    trainer = SFTTrainer(
        model=model,
        args=arguments(config, arm, rows_a_batch, steps, log == "1", Path(out)),
        train_dataset=dataset(packs, arm),
        processing_class=tokenizer,
        callbacks=[stopwatch],
    )
    own = trainer.data_collator
    assert isinstance(own, DataCollatorForLanguageModeling)
    counting = Counting((lambda rows: own(cut_into_documents(rows))) if arm == "padded" else own)
    trainer.data_collator = counting
    resident = memory_bytes("VmRSS")
    trainer.train()
    assert_trained_together(trainer, model, initial)
    report(
        Path(out),
        {
            "ends": stopwatch.ends,
            "cpu_ends": stopwatch.cpu_ends,
            "losses": [logs["loss"] for logs in stopwatch.logged],
            "grad_norms": [logs["grad_norm"] for logs in stopwatch.logged],
            "documents": counting.documents[:steps],
            "tokens": counting.tokens[:steps],
            "supervised": counting.supervised[:steps],
            "initial_adapter": initial,
            "resident_before": resident,
            "resident_peak": memory_bytes("VmHWM"),
        },
    )


def assert_trained_together(trainer: SFTTrainer, model: PeftModel, initial: str) -> None:
    """The world is what was asked for, it is DDP, ranks saw different batches, and their adapters moved as one."""
    world = int(os.environ["WORLD_SIZE"])
    assert dist.is_initialized()
    assert (dist.get_backend(), dist.get_world_size()) == ("gloo", world)
    assert trainer.accelerator.num_processes == world
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    mine = (adapter_digest(model), tuple(trainer.data_collator.documents[0]))
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, mine)
    assert len({digest for digest, _ in everyone}) == 1, "the ranks' adapters differ: gradients were not averaged"
    assert len({batch for _, batch in everyone}) == world, "the ranks trained on the same batch"
    assert mine[0] != initial, "the adapter did not move"


def adapter_digest(model: PeftModel) -> str:
    """sha256 over the trained parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def _arm(name: str) -> Arm:
    match name:
        case "packed" | "padded" | "grouped":
            return name
        case _:
            raise SystemExit(f"no such arm: {name}")


if __name__ == "__main__":
    main()
    leave(0)  # taking gloo down can abort the process: see there
