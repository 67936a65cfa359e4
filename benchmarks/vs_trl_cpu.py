"""Our trainer beside TRL's SFTTrainer on a CPU: same tokens, model, adapter, batches, optimizer; two processes (gloo).

    python -m benchmarks.vs_trl_cpu [--quick] [--repeats 3] [--steps 25] [--bases shipped] [--out FILE]

LoRA of rank 16 on all linear layers, fp32, the demo's data and batches (sequences of 512, 2 a process and step). TRL
gets the same token ids and masks, in the same packs and order, the same initial adapter, and its fastest settings that
are correct here (`trl_sft.py` lists its arms); it trains as plain DDP over gloo, and asserts that it does. Ours runs
as users run it (metrics.jsonl, TensorBoard, …), with DDP and with FSDP2; TRL logs nothing.

Before anything is timed: step-0 losses agree to TOLERANCE, and where batches are the same so do the losses and gradient
norms of PARITY_STEPS steps. Then fresh processes, arm after arm, `repeats` times; the first WARMUP steps of each are
not counted. tokens/s: document tokens (no padding) of the timed steps over their wall time; supervised tokens/s: the
same for tokens with a label. Required: ours with DDP not slower than TRL's best arm.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import harness
from benchmarks.cases import Base, Case, make_case
from benchmarks.harness import Measurement
from distributed_ft.data.batches import micro_batch
from distributed_ft.data.order import Order, Pack
from distributed_ft.parallel.fill import fill
from distributed_ft.parallel.world import World
from distributed_ft.train.run import build

PROCESSES = 2
WARMUP = 5
PARITY_STEPS = 3
TOLERANCE = 1e-4  # relative
OURS = ("ours-ddp", "ours-fsdp")
TRL = ("trl-packed", "trl-padded", "trl-grouped")
SAME_BATCHES = ("ours-fsdp", "trl-packed", "trl-padded")  # as ours-ddp; trl-grouped orders its documents itself
ALONE = World(0, 1, 0, torch.device("cpu"))


def make_cases(folder: Path, base: Base, steps: int) -> dict[str, Case]:
    """A case an arm. TRL's arms share one, which also holds what TRL is given."""
    ddp = make_case(folder, f"{base}-ddp-{steps}", base, "lora", "ddp", PROCESSES, steps)
    fsdp = make_case(folder, f"{base}-fsdp-{steps}", base, "lora", "fsdp", PROCESSES, steps)
    write_inputs(ddp)
    return {"ours-ddp": ddp, "ours-fsdp": fsdp, **dict.fromkeys(TRL, ddp)}


def write_inputs(case: Case) -> None:
    """CASE/trl: the initial adapter, and the packs of all steps with ids and labels (-100: no target)."""
    folder = case.directory / "trl"
    token_loss, _ = build(case.config, ALONE)
    token_loss.model.save_pretrained(folder / "adapter")  # type: ignore[operator]  # PEFT's method
    order = case.order
    packs = []
    for step in range(order.total_steps):
        batch = order.global_batch(step)
        assert len(batch) == case.config.optim.global_batch_size, "a short batch: ask for fewer steps"
        packs += [[_document(order, *document) for document in pack] for pack in batch]
    (folder / "packs.json").write_text(json.dumps(packs))


def _document(order: Order, source: int, row: int) -> dict[str, list[int]]:
    ids, supervised = order.prepared.train[source].example(row)
    labels = [int(t) if s and i else -100 for i, (t, s) in enumerate(zip(ids, supervised, strict=True))]
    return {"input_ids": ids.tolist(), "labels": labels}


def runner(arm: str, case: Case, steps: int, log: bool) -> Callable[[], list[Measurement]]:
    """What measures an arm once, in fresh processes."""
    trainer, _, variant = arm.partition("-")
    if trainer == "ours":
        return partial(harness.run_fresh, "benchmarks.ours", (str(case.directory),), PROCESSES)
    arguments = (str(case.directory), variant, str(steps), str(int(log)))
    return partial(harness.run_fresh, "benchmarks.trl_sft", arguments, PROCESSES)


