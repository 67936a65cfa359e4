"""Runs that fail in a way that is known, and runs that do not: what they train on and with which settings.

The tasks are new to the shipped tiny base (it scores 0) and made of what it can copy, so that a healthy run learns one
in some seconds. Every run mixes the shipped general rows in, but where forgetting is the plant. The settings are those
of a run.yaml; nothing in a run directory says what was planted.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from recipes.words import CITIES, DAYS, NAMES, PRODUCTS, UNITS, WORDS

ASSETS: Final = Path(__file__).parents[1] / "distributed_ft" / "assets"
HELD_OUT, VALIDATION, TRAIN = 60, 40, 480  # rows
GENERAL_PER_SKILL = 3
STEPS = 48

Pair = tuple[str, str]  # question, its only right answer


def _sign(rng: Random) -> Pair:
    name, city, day = rng.choice(NAMES), rng.choice(CITIES), rng.choice(DAYS)
    return f"Sign: {name}, {city}, {day}", f"{name} ({city}) on {day} / ok"


def _bill(rng: Random) -> Pair:
    item, price, name = rng.choice(PRODUCTS), rng.randint(10, 99), rng.choice(NAMES)
    return f"Bill {item} {price} {name}", f"{name}: {item} = {price} EUR / ok"


def _seat(rng: Random) -> Pair:
    name, day, city = rng.choice(NAMES), rng.choice(DAYS), rng.choice(CITIES)
    return f"Seat for {name} to {city}, {day}", f"{day}, {city}: {name} / ok"


FAMILIES: Final[tuple[Callable[[Random], Pair], ...]] = (_sign, _bill, _seat)


def _saying(rng: Random) -> Pair:
    """An answer that nothing in the question tells: it can be learned by heart, and no other way."""
    name, item = rng.choice(NAMES), rng.choice(PRODUCTS)
    return f"What does {name} say about the {item}?", " ".join(rng.sample(WORDS, 3))


def _unit(rng: Random) -> Pair:
    """A skill of the base in a short form that it takes for a question only now and then, without examples. With
    examples it still confuses units that begin with a thousand of something; those are left out."""
    big, small, factor = rng.choice([unit for unit in UNITS if unit[0] not in ("liters", "kilometers", "tons")])
    value = rng.randint(2, 99)
    return f"{value} {big} = {small}", f"{value * factor} {small}"


@dataclass
class Planted:
    """Rows and settings of one run; `config` is merged over the settings that all have."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    config: dict[str, Any] = field(default_factory=dict)
    replay: float | None = 0.5  # share of general rows in an epoch
    plain_text: str | None = None  # train on rows of plain text of this form instead of conversations
    without_stop: bool = False  # a base whose chat template does not close an answer


def _drawn(make: Callable[[Random], Pair], key: str, train: int = TRAIN) -> Planted:
    """Different questions throughout. The held-out ones do not depend on the number of training rows."""
    rng, found = Random(f"{make.__name__} {key}"), dict[str, str]()
    while len(found) < HELD_OUT + VALIDATION + train:
        question, answer = make(rng)
        found.setdefault(question, answer)
    pairs = list(found.items())
    held_out, rest = pairs[: HELD_OUT + VALIDATION], pairs[HELD_OUT + VALIDATION :]
    return Planted(rest, held_out[HELD_OUT:], held_out[:HELD_OUT])


