"""What `dft plan` prints, as text and as JSON."""

import json
import shlex
from typing import TYPE_CHECKING, Any

from distributed_ft.config.load import LoadedRun
from launcher.check import Line, render

if TYPE_CHECKING:
    from distributed_ft.plan.answer import Choice, Plan
    from distributed_ft.plan.measure import Memory

GIB = 2**30
MILLION = 10**6
_PARTS = {
    "weights": "weights, and what scales quantised ones",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations, and what the passes need in between",
    "logits": "logits",
    "communication": "gathered weights and buffers of the collectives",
}


def text(loaded: LoadedRun, plan: "Plan") -> str:
    """The answer for a terminal."""
    lines = [*_head(loaded, plan), *_memory(plan), *_speed(plan)]
    return "\n\n".join([render(lines), _gpus(plan), _proposals(loaded, plan)])


def as_json(loaded: LoadedRun, plan: "Plan") -> str:
    """The same for programs. Bytes of tensors, GiB of a GPU (`need_gib`, with what no tensor shows), seconds, USD."""
    content = {
        "schema": 1,
        "run": str(loaded.source),
        "shape": plan.architecture.source,
        "memory": _memory_json(plan.memory),
        "asked": _choice_json(plan, plan.asked),
        "others": [_choice_json(plan, choice) for choice in plan.others],
        "proposals": [
            {"write": p.changes, "memory": _memory_json(p.memory), **_choice_json(plan, choice)}
            for p, choice in plan.proposals
        ],
        "tried_all": plan.tried_all,
        "steps": plan.steps,
        "prices_of": plan.prices_of,
        "stand_ins": list(plan.stand_ins),
        "time_is": "estimate, not measured",
    }
    return json.dumps(content, indent=2)


def _head(loaded: LoadedRun, plan: "Plan") -> list[Line]:
    cluster, memory, config = plan.asked.cluster, plan.memory, plan.config
    optim = config.optim
    nodes = f"{cluster.nodes} nodes of {cluster.per_node}" if cluster.nodes > 1 else "one node"
    lines = [
        ("run", f"{config.name} ({loaded.source})"),
        ("on", f"{cluster.size} x {cluster.gpu.name} ({nodes})"),
        ("shape", f"{plan.architecture.source}: {memory.parameters / 1e9:,.2f} B parameters"),
        ("trained", f"{config.method.type}: {memory.trained / MILLION:,.1f} M parameters"),
        (
            "step",
            f"{optim.global_batch_size} sequences of {config.data.seq_len:,}, {optim.micro_batch_size} at a time; "
            f"{config.strategy.type}, gradient checkpointing {config.model.gradient_checkpointing}",
        ),
    ]
    return lines + [("note", note) for note in plan.stand_ins]


def _memory(plan: "Plan") -> list[Line]:
    memory, asked = plan.memory, plan.asked
    at = f" (at {memory.layers[0]} and {memory.layers[1]} layers, drawn out)" if memory.layers else ""
    lines = [("", ""), ("memory", f"of a rank, GiB, at the fullest moment (in the {memory.moment}); counted{at}")]
    lines += [("", f"{memory.parts[kind] / GIB:8.2f}  {what}") for kind, what in _PARTS.items() if memory.parts[kind]]
    extra = asked.need - memory.peak / GIB
    lines.append(("", f"{extra:8.2f}  driver, workspaces, collectives and fragments (assumed)"))
    if memory.peak > memory.training:
        lines.append(("", f"{(memory.peak - memory.training) / GIB:8.2f}  more while it loads or saves"))
    room = asked.cluster.gpu.memory - asked.need
    verdict = f"fits, {room:.1f} GiB to spare" if asked.fits else f"DOES NOT FIT: {-room:.1f} GiB too much"
    lines.append(("", f"{asked.need:8.2f}  of {asked.cluster.gpu.memory:g}: {verdict}"))
    lines.append(("loading", f"{memory.loading / GIB:8.2f}  on the GPU"))
    lines.append(("saving", f"{memory.saving / GIB:8.2f}  on the GPU"))
    uses = ", ".join(f"{size / GIB * asked.cluster.per_node:.2f} {use}" for use, size in memory.host.items() if size)
    lines.append(("host", f"GiB of a node, all its ranks: {uses or 'nothing to speak of'}"))
    return lines


def _speed(plan: "Plan") -> list[Line]:
    speed = plan.asked.speed
    parts = f"computing {speed.compute:.2f}, weights and update {speed.weights:.2f}, talking {speed.communication:.2f}"
    gpu = plan.asked.cluster.gpu
    return [
        ("", ""),
        ("speed", f"estimate, not measured: {gpu.achieved:.0%} of {gpu.bf16:g} TFLOP/s, talking mostly overlapped"),
        ("", f"{speed.step:.2f} s a step ({parts}); {speed.tokens_per_second:,.0f} tokens/s"),
        ("price", f"{gpu.price:.2f} USD a GPU hour ({plan.prices_of}); {_cost(plan, plan.asked)}"),
    ]


