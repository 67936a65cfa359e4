"""Trains the embedded default from scratch: `python -m recipes.base_model --out distributed_ft/assets/base`.

A Llama of about one million parameters that really has the skills of `recipes.skills`, on one CPU core in well under an
hour. The loop is plain PyTorch so that all of it can be read; tickets are never trained on (they are the demo's task).
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from recipes.conversations import IGNORED, PairEncoder, batch, drill_batch, stage_at
from recipes.scoring import exact_match
from recipes.skills import rows
from recipes.tickets import ticket_rows
from recipes.tokenizer import MAX_TOKENS, PAD_ID, train_tokenizer


@dataclass(frozen=True)
class Settings:
    """How the shipped base model was trained."""

    seed: int = 0
    steps: int = 8400
    decay_start: int = 2300
    decay_steps: int = 2300
    low_ratio: float = 0.15
    final_steps: int = 400
    refresh_start: int = 5200
    mail_start: int = 6000
    refresh_rate: float = 1.2e-3
    refresh_drill_share: float = 0.35
    warmup_steps: int = 50
    drill_steps: int = 400
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 5
    scored_rows_per_skill: int = 100


def learning_rate(settings: Settings, step: int) -> float:
    """Warm-up and plateau, linearly down to a second plateau at `low_ratio`, and to zero at `refresh_start`; then the
    refresh, from `refresh_rate` to zero, and the same once more for the mails. `step` counts from 1.

    Most skills settle on the way down; looking up in a table is found only afterwards, hence the second plateau.
    """
    for first, last in ((settings.mail_start, settings.steps), (settings.refresh_start, settings.mail_start)):
        if step > first:
            up = (step - first) / settings.warmup_steps
            return settings.refresh_rate * min(1.0, up, (last - step + 1) / (last - first))
    up = step / settings.warmup_steps
    down = (settings.decay_start + settings.decay_steps - step + 1) / settings.decay_steps
    low = settings.low_ratio * min(1.0, (settings.refresh_start - step + 1) / settings.final_steps)
    return settings.learning_rate * min(1.0, up, max(down, low))


def step_batch(
    settings: Settings, step: int, rng: Random, encode: PairEncoder, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """The curriculum: the copying drill, a token longer every 25 steps; the stages of conversations; both, to refresh.

    The skills answer with a few hundred of the tokens. The others, never wanted, are pushed to one corner of the tied
    embeddings, where nothing can tell them apart: a LoRA, which leaves embeddings alone, then cannot learn to say
    `"category"`. The refresh echoes the whole vocabulary once more and so keeps every token sayable.
    """
    if step <= settings.drill_steps:
        return drill_batch(rng, encode, vocab_size, 1 + step // 25, PAD_ID)
    if step > settings.refresh_start and rng.random() < settings.refresh_drill_share:
        return drill_batch(rng, encode, vocab_size, 16, PAD_ID)
    return batch(rng, encode, stage_at(step), PAD_ID)


def new_model(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A fresh model with heads of 32 dimensions and tied embeddings, initialised from the seed."""
    torch.manual_seed(settings.seed)
    num_heads = settings.hidden_size // 32
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=32,
        tie_word_embeddings=True,
        initializer_range=0.06,  # about 1/sqrt(hidden): with the usual 0.02 so narrow a model starts slowly
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},  # prompts are short: finer positions
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def answer_loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the answer tokens. Only they (one position in five) go through the output layer."""
    # bf16 is a third faster on a CPU with AVX512-bf16; the weights and the optimizer stay in fp32.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, attention_mask=None, use_cache=False).last_hidden_state
        supervised = labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[:, :-1][supervised])
    return cross_entropy(logits.float(), labels[:, 1:][supervised])


def new_optimizer(settings: Settings, model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW. Norm weights and embeddings are not decayed: both are scales that the rest of the model has to trust."""
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def train(settings: Settings, tokenizer: PreTrainedTokenizerBase, log: Path) -> LlamaForCausalLM:
    """Trains a fresh model and writes a sparse log (one line each hundred steps)."""
    model = new_model(settings, tokenizer)
    model.train()
    optimizer = new_optimizer(settings, model)
    rng, encode = Random(f"{settings.seed}|conversations"), PairEncoder(tokenizer)
    started, losses = time.monotonic(), list[float]()
    with log.open("w", encoding="utf-8") as lines:
        for step in range(1, settings.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            loss = answer_loss(model, *step_batch(settings, step, rng, encode, len(tokenizer)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if step % 100 == 0 or step == settings.steps:
                entry = {"step": step, "loss": round(sum(losses) / len(losses), 4), "lr": learning_rate(settings, step)}
                lines.write(json.dumps(entry | {"seconds": round(time.monotonic() - started)}) + "\n")
                lines.flush()
                losses.clear()
    return model


def score(
    settings: Settings, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, seconds: float
) -> dict[str, object]:
    """What scores.json holds: exact match by skill on held-out items, and on the tickets it has not learned.

    The seed is another than that of the rows watched while the curriculum was chosen: these items are blind to it.
    """
    skills = exact_match(model, tokenizer, rows("held-out", settings.scored_rows_per_skill, settings.seed + 1))
    tickets = exact_match(model, tokenizer, ticket_rows({"test": 100}, settings.seed + 1)["test"])
    return {
        "skills": {skill: {"score": round(value, 4), "n": n} for skill, (value, n) in skills.items()},
        "mean": round(sum(value for value, _ in skills.values()) / len(skills), 4),
        "untrained_tickets": {"score": tickets["tickets"][0], "n": tickets["tickets"][1]},
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "device": f"cpu ({platform.machine()}), {torch.get_num_threads()} thread, bf16 autocast",
        "seconds": round(seconds),
    }


def main() -> None:
    """Trains, saves and scores the base model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the model to")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--steps", type=int, default=Settings.steps, help="fewer steps make a quick, worse model")
    args = parser.parse_args()
    settings = Settings(seed=args.seed, steps=args.steps)
    torch.set_num_threads(1)  # sums in another order give other weights: identical reruns need one thread count
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tokenizer = train_tokenizer(settings.seed)
    model = train(settings, tokenizer, args.out / "training_log.jsonl")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    scores = score(settings, model, tokenizer, time.monotonic() - started)
    (args.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(scores["skills"], indent=2))


if __name__ == "__main__":
    main()
