"""The rule of the verdict and the diagnosis, on hand-made numbers."""

from dataclasses import replace

import pytest
from support.diagnosis_evidence import BUDGET, Held, estimate, gain, lost

from distributed_ft.evaluation.diagnose import diagnose
from distributed_ft.evaluation.report.evidence import (
    CheckpointScores,
    Curves,
    Difference,
    Evidence,
    Files,
    Forgetting,
    Skill,
    Training,
)
from distributed_ft.evaluation.verdict import (
    CATASTROPHIC_RATE,
    Verdict,
    decide,
    is_catastrophic,
    judged_step,
    percent,
    points,
)


def checkpoint(
    step: int, score: float, over_base: Difference, over_prompt: Difference | None, forgot: Forgetting | None
) -> CheckpointScores:
    return CheckpointScores(step, "complete", estimate(score), over_base, over_prompt, None, forgot)


def rule(*checkpoints: CheckpointScores, selected: int | None) -> Verdict:
    return decide(checkpoints, selected, base=estimate(0.1), few_shot=estimate(0.3), budget=BUDGET, examples=4)


@pytest.mark.parametrize(
    ("over_base", "over_prompt", "forgot", "kind", "words"),
    [
        (gain(0.8), gain(0.6), lost(0.01), "ship", "keeps its general skills"),
        (gain(0.8), None, lost(0.01), "not_enough_evidence", "it was not compared with a few-shot prompt yet"),
        (gain(0.8), gain(0.6), None, "not_enough_evidence", "what it forgot was not measured"),
        (gain(0.02), gain(0.6), lost(0.01), "not_enough_evidence", "No difference from the base model could be shown"),
        (gain(-0.2), gain(-0.4), lost(0.01), "do_not_ship", "Training made it worse"),
        (gain(0.8), gain(-0.2), lost(0.01), "do_not_ship", "A few-shot prompt would have done as well"),
        (gain(0.8), gain(0.01, 0.03), lost(0.01), "do_not_ship", "A few-shot prompt would have done as well"),
        (gain(0.8), gain(0.04, 0.08), lost(0.01), "not_enough_evidence", "as far as 200 items can tell"),
        (gain(0.8), gain(0.6), lost(0.08), "do_not_ship", "over the budget of 5 points"),
        (gain(0.8), gain(0.6), lost(0.5), "do_not_ship", "Catastrophic forgetting"),
        (gain(-0.1), gain(-0.2), lost(0.5), "do_not_ship", "Catastrophic forgetting, and nothing gained"),
    ],
)
def test_each_objection_gets_its_own_verdict(
    over_base: Difference, over_prompt: Difference | None, forgot: Forgetting | None, kind: str, words: str
) -> None:
    selected = 100 if forgot is None or forgot.mean_drop <= BUDGET else None
    verdict = rule(checkpoint(100, 0.9, over_base, over_prompt, forgot), selected=selected)
    assert verdict.kind == kind
    assert words in verdict.headline
    assert verdict.best_step == selected
    assert all(reason.holds for reason in verdict.reasons if kind == "ship")


@pytest.mark.parametrize(("examples", "no_prompt"), [(0, None), (None, None), (4, "4 examples do not fit")])
def test_a_prompt_that_was_not_wanted_or_cannot_be_is_no_objection(examples: int | None, no_prompt: str | None) -> None:
    row = checkpoint(100, 0.9, gain(0.8), None, lost(0.01))
    settings = {"base": estimate(0.1), "few_shot": None, "budget": BUDGET}
    verdict = decide([row], 100, **settings, examples=examples, no_prompt=no_prompt)  # type: ignore[arg-type]
    assert verdict.kind == "ship"
    assert verdict.reasons[1].holds is None
    assert (no_prompt or "evaluation.few_shot") in verdict.reasons[1].text


@pytest.mark.parametrize(
    ("known", "of", "drop"),
    [(0, 400, 0.0), (4, 400, 0.01), (19, 19, 0.0), (40, 1000, 0.04)],
    ids=["nothing", "almost nothing", "all of too few", "less than the budget lets go"],
)
def test_a_base_with_too_little_to_lose_says_nothing_about_forgetting(known: int, of: int, drop: float) -> None:
    forgot = replace(lost(drop), n=of, known=known, before=known / of)
    verdict = rule(checkpoint(100, 0.9, gain(0.8), gain(0.6), forgot), selected=100)
    assert verdict.kind == "not_enough_evidence"
    assert verdict.reasons[2].holds is None
    assert all(f"{known} of {of} general items" in text for text in (verdict.headline, verdict.reasons[2].text))


@pytest.mark.parametrize("over_base", [gain(0.95), gain(-0.95)])
def test_on_a_handful_of_items_nothing_is_decided(over_base: Difference) -> None:
    few = replace(over_base, n=19)
    verdict = rule(checkpoint(100, 0.9, few, few, lost(0.01)), selected=100)
    assert verdict.kind == "not_enough_evidence"
    assert "Too few items to tell (19)" in verdict.headline
    assert [reason.holds for reason in verdict.reasons] == [None, None, True]
    enough = replace(over_base, n=20)
    assert rule(checkpoint(100, 0.9, enough, enough, lost(0.01)), selected=100).kind != "not_enough_evidence"


