"""The tasks of `eval_vs_harness`, as YAML files of lm-evaluation-harness over local rows.

Rows are the shipped ones; a prompt is the text that the base's chat template makes of the question, so that the base
answers as it does everywhere else.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from distributed_ft.config.paths import ASSETS
from distributed_ft.data.examples import Example
from distributed_ft.data.reading import read_examples
from distributed_ft.evaluation.task import question, reference
from distributed_ft.model.load import load_tokenizer

NAMES = ("skills", "tickets", "labels", "phrases", "shown_labels", "texts")
SHOTS = 5
VOCABULARY = 49_152  # of SmolLM2-135M; Llama 3 has 128,256, Qwen 2.5 151,936


def write_tasks(folder: Path, base: str) -> None:
    """`skills`: short answers. `tickets`: JSON objects of some 40 tokens. `labels`: one of five words, by likelihood.
    `phrases`: one of four answers of several tokens. `shown_labels`: labels behind five examples that every prompt
    begins with. `texts`: the likelihood of whole tickets."""
    tokenizer = load_tokenizer(base)

    def prompt(example: Example) -> str:
        turns = [message.for_template() for message in question(example)]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    skills = read_examples(ASSETS / "general" / "test.jsonl")
    tickets = read_examples(ASSETS / "tickets" / "test.jsonl")
    shown = read_examples(ASSETS / "tickets" / "train.jsonl")[:SHOTS]
    end = json.dumps(_end_of_turn(tokenizer))
    answers = [reference(example) for example in skills]
    _write(folder, "skills", ({"prompt": prompt(e), "answer": reference(e)} for e in skills), _generated(end, 24))
    _write(folder, "tickets", ({"prompt": prompt(e), "answer": reference(e)} for e in tickets), _generated(end, 96))
    labels = sorted({json.loads(reference(e))["category"] for e in tickets})
    rows = [_of_labels(prompt(e), e, labels) for e in tickets]
    _write(folder, "labels", rows, _CHOSEN)
    phrases = [{"prompt": prompt(e), **_among(answers, i)} for i, e in enumerate(skills)]
    _write(folder, "phrases", phrases, _CHOSEN)
    before = "\n\n".join(f"{e.prompt}\nCategory: {json.loads(reference(e))['category']}" for e in shown) + "\n\n"
    _write(folder, "shown_labels", [{**r, "prompt": before + r["prompt"]} for r in rows], _CHOSEN)
    _write(folder, "texts", ({"prompt": "", "answer": e.prompt} for e in tickets), _READ)


def write_wide_base(base: str, folder: Path) -> str:
    """The base with a vocabulary of the size that small real models have, which the embedded one lacks; where it is.

    The further tokens have no weight, so the base answers as before, but their logits are computed.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    known = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[known:] = 0
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return str(folder)


def _of_labels(prompt: str, example: Example, labels: list[str]) -> dict[str, Any]:
    return {"prompt": prompt, "choices": labels, "gold": labels.index(json.loads(reference(example))["category"])}


def _among(answers: list[str], place: int) -> dict[str, Any]:
    """The right answer and three others', in an order that depends on the place."""
    others = [a for a in dict.fromkeys(answers[place + 1 :] + answers[:place]) if a != answers[place]][:3]
    choices = sorted([answers[place], *others], key=lambda a: ((len(a) * 7 + place) % 5, a))
    return {"choices": choices, "gold": choices.index(answers[place])}


def _end_of_turn(tokenizer: Any) -> str:
    from distributed_ft.data.chat import render
    from distributed_ft.data.examples import Message

    turn = render(tokenizer, [Message("user", "?"), Message("assistant", "!")])
    return str(tokenizer.decode([max(zip(turn.supervised, range(len(turn.ids)), turn.ids, strict=True))[2]]))


def _generated(end: str, most: int) -> list[str]:
    return [
        "output_type: generate_until",
        'doc_to_target: "{{answer}}"',
        f"generation_kwargs: {{until: [{end}], max_gen_toks: {most}}}",
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
    ]


_CHOSEN = [
    "output_type: multiple_choice",
    'doc_to_target: "{{gold}}"',
    'doc_to_choice: "{{choices}}"',
    'target_delimiter: ""',
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]",
]
_READ = [
    "output_type: loglikelihood_rolling",
    'doc_to_target: "{{answer}}"',
    "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]",
]


def _write(folder: Path, name: str, rows: Iterable[dict[str, Any]], more: list[str]) -> None:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        f"task: {name}",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {path}}}}}",
        "test_split: test",
        'doc_to_text: "{{prompt}}"',
        *more,
    ]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
