"""Tasks of lm-evaluation-harness: the same scores, item by item, as the harness itself gives the same model."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from distributed_ft.config import tasks as config
from distributed_ft.errors import ConfigError
from distributed_ft.evaluation.engines import TransformersEngine
from distributed_ft.evaluation.task import Kind, Response, Scored
from distributed_ft.evaluation.tasks.harness import HarnessTask, harness_tasks

pytest.importorskip("lm_eval")

WORDS = ["cat", "dog", "sun", "ab", "xy", "no", "one", "two", "ten"]
TURN = r"<|im_start|>user\nupper {{word}}<|im_end|>\n<|im_start|>assistant\n"  # as the base learned it
AGGREGATION = {"word_perplexity": "weighted_perplexity", "bits_per_byte": "bits_per_byte", "perplexity": "perplexity"}


def metrics(*names: str) -> str:
    """Of a YAML file; a minus says that lower is better."""
    entries = [
        f"{{metric: {n.strip('-')}, aggregation: {AGGREGATION.get(n.strip('-'), 'mean')}, "
        f"higher_is_better: {'false' if n[0] == '-' else 'true'}}}"
        for n in names
    ]
    return f"metric_list: [{', '.join(entries)}]"


EXACT = metrics("exact_match")


def write(folder: Path, name: str, kind: str, text: str, target: str, *more: str) -> None:
    rows = folder / "rows.jsonl"
    lines = [
        f"task: {name}",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {rows}, train: {rows}}}}}",
        "test_split: test",
        f"output_type: {kind}",
        f'doc_to_text: "{text}"',
        f'doc_to_target: "{target}"',
        *more,
    ]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local tasks of every kind the harness has."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    lines = []
    for place, word in enumerate(WORDS):
        choices = [word.upper(), word + word, "name vip " + word[-1], word[-1]]
        line = {
            "word": word,
            "choices": choices,
            "gold": place % 4,
            "answer": word.upper(),
            "text": f"upper {word} " * 9,
        }
        lines.append(json.dumps({**line, "two": [f"user {word}", f"assistant {word} "], "right": place % 2}) + "\n")
    rows.write_text("".join(lines))
    until = 'generation_kwargs: {until: ["\\n"STOP], max_gen_toks: 6}'
    filters = (
        "filter_list: [{name: strict, filter: [{function: take_first}]}, {name: letters, filter: "
        "[{function: regex, regex_pattern: '([A-Z]+)'}, {function: take_first}]}]"
    )
    few = "fewshot_split: train\nfewshot_config: {sampler: first_n}\nnum_fewshot: 2"
    options = 'doc_to_choice: "{{choices}}"'
    write(folder, "choices", "multiple_choice", "upper {{word}}", "{{gold}}", options, metrics("acc", "acc_norm"))
    write(
        folder, "mutual", "multiple_choice", "upper {{word}}:", "{{gold}}", options, metrics("acc", "acc_mutual_info")
    )
    write(folder, "shown", "multiple_choice", "upper {{word}}", "{{gold}}", options, metrics("acc_norm"), few)
    likely = metrics("acc", "-perplexity")
    write(folder, "continues", "loglikelihood", TURN + "{{answer[0]}}", "{{answer[1:]}}", likely)
    write(folder, "writes", "generate_until", TURN, "{{answer}}", until.replace("STOP", ', "T"'), EXACT)
    write(folder, "filtered", "generate_until", TURN, "{{answer}}", until.replace("STOP", ""), filters, EXACT)
    write(folder, "reads", "loglikelihood_rolling", "", "{{text}}", metrics("-word_perplexity", "-bits_per_byte"))
    return folder


def loaded(
    name: str, task: str, folder: Path, *, key: str = "key", kind: Kind = "task", **settings: Any
) -> list[HarnessTask]:
    entry = config.HarnessTask(metric="harness", name=name, task=task, folder=str(folder), **settings)
    return harness_tasks(entry, kind, key)


def ours(task: HarnessTask, engine: TransformersEngine) -> list[Scored]:
    examples = task.examples()
    answers = engine.answer([task.request(example) for example in examples])
    return [(e, a, task.score(e, a)) for e, a in zip(examples, answers, strict=True)]


def theirs(name: str, folder: Path, base: Path) -> dict[str, Any]:
    """What the harness makes of the same model on the same task: results, and samples by filter."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(base), dtype="float32", device="cpu", batch_size=4)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model, tasks=[name], task_manager=manager, bootstrap_iters=0)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("choices", "acc"),
        ("mutual", "acc"),
        ("shown", "acc_norm"),
        ("continues", "acc"),
        ("writes", "exact_match"),
        ("filtered", "exact_match,strict"),
        ("reads", "word_perplexity"),
    ],
)
def test_scores_are_the_harnesss_item_by_item(
    engine: TransformersEngine, base: Path, folder: Path, name: str, metric: str
) -> None:
    engine.use(None)
    [task] = loaded(name, name, folder, key="evaluation.general[0]", kind="general")
    assert task.main == metric
    scored = ours(task, engine)
    found = theirs(name, folder, base)
    for filter_name in {sample["filter"] for sample in found["samples"][name]}:
        samples = sorted((s for s in found["samples"][name] if s["filter"] == filter_name), key=lambda s: s["doc_id"])
        assert len(samples) == len(scored) == len(WORDS)
        suffix = f",{filter_name}" if name == "filtered" else ""
        for (example, answer, _), sample in zip(scored, samples, strict=True):
            got = task._metrics(example.line - 1, answer)
            for of_harness in sample["metrics"]:
                expected = sample[of_harness]
                assert got[of_harness + suffix] == pytest.approx(expected, rel=1e-4, abs=1e-4), (example, of_harness)
        totals = task.totals(scored)
        for key, value in found["results"][name].items():
            inner, _, of_filter = key.partition(",")
            if of_filter == filter_name and "stderr" not in inner:
                assert totals[inner + suffix] == pytest.approx(value, rel=1e-4)
    assert len({score.value for _, _, score in scored}) > 1  # some right, some wrong


