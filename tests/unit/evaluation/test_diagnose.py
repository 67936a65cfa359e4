"""Each kind of failure from hand-made evidence, what only looks like it, and which one is told first."""

import math

import pytest
from support.diagnosis_evidence import (
    FALLING,
    STEPS,
    answers,
    audit,
    checkpoint,
    curve,
    deviation,
    evidence,
)

from distributed_ft.evaluation.diagnose import KINDS, Finding, diagnose
from distributed_ft.evaluation.diagnosis.ranking import EFFECTS, ranked
from distributed_ft.evaluation.report.evidence import Evidence, TaskAnswers

RISING = [(50, 0.5), (100, 0.3), (150, 0.6), (200, 0.9)]
HIGH = [2.0 * (0.6 + 0.4 * 0.9**i) for i in range(STEPS)]  # falls to 60% of its first value and stays there
COLLAPSED = [2.0 * (0.4 + 0.6 * 0.8**i) for i in range(STEPS)]


def ids(evidence: Evidence) -> list[str]:
    return [finding.id for finding in diagnose(evidence)]


def test_a_healthy_run_has_no_finding() -> None:
    clean = answers(as_base=3, from_training=2, references_in_training=1)
    assert ids(evidence(answers=[clean], plain_text_rows=0.0)) == []


PLANTED = {
    "contamination": evidence(data=audit(seen=40)),
    "instability": evidence(checkpoint(score=0.0, forgot=1.0), curves=curve(COLLAPSED)),
    "chat_template": evidence(checkpoint(score=0.1, over_base=0.0), answers=[answers(wrong=180, ran_on=170)]),
    "learning_rate_too_low": evidence(
        checkpoint(score=0.0), curves=curve([2.0] * STEPS), answers=[answers(wrong=200, as_base=200)]
    ),
    "insufficient_data": evidence(checkpoint(score=0.1), curves=curve(FALLING, [(200, 1.5)]), data=audit(rows=12)),
    "memorisation": evidence(
        checkpoint(score=0.0),
        curves=curve(FALLING, RISING),
        data=audit(rows=600, copies=580),
        answers=[answers(wrong=200, from_training=180)],
    ),
    "catastrophic_forgetting": evidence(checkpoint(forgot=0.5)),
    "forgetting_over_budget": evidence(checkpoint(forgot=0.1)),
    "format_drift": evidence(checkpoint(score=0.0), answers=[answers(wrong=200, deviation=deviation(190))]),
    "insufficient_capacity": evidence(checkpoint(score=0.02), curves=curve(HIGH, [(200, 1.2)])),
    "not_learned": evidence(checkpoint(score=0.1, over_base=0.0)),
    "few_shot_is_enough": evidence(checkpoint(over_prompt=0.01)),
    "overfitting": evidence(curves=curve(FALLING, RISING)),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_named_first_with_figures_and_what_to_change(kind: str) -> None:
    first, *rest = diagnose(PLANTED[kind])
    assert first.id == kind
    assert first.evidence.endswith(".")
    assert any(character.isdigit() for character in first.evidence)
    assert first.figures
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in first.figures.values())
    assert first.remedies
    assert 0.5 <= first.confidence <= 0.99
    assert first.because_of == ()
    assert all(kind in other.because_of for other in rest)


def test_every_kind_that_can_be_found_is_planted_above() -> None:
    assert len(PLANTED) == len(KINDS)  # answers_cut_off is tested with the report; forgetting has two names


# --- what only looks like it -----------------------------------------------------------------------------------------


def test_few_rows_that_taught_an_earlier_checkpoint_more_are_overfitting_and_nothing_else() -> None:
    early, late = checkpoint(100, 0.6), checkpoint(200, 0.2)
    run = evidence(early, late, curves=curve(FALLING, RISING), data=audit(rows=30), judged=100, best=100)
    assert ids(run) == ["overfitting"]
    assert "step 100 scores 60%, step 200 20%" in diagnose(run)[0].evidence


def test_few_rows_that_were_enough_are_not_too_few() -> None:
    assert ids(evidence(checkpoint(score=0.95), curves=curve(FALLING, [(200, 1.5)]), data=audit(rows=20))) == []