def test_before_the_selection_the_best_inside_the_budget_is_judged_not_one_outside() -> None:
    rows = [
        checkpoint(s, score, gain(score), gain(0.5), lost(d)) for s, score, d in ((50, 0.8, 0.02), (100, 0.85, 0.1))
    ]
    verdict = rule(*rows, selected=None)
    assert verdict.kind == "not_enough_evidence"
    assert verdict.headline.startswith("Step 50 scores 80%")
    assert "the evaluation did not finish" in verdict.headline
    assert not any("No checkpoint" in text for text in (verdict.headline, *(reason.text for reason in verdict.reasons)))
    only_general = CheckpointScores(50, "complete", forgetting=lost(0.02))
    verdict = rule(only_general, rows[1], selected=None)
    assert (verdict.kind, "those inside it are not scored" in verdict.headline) == ("not_enough_evidence", True)
    assert not any("No checkpoint" in reason.text for reason in verdict.reasons)


@pytest.mark.parametrize("files", ["damaged", "removed"])
def test_a_checkpoint_whose_files_are_not_there_is_not_shipped(files: Files) -> None:
    gone = replace(checkpoint(100, 0.9, gain(0.8), gain(0.6), lost(0.0)), files=files)
    verdict = rule(gone, selected=None)
    assert (verdict.kind, f"its files are {files}" in verdict.headline) == ("not_enough_evidence", True)
    whole = checkpoint(200, 0.8, gain(0.7), gain(0.5), lost(0.0))
    assert judged_step([gone, whole], None, BUDGET) == 200


def test_without_a_task_the_newest_measured_checkpoint_tells_what_was_forgotten() -> None:
    rows = [CheckpointScores(s, "complete", forgetting=lost(d)) for s, d in ((100, 0.0), (200, 0.6))]
    assert judged_step([*rows, CheckpointScores(300, "complete")], None, BUDGET) == 200
    verdict = rule(*rows, selected=None)
    assert verdict.headline == "No checkpoint has been evaluated on a task yet."
    assert "Catastrophic forgetting: mean drop 60 points" in verdict.reasons[0].text


def test_forgetting_is_catastrophic_only_beyond_doubt_and_from_one_in_five_on() -> None:
    assert is_catastrophic(lost(0.3), BUDGET)
    assert is_catastrophic(lost(0.1, known=CATASTROPHIC_RATE), BUDGET)
    assert not is_catastrophic(lost(0.1, known=CATASTROPHIC_RATE - 0.01), BUDGET)
    assert not is_catastrophic(lost(0.3, half=0.26), BUDGET)  # the interval reaches into the budget
    assert not is_catastrophic(None, BUDGET)


def test_without_the_share_of_known_items_the_share_of_all_counts() -> None:
    assert is_catastrophic(replace(lost(0.3), of_known=None, rate=0.25), BUDGET)
    assert not is_catastrophic(replace(lost(0.3), of_known=None, rate=0.15), BUDGET)


def test_a_checkpoint_that_kept_its_skills_by_learning_nothing_does_not_hide_the_forgetting() -> None:
    idle = checkpoint(100, 0.1, gain(0.0), gain(-0.2), lost(0.0))
    learned = checkpoint(300, 0.9, gain(0.8), gain(0.6), lost(0.6))
    assert judged_step([idle, learned], 100, BUDGET) == 300
    verdict = rule(idle, learned, selected=100)
    assert verdict.kind == "do_not_ship"
    assert verdict.headline.startswith("Catastrophic forgetting: step 300")
    assert any("Step 100 is inside the forgetting budget" in reason.text for reason in verdict.reasons)


def test_a_good_early_checkpoint_is_shipped_although_later_ones_forgot() -> None:
    good = checkpoint(100, 0.85, gain(0.75), gain(0.5), lost(0.01))
    verdict = rule(good, checkpoint(300, 0.9, gain(0.8), gain(0.6), lost(0.6)), selected=100)
    assert (verdict.kind, verdict.best_step) == ("ship", 100)
    assert any("catastrophic forgetting at step 300" in reason.text for reason in verdict.reasons)


def test_with_none_inside_the_budget_the_best_scoring_one_is_judged_and_none_is_best() -> None:
    rows = [checkpoint(s, score, gain(score), None, lost(0.09)) for s, score in ((100, 0.5), (200, 0.9), (300, 0.9))]
    verdict = rule(*rows, selected=None)
    assert verdict.kind == "do_not_ship"
    assert "step 200 scores 90%" in verdict.headline
    assert verdict.best_step is None


def test_no_difference_comes_with_the_smallest_one_that_could_have_been_seen() -> None:
    verdict = rule(checkpoint(100, 0.12, gain(0.02), None, lost(0.0)), selected=100)
    assert "200 items would show a difference of 7 points or more" in verdict.reasons[0].text