def assert_parity(folder: Path, base: Base, trl_arms: Sequence[str] = TRL) -> dict[str, Any]:
    """First steps of every arm, untimed. Raises AssertionError when losses or gradient norms differ."""
    cases = make_cases(folder, base, PARITY_STEPS)
    first = {arm: runner(arm, cases[arm], PARITY_STEPS, log=True)() for arm in (*OURS, *trl_arms)}
    ours = first["ours-ddp"][0]
    found: dict[str, Any] = {"ours-ddp": {key: ours[key] for key in ("losses", "grad_norms")}}
    for arm in (arm for arm in first if arm in SAME_BATCHES):
        theirs = first[arm][0]
        for key in ("losses", "grad_norms"):
            assert len(theirs[key]) == len(ours[key]) == PARITY_STEPS
            for step, (a, b) in enumerate(zip(ours[key], theirs[key], strict=True)):
                assert _close(a, b), f"{base}: {key} of step {step}: ours-ddp {a!r}, {arm} {b!r}"
        found[arm] = {key: theirs[key] for key in ("losses", "grad_norms")}
    if "trl-grouped" in first:
        documents = [document for rank in first["trl-grouped"] for document in rank["documents"][0]]
        loss, expected = first["trl-grouped"][0]["losses"][0], reference_loss(cases["trl-grouped"], documents)
        assert _close(loss, expected), f"{base}: step 0 of trl-grouped: {loss!r}, ours on the same rows {expected!r}"
        found["trl-grouped"] = {"losses": [loss], "ours_on_the_same_rows": expected}
    return found


def reference_loss(case: Case, documents: Sequence[int]) -> float:
    """Our mean loss of the untrained model over the documents with these numbers in packs.json."""
    order = case.order
    rows = [document for step in range(order.total_steps) for pack in order.global_batch(step) for document in pack]
    batch: Pack = tuple(rows[number] for number in documents)
    micro = micro_batch(order.prepared.train, [batch])
    with torch.no_grad():
        token_loss, content = build(case.config, ALONE)
        if content is not None:
            fill(token_loss, content, ALONE, ALONE.device)
        return float(token_loss(micro)) / micro.num_supervised