def test_many_copies_of_few_rows_are_learned_by_heart_not_too_few() -> None:
    found = ids(PLANTED["memorisation"])
    assert found[0] == "memorisation"
    assert "insufficient_data" not in found


def test_labels_that_repeat_are_not_learned_by_heart() -> None:
    labels = answers(wrong=120, from_training=120, references_in_training=200)
    assert ids(evidence(checkpoint(score=0.4), answers=[labels])) == []


def test_answers_learned_by_heart_are_not_accused_where_the_training_file_is_gone() -> None:
    unknown = answers(wrong=200, from_training=0, training_known=False)
    assert "memorisation" not in ids(evidence(checkpoint(score=0.2), answers=[unknown]))


def test_a_loss_that_was_low_from_the_start_is_no_rate_too_low() -> None:
    assert "learning_rate_too_low" not in ids(evidence(checkpoint(score=0.9, over_base=0.0), curves=curve([0.02] * 50)))


def test_a_flat_loss_in_a_run_that_gained_is_no_rate_too_low() -> None:
    assert ids(evidence(curves=curve([1.0] * STEPS))) == []


def test_a_validation_loss_that_rose_is_no_sign_of_a_rate_too_low() -> None:
    rose = curve(FALLING, [(50, 5.0), (100, 5.5), (200, 6.0)])
    assert "learning_rate_too_low" not in ids(evidence(checkpoint(score=0.0), curves=rose))


def test_a_validation_loss_that_stood_still_shows_that_the_batches_only_scatter() -> None:
    scatter = [12.0, 12.0, 12.0, *[10.0 + i % 3 for i in range(24)], 9.0, 9.0, 9.0]
    still = curve(scatter, [(10, 12.40), (20, 12.39), (30, 12.39)])
    assert ids(evidence(checkpoint(score=0.0), curves=still))[0] == "learning_rate_too_low"


def test_a_high_loss_that_paid_is_no_lack_of_capacity() -> None:
    assert ids(evidence(checkpoint(score=0.5), curves=curve(HIGH, [(200, 1.2)]))) == []


def test_a_high_loss_on_validation_rows_only_is_no_lack_of_capacity() -> None:
    assert "insufficient_capacity" not in ids(evidence(checkpoint(score=0.0), curves=curve(HIGH, [(200, 3.0)])))


def test_general_rows_that_lower_the_training_loss_do_not_hide_a_lack_of_capacity() -> None:
    mixed = audit()
    mixed["sources"].append({"path": "general.jsonl", "rows_used": 300, "fraction": 0.5, "drawn_share": 0.5})
    run = evidence(checkpoint(score=0.0), curves=curve(HIGH, [(100, 2.4), (200, 2.2)]), data=mixed)
    assert ids(run)[0] == "insufficient_capacity"


@pytest.mark.parametrize(
    "kept_to_itself",
    [
        answers(wrong=200, ran_on=170, base_ran_on=150),  # the base runs on as well
        answers(wrong=20, ran_on=9),  # too few to be a pattern
    ],
)
def test_answers_that_ran_on_before_or_seldom_are_no_fault_of_the_template(kept_to_itself: TaskAnswers) -> None:
    assert "chat_template" not in ids(evidence(checkpoint(score=0.9), answers=[kept_to_itself]))


def test_plain_text_that_taught_the_task_all_the_same_is_not_accused() -> None:
    assert ids(evidence(checkpoint(score=0.9), answers=[answers()], plain_text_rows=1.0)) == []


@pytest.mark.parametrize(
    "way",
    [
        deviation(190, in_base=190),  # the base writes so as well
        deviation(60),  # most wrong answers are wrong in other ways
        deviation(190, in_training=0.0, same_words=0),  # nobody taught it, and the words are others: not the format
    ],
)
def test_wrong_answers_of_other_kinds_are_no_drift_of_the_format(way: object) -> None:
    found = answers(wrong=200, deviation=way)
    assert "format_drift" not in ids(evidence(checkpoint(score=0.0), answers=[found]))