def _cost(plan: "Plan", choice: "Choice") -> str:
    if plan.steps is None:
        return f"{choice.price_of(MILLION):.2f} USD for 1M tokens (nobody counted the data)"
    seconds = plan.steps * choice.speed.step
    cost = choice.price_of(plan.steps * choice.speed.tokens)
    return f"{plan.steps:,} steps: {_duration(seconds)}, {cost:,.2f} USD"


def _gpus(plan: "Plan") -> str:
    choices = sorted([plan.asked, *plan.others], key=lambda c: (not c.fits, c.price_of(MILLION)))
    rows = [
        (
            f"{choice.cluster.size} x {choice.cluster.gpu.name}",
            f"{choice.need:.1f} of {choice.cluster.gpu.memory:g} GiB",
            ("fits" if choice.fits else "no") + ("*" if _without_bf16(plan, choice) else ""),
            f"{choice.speed.tokens_per_second:,.0f}",
            f"{choice.price_of(MILLION):.2f}",
        )
        for choice in choices
    ]
    header = ("the same run on", "memory", "", "tokens/s", "USD for 1M tokens")
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *rows)]
    if any(_without_bf16(plan, choice) for choice in choices):
        lines.append("* has no bf16: it will be slower than this, and attention may take more memory than was counted")
    return "\n".join(lines)


def _without_bf16(plan: "Plan", choice: "Choice") -> bool:
    return choice.cluster.gpu.name == "T4" and plan.config.model.dtype == "bf16"


def _proposals(loaded: LoadedRun, plan: "Plan") -> str:
    unfinished = "" if plan.tried_all else "\n(more is worth a try: --patience 300)"
    if not plan.proposals:
        return f"proposals: none{unfinished}"
    intro = "what may be faster" if plan.asked.fits else "what may fit"
    lines = [f"{intro}, measured in the same way (estimates of time):"]
    for number, (proposal, choice) in enumerate(plan.proposals, 1):
        keys = " ".join(f"{key}={_value(value)}" for key, value in proposal.changes.items())
        verdict = "fits" if choice.fits else "does not fit"
        lines.append(f"  {number}. {keys}")
        lines.append(f"     {choice.need:.1f} GiB, {verdict}; {choice.speed.tokens_per_second:,.0f} tokens/s")
    best, choice = plan.proposals[0]
    if choice.fits:
        settings = [f"{key}={_value(value)}" for key, value in best.changes.items()]
        lines.append(f"to take the first: {_command(loaded, choice, settings)}")
    return "\n".join(lines) + unfinished


def _command(loaded: LoadedRun, choice: "Choice", settings: list[str]) -> str:
    """What starts the run with these settings, beside those that were given already."""
    cluster = choice.cluster
    start = ["dft", "train", str(loaded.source), "--nproc", str(cluster.per_node)]
    if cluster.nodes > 1:
        shape = ["--nodes", str(cluster.nodes), "--gpus-per-node", str(cluster.per_node)]
        start = ["dft", "submit", str(loaded.source), *shape]
    return shlex.join([*start, *loaded.overrides, *settings])


def _value(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return (
        "{"
        + ", ".join(f"{k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in value.items() if v is not None)
        + "}"
    )


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _memory_json(memory: "Memory") -> dict[str, Any]:
    return {
        "parts": memory.parts,
        "moment": memory.moment,
        "training": memory.training,
        "loading": memory.loading,
        "saving": memory.saving,
        "host": memory.host,
        "parameters": memory.parameters,
        "trained": memory.trained,
        "measured_at_layers": list(memory.layers),
    }


def _choice_json(plan: "Plan", choice: "Choice") -> dict[str, Any]:
    cluster, speed = choice.cluster, choice.speed
    seconds = None if plan.steps is None else plan.steps * speed.step
    cost = None if plan.steps is None else choice.price_of(plan.steps * speed.tokens)
    return {
        "gpu": cluster.kind,
        "gpus_per_node": cluster.per_node,
        "nodes": cluster.nodes,
        "need_gib": round(choice.need, 3),
        "has_gib": cluster.gpu.memory,
        "fits": choice.fits,
        "step_seconds": speed.step,
        "tokens_per_second": speed.tokens_per_second,
        "usd_per_million_tokens": choice.price_of(MILLION),
        "run_seconds": seconds,
        "run_usd": cost,
    }