def measure(folder: Path, base: Base, repeats: int, steps: int) -> dict[str, Any]:
    """Time every arm; see the module's docstring for what is reported."""
    cases = make_cases(folder, base, WARMUP + steps)
    arms = {arm: runner(arm, cases[arm], WARMUP + steps, log=False) for arm in (*OURS, *TRL)}
    counts = _counts(cases["ours-ddp"].order)
    runs = harness.interleaved(arms, repeats)
    results = {arm: _summary([_figures(ranks, counts) for ranks in measured]) for arm, measured in runs.items()}
    best = max(TRL, key=lambda arm: results[arm]["tokens_per_second"]["median"])
    pairs = [
        ours / theirs
        for ours, theirs in zip(
            results["ours-ddp"]["all_tokens_per_second"], results[best]["all_tokens_per_second"], strict=True
        )
    ]
    speeds = {arm: results[arm]["tokens_per_second"]["median"] for arm in results}
    memory = {arm: results[arm]["resident_peak_bytes"]["median"] for arm in results}
    return {
        "arms": results,
        "best_trl_arm": best,
        "speed_ratio_of_medians": {arm: speeds[arm] / speeds[best] for arm in OURS},
        "speed_ratio_of_pairs": {**harness.spread(pairs), "all": pairs},
        "memory_ratio": {arm: memory[arm] / memory[best] for arm in OURS},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_trl_cpu", description="Our trainer beside TRL's.")
    parser.add_argument("--quick", action="store_true", help="1 repeat of 5 steps; no result file unless --out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25, help="timed steps of a repeat")
    parser.add_argument("--bases", nargs="+", choices=get_args(Base), default=["shipped"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    repeats, steps = (1, 5) if options.quick else (options.repeats, options.steps)
    out = options.out or (None if options.quick else harness.RESULTS / "vs_trl_cpu.json")
    result: dict[str, Any] = {"benchmark": "vs_trl_cpu", "environment": harness.environment()}
    settings = {"repeats": repeats, "warmup_steps": WARMUP, "timed_steps": steps, "processes": PROCESSES}
    result["settings"] = {**settings, "parity_steps": PARITY_STEPS, "tolerance": TOLERANCE}
    result["bases"] = {}
    with tempfile.TemporaryDirectory(prefix="dft-bench-") as temporary:
        folder = Path(temporary)
        parity = {base: assert_parity(folder, base) for base in options.bases}
        print("first losses agree in every arm", file=sys.stderr)
        for base in options.bases:
            print(base, file=sys.stderr)
            result["bases"][base] = {"parity": parity[base], **measure(folder, base, repeats, steps)}
    print(render(result))
    if out is not None:
        harness.write_result(out, result)
    return 0


def render(result: dict[str, Any]) -> str:
    """The result as a table, and a line on the requirement, for each base."""
    parts = []
    for base, measured in result["bases"].items():
        best, rows = measured["best_trl_arm"], []
        for arm, figures in measured["arms"].items():
            speed, memory = figures["tokens_per_second"], figures["resident_peak_bytes"]
            rows.append(
                [
                    f"{base} {arm}{' *' if arm == best else ''}",
                    f"{speed['median']:,.0f} ({speed['min']:,.0f}-{speed['max']:,.0f})",
                    f"{figures['supervised_tokens_per_second']['median']:,.0f}",
                    harness.milliseconds(figures["step_seconds"]),
                    f"{figures['cpu_seconds_per_step']['median'] * 1e3:.0f}",
                    f"{memory['median'] / 2**20:,.0f}",
                    f"{speed['median'] / measured['arms'][best]['tokens_per_second']['median']:.2f}",
                ]
            )
        header = ["arm (* TRL's best)", "tokens/s", "supervised/s", "ms/step", "CPU ms", "peak MiB a rank", "speed"]
        ratio, pairs = measured["speed_ratio_of_medians"]["ours-ddp"], measured["speed_ratio_of_pairs"]
        parts.append(harness.table(header, rows))
        parts.append(
            f"ours-ddp against {best}: {ratio:.2f}x (pairs {pairs['min']:.2f}-{pairs['max']:.2f}); "
            f"not slower: {'yes' if ratio >= 1 else 'NO'}\n"
        )
    return "\n".join(parts)


def _counts(order: Order) -> dict[str, list[int]]:
    """Document tokens and labels of each step's global batch."""
    batches = [micro_batch(order.prepared.train, order.global_batch(step)) for step in range(order.total_steps)]
    return {"tokens": [b.num_tokens for b in batches], "supervised": [b.num_supervised for b in batches]}


def _figures(ranks: list[Measurement], counts: dict[str, list[int]]) -> Measurement:
    """One repeat. Rank 0's clock; TRL's ranks say themselves what they saw, ours see the steps of `counts`."""
    ends = ranks[0]["ends"]
    if "tokens" in ranks[0]:
        counts = {key: [sum(step) for step in zip(*(rank[key] for rank in ranks), strict=True)] for key in counts}
    seconds = ends[-1] - ends[WARMUP - 1]
    return {
        "tokens_per_second": sum(counts["tokens"][WARMUP:]) / seconds,
        "supervised_tokens_per_second": sum(counts["supervised"][WARMUP:]) / seconds,
        "step_seconds": _median_step(ends),
        "cpu_seconds_per_step": _median_step(ranks[0]["cpu_ends"]),  # of rank 0, all threads
        "resident_peak_bytes": max(rank["resident_peak"] for rank in ranks),
        "resident_before_bytes": max(rank["resident_before"] for rank in ranks),
    }


def _median_step(ends: list[float]) -> float:
    return statistics.median(b - a for a, b in zip(ends[WARMUP - 1 :], ends[WARMUP:], strict=False))


def _summary(repeats: list[Measurement]) -> dict[str, Any]:
    summary: dict[str, Any] = {key: harness.spread([one[key] for one in repeats]) for key in repeats[0]}
    summary["all_tokens_per_second"] = [one["tokens_per_second"] for one in repeats]
    return summary


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * abs(b)


if __name__ == "__main__":
    sys.exit(main())