def test_a_prompt_that_differs_by_choice_is_asked_as_it_is(
    engine: TransformersEngine, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    from distributed_ft.evaluation.task import Choose

    engine.use(None)
    [both] = engine.answer([Choose("w", (), (" vip", " name"), contexts=("user name", ""))])
    alone = [
        engine.answer([Choose("w", (), (c,), contexts=(t,))])[0] for t, c in (("user name", " vip"), ("", " name"))
    ]
    assert both.nats == pytest.approx([a.nats[0] for a in alone], abs=1e-5)


def test_the_digest_covers_what_is_asked(folder: Path) -> None:
    def digest(name: str, few_shot: int | None = None, metric: str | None = None) -> str:
        [task] = loaded("t", name, folder, few_shot=few_shot, score=metric)
        return task.digest

    assert digest("choices") == digest("choices")
    assert len({digest("choices"), digest("shown"), digest("shown", 1), digest("choices", metric="acc_norm")}) == 4


@pytest.mark.slow  # its own collection has to be read
def test_a_task_that_is_nowhere_is_an_error_with_its_key(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.tasks\[arc\].*'choises'.*did you mean 'choices'"):
        loaded("arc", "choises", folder, key="evaluation.tasks[arc]", kind="task")


def test_what_the_harness_cannot_do_is_an_error_with_its_key(folder: Path, tmp_path: Path) -> None:
    key = "evaluation.tasks[arc]"
    with pytest.raises(ConfigError, match=r"score.*'f1'.*there are acc, acc_norm"):
        loaded("arc", "choices", folder, score="f1", key=key)
    (tmp_path / "gone.yaml").write_text((folder / "choices.yaml").read_text().replace("rows.jsonl", "none.jsonl"))
    with pytest.raises(ConfigError, match=r"cannot build 'choices'.*local"):
        loaded("arc", "choices", tmp_path, key=key, kind="task")


def test_an_answer_scores_the_same_again(folder: Path) -> None:
    [task] = loaded("w", "writes", folder, key="k", kind="task")
    example = task.examples()[0]
    assert [task.score(example, Response((text,))).value for text in ("CAT", "DOG", "CAT")] == [1.0, 0.0, 1.0]