def test_drift_that_nobody_taught_is_told_by_the_right_words_in_the_wrong_form() -> None:
    own = answers(wrong=200, deviation=deviation(190, in_training=0.0))
    finding = diagnose(evidence(checkpoint(score=0.0), answers=[own]))[0]
    assert finding.id == "format_drift"
    assert "80% into the answer (character 31)" in finding.evidence
    assert "The training answers are written as the references are" in finding.evidence


def test_one_test_item_in_two_hundred_moves_nothing() -> None:
    assert ids(evidence(data=audit(seen=1))) == []


def test_validation_rows_in_the_training_file_are_not_what_the_verdict_rests_on() -> None:
    report = audit()
    report["statistics"]["train.jsonl"]["contamination"] = {"validation": {"items": 40, "seen": 40, "rows": 40}}
    assert ids(evidence(data=report)) == []


def test_skills_that_were_lost_and_learned_again_are_not_forgotten() -> None:
    recovered = [checkpoint(100, 0.5, forgot=0.5), checkpoint(200, 0.9, forgot=0.0)]
    assert ids(evidence(*recovered, best=200)) == []
    (finding,) = diagnose(evidence(checkpoint(100, 0.9), checkpoint(200, 0.9, forgot=0.5), judged=100, best=100))
    assert (finding.id, finding.severity) == ("catastrophic_forgetting", "warning")


def test_a_model_that_lost_its_skills_and_fitted_the_rows_was_not_destroyed() -> None:
    assert ids(evidence(checkpoint(forgot=1.0))) == ["catastrophic_forgetting"]


def test_a_loss_that_falls_and_ends_high_has_diverged() -> None:
    loss = [*FALLING[:100], *[3.0] * 100]
    finding = diagnose(evidence(checkpoint(score=0.0), curves=curve(loss)))[0]
    assert (finding.id, finding.severity) == ("instability", "problem")
    assert "ended at 3.00" in finding.evidence


def test_a_run_that_stopped_on_loss_that_is_no_number_is_unstable_without_any_score() -> None:
    run = evidence(curves=curve(FALLING[:30], skipped=(31, 32, 33, 34, 35)))
    unscored = Evidence(**{**vars(run), "checkpoints": (), "judged_step": None})
    (finding,) = diagnose(unscored)
    assert (finding.id, finding.severity) == ("instability", "problem")
    assert "5 steps skipped" in finding.evidence


def test_a_flat_loss_of_a_run_whose_updates_were_skipped_is_no_rate_too_low() -> None:
    run = evidence(checkpoint(score=0.0), curves=curve([15.0] * 10, skipped=(6, 7, 8, 9, 10)))
    assert ids(run)[0] == "instability"
    assert "learning_rate_too_low" not in ids(run)


# --- which one comes first -------------------------------------------------------------------------------------------


def finding(name: str, severity: str = "problem", confidence: float = 0.5) -> Finding:
    return Finding(name, severity, name, "", (), confidence)  # type: ignore[arg-type]


def test_a_cause_comes_before_its_effects_however_sure_they_are() -> None:
    found = ranked([finding("not_learned", confidence=0.99), finding("insufficient_data", "warning")])
    assert [f.id for f in found] == ["insufficient_data", "not_learned"]
    assert found[1].because_of == ("insufficient_data",)


def test_of_independent_findings_the_worse_comes_first_then_the_surer() -> None:
    found = ranked(
        [
            finding("overfitting", "warning", 0.99),
            finding("format_drift", "problem", 0.6),
            finding("catastrophic_forgetting", "problem", 0.9),
        ]
    )
    assert [f.id for f in found] == ["catastrophic_forgetting", "format_drift", "overfitting"]


def test_nothing_is_a_cause_of_its_own_causes() -> None:
    def reached(name: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        below = frozenset(EFFECTS.get(name, ()))
        assert name not in seen
        return below.union(*(reached(b, seen | {name}) for b in below))

    for name in EFFECTS:
        assert name not in reached(name)


def test_overfitting_and_forgetting_do_not_explain_one_another() -> None:
    forgetting = {"catastrophic_forgetting", "forgetting_over_budget"}
    assert not forgetting.intersection(EFFECTS["overfitting"])
    assert not forgetting.intersection(EFFECTS)