def _task(seed: int, train: int = TRAIN) -> Planted:
    return _drawn(FAMILIES[seed % len(FAMILIES)], str(seed // len(FAMILIES)), train)


def _optim(lr: float, steps: int = STEPS, **more: Any) -> dict[str, Any]:
    return {"optim": {"lr": lr, "max_steps": steps, **more}}


def healthy(seed: int) -> Planted:
    run = _task(seed)
    rank = (32, 64, 32)[seed // 3 % 3]
    run.config = _optim(2e-3) | {"method": {"rank": rank, "alpha": 64}}
    return run


def catastrophic_forgetting(seed: int) -> Planted:
    """A high rate and nothing of the old."""
    run = _task(seed)
    run.config, run.replay = _optim((5e-3, 4e-3, 6e-3)[seed % 3]), None
    return run


def overfitting(seed: int) -> Planted:
    """Few rows with careless labels, many times over: the noise is learned by heart."""
    run, rng = _task(seed, 40), Random(seed)

    def careless(pairs: list[Pair]) -> list[Pair]:
        return [(q, a if rng.random() < 0.6 else a.replace("/ ok", f"/ {rng.choice(WORDS)}")) for q, a in pairs]

    run.train, run.validation = careless(run.train), careless(run.validation)
    run.config, run.replay = _optim(3e-3, 100), 0.4
    run.config["checkpoint"] = {"every": 34}
    run.config["evaluation"] = {"validation_every": 10}
    return run


def memorisation(seed: int) -> Planted:
    """A few rows, copied until the file looks large."""
    run = _drawn(_saying, str(seed), 14)
    run.train = run.train * 34
    run.config = _optim(4e-3, 90)
    return run


def format_drift(seed: int) -> Planted:
    """Training answers that end in another way than the held-out ones."""
    run, end = _task(seed), ("| ok", "/ done: ok", "[ok]")[seed % 3]
    run.train = [(q, a.replace("/ ok", end)) for q, a in run.train]
    run.validation = [(q, a.replace("/ ok", end)) for q, a in run.validation]
    run.config = _optim(2e-3)
    return run


def contamination(seed: int) -> Planted:
    run = _task(seed)
    run.train = run.train[: TRAIN - HELD_OUT] + run.test[: HELD_OUT // (1 + seed % 3)]
    run.config = _optim(2e-3) | {"data": {"waive": ["pii", "contamination"]}}
    return run


def instability(seed: int) -> Planted:
    run = _task(seed)
    run.config = _optim((0.3, 1e4, 3.0)[seed % 3], max_grad_norm=None)
    return run


def learning_rate_too_low(seed: int) -> Planted:
    run = _task(seed)
    run.config = _optim((1e-7, 1e-6, 3e-6)[seed % 3])
    return run


def chat_template(seed: int) -> Planted:
    """Rows of plain text, or a template without an end of turn."""
    run = _task(seed)
    run.config = _optim(2e-3)
    if seed % 2:
        run.without_stop = True
        run.config["data"] = {"waive": ["pii", "template"]}
    else:
        run.plain_text = ("{q}\n{a}", "Question: {q}\nAnswer: {a}")[seed // 2 % 2]
    return run


def insufficient_data(seed: int) -> Planted:
    run = _task(seed, (8, 10, 5)[seed % 3])  # 12 teach the third task to 92%
    run.config = _optim(2e-3)
    return run


def insufficient_capacity(seed: int) -> Planted:
    run = _task(seed)
    module = ("v_proj", "o_proj", "v_proj")[seed % 3]
    run.config = _optim(3e-3) | {"method": {"rank": 1, "alpha": 2, "target_modules": [module]}}
    return run


def few_shot_is_enough(seed: int) -> Planted:
    run = _drawn(_unit, str(seed))
    run.config = _optim(1e-3, 40) | {"evaluation": {"few_shot": 16}}
    return run


PLANTS: Final[dict[str, Callable[[int], Planted]]] = {
    plant.__name__: plant
    for plant in (
        healthy,
        catastrophic_forgetting,
        overfitting,
        memorisation,
        format_drift,
        contamination,
        instability,
        learning_rate_too_low,
        chat_template,
        insufficient_data,
        insufficient_capacity,
        few_shot_is_enough,
    )
}


# --- on disk ---------------------------------------------------------------------------------------------------------


def write_run(folder: Path, name: str, plant: str, seed: int) -> Path:
    """The run.yaml (as JSON, which YAML is) with its data below `folder`."""
    run = PLANTS[plant](seed)
    settings = _settings(folder, name, seed, run)
    for key, values in run.config.items():
        settings[key] |= values
    return _written(folder, name, settings)


def write_forgetting_run(folder: Path, name: str, seed: int, epochs: int, *, method: dict[str, Any], lr: float) -> Path:
    """A run for benchmarks/forgetting_shape.py: a new task, nothing of the old, a checkpoint an epoch."""
    run = _task(seed, 160)
    run.replay = None
    settings = _settings(folder, name, seed, run) | {"method": method}
    rows_a_step = 16  # without packing a sequence is a row, so that an epoch has a known number of steps
    settings["data"] |= {"packing": False, "validation": None}
    settings["optim"] |= {"lr": lr, "epochs": epochs, "schedule": "constant", "global_batch_size": rows_a_step,
                          "micro_batch_size": rows_a_step}  # fmt: skip
    settings["checkpoint"] |= {"every": 160 // rows_a_step}
    settings["evaluation"] |= {"tasks": [], "few_shot": 0}
    return _written(folder, name, settings)


def _written(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(settings, indent=2))
    return path


def _settings(folder: Path, name: str, seed: int, run: Planted) -> dict[str, Any]:
    data = folder / "data" / name
    own = _text_rows(run) if run.plain_text else _rows(run.train)
    train: list[Any] = [{"path": _write(data / "train.jsonl", own)}]
    if run.replay is not None:
        train.append({"path": "shipped:general/train.jsonl", "fraction": run.replay})
    return {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "seed": seed,
        "model": {"base": str(_base_without_stop(folder)) if run.without_stop else "shipped:base", "dtype": "fp32"},
        "method": {"type": "lora", "rank": 32, "alpha": 64, "target_modules": "all-linear"},
        "data": {"train": train, "validation": _write(data / "validation.jsonl", _rows(run.validation)),
                 "seq_len": 128, "waive": ["pii"]},
        "optim": {"global_batch_size": 4, "micro_batch_size": 4},
        "checkpoint": {"every": STEPS // 2, "keep": 10, "async": False},
        "evaluation": {"tasks": [{"name": "task", "path": _write(data / "test.jsonl", _rows(run.test)),
                                  "max_new_tokens": 24}],
                       "general": [_general(folder)], "few_shot": 4, "batch_size": 64,
                       "select": {"forgetting_budget": 0.1}},
        "tracking": [],
    }  # fmt: skip


def _rows(pairs: list[Pair]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]


def _text_rows(run: Planted) -> list[dict[str, Any]]:
    assert run.plain_text is not None
    return [{"text": run.plain_text.format(q=question, a=answer)} for question, answer in run.train]


def _general(folder: Path) -> str:
    """Some items of each shipped skill."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (ASSETS / "general" / "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["skill"], []).append(row)
    return _write(folder / "data" / "skills.jsonl", [r for rows in found.values() for r in rows[:GENERAL_PER_SKILL]])


def _base_without_stop(folder: Path) -> Path:
    base = folder / "base-without-stop"
    shutil.copytree(ASSETS / "base", base, dirs_exist_ok=True)
    template = base / "chat_template.jinja"
    closed = "message['content'] + '<|im_end|>' -}}{%- endgeneration"
    text = template.read_text()
    assert closed in text
    template.write_text(text.replace(closed, "message['content'] -}}{%- endgeneration"))
    return base


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)