def test_nothing_to_judge_is_not_enough_evidence() -> None:
    assert rule(selected=None).kind == "not_enough_evidence"
    assert rule(CheckpointScores(100, "complete"), selected=None).headline.startswith(
        "No checkpoint has been evaluated"
    )


@pytest.mark.parametrize(("share", "text"), [(0.941, "94.1%"), (1.0, "100%"), (0.0, "0%"), (0.9999, "100%")])
def test_percentages_are_short(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(("share", "text"), [(0.917, "+91.7"), (-0.02, "\N{MINUS SIGN}2.0"), (-0.0001, "0.0")])
def test_points_have_a_sign_unless_they_are_none(share: float, text: str) -> None:
    assert points(share) == text


def evidence(
    curves: Curves, checkpoints: tuple[CheckpointScores, ...] = (), skills: tuple[Skill, ...] = ()
) -> Evidence:
    """What `diagnose` looks at; the last checkpoint is the judged one."""
    return Evidence(
        name="run", path="runs/run", config={"optim": {"lr": 1e-3}, "method": {"rank": 16}}, environment={}, data={},
        budget=BUDGET, few_shot_examples=4, no_prompt=None, tasks=(), task=None, general=None, checkpoints=checkpoints,
        best_step=None,
        selection_reason=None, judged_step=checkpoints[-1].step if checkpoints else None, skills=skills, samples=(),
        curves=curves, training=Training(), evaluation_seconds=0.0, cut_off={}, missing=(),
    )  # fmt: skip


def curve(loss: list[float], validation: Held = (), skipped: tuple[int, ...] = ()) -> Curves:
    steps = tuple(range(1, len(loss) + 1))
    at, held_out = tuple(s for s, _ in validation), tuple(v for _, v in validation)
    return Curves(steps, tuple(loss), tuple(loss), 1, at, held_out, skipped)


FALLING = [2.0 * 0.98**i for i in range(200)]


def test_overfitting_is_never_called_forgetting() -> None:
    held_out = [(50, 0.9), (100, 0.6), (150, 0.8), (200, 1.1)]
    healthy = checkpoint(200, 0.9, gain(0.8), gain(0.6), lost(0.0))
    (finding,) = diagnose(evidence(curve(FALLING, held_out), (healthy,)))
    assert finding.id == "overfitting"
    assert "from 0.600 (step 100) to 1.100 (step 200)" in finding.evidence
    assert "forg" not in finding.title.lower() + finding.evidence.lower() + " ".join(finding.remedies).lower()


@pytest.mark.parametrize(
    "held_out",
    [
        [(50, 0.9), (100, 0.6), (150, 0.5), (200, 0.5)],  # still falling
        [(50, 0.9), (100, 0.600), (150, 0.602), (200, 0.61)],  # noise
        [(50, 0.012), (100, 0.010), (150, 0.011), (200, 0.012)],  # noise around almost nothing
        [(100, 0.6), (200, 1.1)],  # two points are no curve
    ],
)
def test_a_healthy_validation_curve_is_not_accused(held_out: Held) -> None:
    healthy = checkpoint(200, 0.9, gain(0.8), gain(0.6), lost(0.0))
    assert diagnose(evidence(curve(FALLING, held_out), (healthy,))) == ()


def test_forgetting_names_the_skills_and_the_setting_to_change() -> None:
    skills = (Skill("sorting", 0.9, 0.1, 40), Skill("units", 1.0, 0.95, 40))
    forgot = checkpoint(200, 0.9, gain(0.8), gain(0.6), lost(0.4))
    (finding,) = diagnose(evidence(curve(FALLING), (forgot,), skills=skills))
    assert (finding.id, finding.severity) == ("catastrophic_forgetting", "problem")
    assert "sorting (90% → 10%)" in finding.evidence
    assert "units" not in finding.evidence
    assert finding.remedies[0].startswith("data.train: mix in 10 to 20%")
    assert "method.rank: lower, for example 8 (is 16)" in finding.remedies


def test_unlearned_and_misfitted_are_told_apart_by_the_training_loss() -> None:
    unlearned = checkpoint(200, 0.1, gain(0.0), gain(-0.2), lost(0.0))
    cause, flat = diagnose(evidence(curve([2.0] * 200), (unlearned,)))
    (fitted,) = diagnose(evidence(curve(FALLING), (unlearned,)))
    assert flat.id == fitted.id == "not_learned"
    assert (cause.id, flat.because_of) == ("learning_rate_too_low", ("learning_rate_too_low",))
    assert flat.remedies[0].startswith("optim.lr: higher, for example 0.003")
    assert "the rows were fitted" in fitted.evidence


def test_skipped_steps_and_spikes_are_instability() -> None:
    loss = list(FALLING)
    loss[150] = 9.0
    (finding,) = diagnose(evidence(curve(loss, skipped=(40, 41))))
    assert (finding.id, finding.severity) == ("instability", "warning")
    assert "2 steps skipped" in finding.evidence
    assert "1 loss spike (step 151)" in finding.evidence
