"""BLEU and ROUGE: against the libraries asked directly, and against arithmetic by hand."""

import math
from pathlib import Path

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from support.tasks import answered, score_of, task_of

from distributed_ft.errors import DataError
from distributed_ft.evaluation.task import Response, Task

PAIRS = [
    ("The cat sat on the mat.", "The cat is sitting on the mat."),
    ("It rained all day long", "It rained the whole day"),
    ("completely different", "nothing in common here"),
    ("Paris is the capital of France.", "Paris is the capital of France."),
    ("", "an answer"),
]


def totals_of(task: Task) -> dict[str, float]:
    responses = [Response((answer,)) for answer, _ in PAIRS]
    scored = [(e, r, task.score(e, r)) for e, r in zip(task.examples(), responses, strict=True)]
    return dict(task.totals(scored))


@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"tokenize": "char"}, {"tokenize": "intl"}])
def test_bleu_is_sacrebleus(tmp_path: Path, options: dict[str, object]) -> None:
    rows = [answered(reference, f"q{i}") for i, (_, reference) in enumerate(PAIRS)]
    task = task_of(tmp_path, rows, metric="bleu", **options)
    corpus = sacrebleu.corpus_bleu([a for a, _ in PAIRS], [[r for _, r in PAIRS]], **options)  # type: ignore[arg-type]
    assert totals_of(task) == {"corpus_bleu": pytest.approx(corpus.score, abs=1e-9)}
    for example, (answer, reference) in zip(task.examples(), PAIRS, strict=True):
        expected = sacrebleu.sentence_bleu(answer, [reference], **options).score  # type: ignore[arg-type]
        assert task.score(example, Response((answer,))).value == pytest.approx(expected / 100, abs=1e-9)


def test_bleu_of_a_sentence_is_what_a_hand_finds(tmp_path: Path) -> None:
    """the cat sat on the mat / the cat is on the mat: precisions 5/6, 3/5, 1/4, and 0/3 smoothed to 1/(2·3)."""
    task = task_of(tmp_path, [answered("the cat is on the mat")], metric="bleu")
    found = score_of(task, "the cat sat on the mat").value
    assert found == pytest.approx(math.exp(sum(map(math.log, (5 / 6, 3 / 5, 1 / 4, 1 / 6))) / 4), rel=1e-6)
    assert score_of(task, "the cat is on the mat").value == pytest.approx(1.0)


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_rouge_scores(tmp_path: Path, stemmer: bool) -> None:
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, use_stemmer=stemmer)
    rows = [answered(reference, f"q{i}") for i, (_, reference) in enumerate(PAIRS)]
    task = task_of(tmp_path, rows, metric="rouge", variant="rouge2", stemmer=stemmer)
    for example, (answer, reference) in zip(task.examples(), PAIRS, strict=True):
        score = task.score(example, Response((answer,)))
        expected = {name: found.fmeasure for name, found in scorer.score(reference, answer).items()}
        assert {"rouge2": score.value, **score.further} == pytest.approx(expected)


def test_rouge_is_what_a_hand_finds(tmp_path: Path) -> None:
    """4 of 5 and of 4 words: F1 8/9. The longest common subsequence, the cat the mat, is as long."""
    task = task_of(tmp_path, [answered("the cat on the mat")], metric="rouge")
    score = score_of(task, "the cat the mat")
    assert (score.value, score.further["rouge1"]) == (pytest.approx(8 / 9), pytest.approx(8 / 9))
    assert score.further["rouge2"] == pytest.approx(2 * 2 / (4 + 3))


def test_a_language_that_rouge_cannot_see_is_refused_and_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* has no word that ROUGE counts .*write tokenize: words"):
        task_of(tmp_path, [answered("привет мир")], metric="rouge")
    task = task_of(tmp_path, [answered("привет мир")], metric="rouge", tokenize="words")
    assert score_of(task, "Привет, мир!").value == 1.0
