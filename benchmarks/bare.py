"""Worker: the loop one would write by hand for this model and these batches, and nothing else. One process.

Batches are tensors before the first step. Like the trainer it asks for logits at supervised positions only and uses
the same attention, so that what is compared is the loop. Arguments: CASE OUT.
"""

import sys
import time
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.cases import Case
from benchmarks.harness import memory_bytes, report
from distributed_ft.config.schema import LoraMethod, RunConfig
from distributed_ft.data.batches import MicroBatch, micro_batches
from distributed_ft.model.attention import PACKED_SDPA


def make_model(config: RunConfig) -> nn.Module:
    """The base in fp32, with the run's adapter if it has one."""
    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_pretrained(
        config.model.base, dtype=torch.float32, attn_implementation=PACKED_SDPA
    )
    method = config.method
    if isinstance(method, LoraMethod):
        assert isinstance(method.target_modules, str)
        model = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=method.rank,
                lora_alpha=cast(int, method.alpha),
                lora_dropout=method.dropout,
                target_modules=method.target_modules,
            ),
        )
    return cast(nn.Module, model.train())


def loss_sum(model: nn.Module, micro: MicroBatch) -> Tensor:
    """Summed cross entropy of the supervised tokens."""
    logits = model(
        input_ids=micro.input_ids,
        position_ids=micro.position_ids,
        use_cache=False,
        cu_seq_lens_q=micro.cu_seqlens,
        cu_seq_lens_k=micro.cu_seqlens,
        max_length_q=micro.max_seqlen,
        max_length_k=micro.max_seqlen,
        logits_to_keep=micro.supervised,
    ).logits[0]
    return F.cross_entropy(logits, micro.targets, reduction="sum")


def main() -> None:
    case, out = Case(Path(sys.argv[1])), Path(sys.argv[2])
    config, order = case.config, case.order
    optim = config.optim
    batches = [micro_batches(order, step, 0, 1, optim.micro_batch_size) for step in range(order.total_steps)]
    model = make_model(config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )
    assert optim.max_grad_norm is not None
    losses, norms, ends, cpu_ends = [], [], [], []
    resident = memory_bytes("VmRSS")
    for batch in batches:
        tokens = sum(micro.num_supervised for micro in batch)
        total = torch.zeros(())
        for micro in batch:
            loss = loss_sum(model, micro) / tokens
            loss.backward()
            total += loss.detach()
        norms.append(nn.utils.clip_grad_norm_(trained, optim.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        ends.append(time.perf_counter())
        cpu_ends.append(time.process_time())
    report(
        out,
        {
            "ends": ends,
            "cpu_ends": cpu_ends,
            "losses": [loss.item() for loss in losses],
            "grad_norms": [norm.item() for norm in norms],
            "resident_before": resident,
            "resident_peak": memory_bytes("VmHWM"),
        },
    )


if __name__ == "__main__":
    main()
