"""Ship, do not ship, or not enough evidence: the rule, as a pure function of the scores.

A tuned checkpoint is worth shipping when it does three things, each shown by a paired 95% interval on held-out items:

1. it beats the base model on the task (lower bound above 0);
2. it beats the base model with examples in the prompt (lower bound above 0): otherwise a prompt would have done as
   well, at no cost and with nothing forgotten;
3. it keeps the general skills: mean drop at most `evaluation.select.forgetting_budget`.

An interval that contains 0 is not a proof of equality. Where a difference worth having is still possible, the verdict
is "not enough evidence", with the smallest difference that the test could have seen. So it is where one of the three
was not, or could not be, tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distributed_ft.evaluation.report.evidence import CheckpointScores, Difference, Estimate, Forgetting

Kind = Literal["ship", "do_not_ship", "not_enough_evidence"]

CATASTROPHIC_RATE = 0.2
"""Forgetting is called catastrophic when one in five of the items that the base model had right are wrong, and only if
the mean drop is over the budget beyond doubt as well (lower bound of its 95% interval)."""

WORTHWHILE_GAIN = 0.05
"""A gain over few-shot prompting that even at its upper bound stays under 5 points does not pay for a training run."""

MIN_ITEMS = 20
"""With fewer items one of them is more than the gain that is worth having: no verdict rests on so few."""


@dataclass(frozen=True)
class Reason:
    """One step of the argument; `holds` is None where it could not be tested."""

    holds: bool | None
    text: str


@dataclass(frozen=True)
class Verdict:
    """`best_step` is the selected checkpoint inside the budget; None if there is none."""

    kind: Kind
    headline: str
    reasons: tuple[Reason, ...]
    best_step: int | None


def percent(share: float) -> str:
    """0.941 -> `94.1%`; a whole number where a decimal would say nothing."""
    return f"{100 * share:.1f}".removesuffix(".0").replace("-", "\N{MINUS SIGN}") + "%"


def fixed_percent(share: float) -> str:
    """For columns: always one decimal."""
    return f"{100 * share:.1f}%"


def interval(estimate: Estimate) -> str:
    """`[89.8, 96.5]`, in percent."""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def points(share: float) -> str:
    """A difference of shares with its sign, in percentage points: 0.917 -> `+91.7`."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def bare_points(share: float) -> str:
    """A drop in points, without a plus sign."""
    return points(share).removeprefix("+")


def points_interval(low: float, high: float) -> str:
    return f"[{points(low)}, {points(high)}]"


def is_catastrophic(forgetting: Forgetting | None, budget: float) -> bool:
    """The definition used everywhere in the report: see `CATASTROPHIC_RATE`."""
    if forgetting is None:
        return False
    lost = forgetting.rate if forgetting.of_known is None else forgetting.of_known
    return forgetting.drop_low > budget and lost >= CATASTROPHIC_RATE


def inside_budget(checkpoint: CheckpointScores, budget: float) -> bool:
    """Whether it kept enough of the general suite, as in `select.inside`."""
    forgetting = checkpoint.forgetting
    return forgetting is None or forgetting.mean_drop <= budget + 1e-12  # not for rounding's sake


def _any_keeps(checkpoints: Sequence[CheckpointScores], budget: float) -> bool:
    return any(c.forgetting is not None and inside_budget(c, budget) for c in checkpoints)


def can_show_forgetting(forgetting: Forgetting, budget: float) -> bool:
    """Whether the base had enough right: some items, and more than the budget lets go."""
    return forgetting.known >= MIN_ITEMS and forgetting.before > budget


def lost_share(forgetting: Forgetting) -> str:
    """`62% of what the base model had right is now wrong`."""
    if forgetting.of_known is None:
        return f"{percent(forgetting.rate)} of the items were right and are now wrong"
    return f"{percent(forgetting.of_known)} of what the base model had right is now wrong"


def gains(difference: Difference | None) -> bool:
    """Better beyond doubt: the paired interval lies above 0."""
    return difference is not None and difference.low > 0


def best_scoring(checkpoints: Sequence[CheckpointScores]) -> CheckpointScores | None:
    """Highest task score, the earlier one at a tie."""
    scored = [c for c in checkpoints if c.task is not None]
    return max(scored, key=lambda c: (c.task.score if c.task else 0.0, -c.step), default=None)


def judged_step(checkpoints: Sequence[CheckpointScores], selected: int | None, budget: float) -> int | None:
    """The checkpoint that the comparisons and the verdict are about.

    The selected one, or the best scoring of those that could be; but if that one stayed inside the budget only because
    it had learned nothing yet, while a later one learned the task and forgot catastrophically, then that later one is
    the story to tell. Without a task, the newest one whose forgetting was measured.
    """
    top = best_scoring(checkpoints)
    if top is None:
        return max((c.step for c in checkpoints if c.forgetting is not None), default=None)
    inside = [c for c in checkpoints if inside_budget(c, budget)]
    whole = [c for c in inside if c.files == "complete"]
    chosen = best_scoring([c for c in checkpoints if c.step == selected])
    chosen = chosen or best_scoring(whole) or best_scoring(inside) or top
    learned_later = gains(top.versus_base) and is_catastrophic(top.forgetting, budget)
    return top.step if learned_later and not gains(chosen.versus_base) else chosen.step


def decide(
    checkpoints: Sequence[CheckpointScores],
    selected: int | None,
    *,
    base: Estimate | None,
    few_shot: Estimate | None,
    budget: float,
    examples: int | None = None,
    no_prompt: str | None = None,
    task: str = "the task",
    judged: CheckpointScores | None = None,
    chosen: Reason | None = None,
) -> Verdict:
    """The verdict on the judged checkpoint (`judged_step`).

    Args:
        base, few_shot: their scores on the task.
        examples: in the prompt, as many as were asked for.
        no_prompt: why there cannot be such a prompt.
        judged: the judged checkpoint by its scores on rows that it was not chosen by, where there are any.
        chosen: what the way of choosing means for its score.
    """
    step = judged_step(checkpoints, selected, budget)
    candidate = judged if judged is not None else next((c for c in checkpoints if c.step == step), None)
    if candidate is None or candidate.task is None or candidate.versus_base is None:
        kept = (_kept(candidate.forgetting, budget),) if candidate and candidate.forgetting else ()
        return Verdict("not_enough_evidence", _nothing_to_judge(checkpoints, candidate, base), kept, selected)
    prompt = f"{examples} examples in the prompt" if examples else "examples in the prompt"
    reasons = (
        _against_base(candidate.versus_base),
        _against_few_shot(candidate.versus_few_shot, prompt, no_prompt),
        _kept(candidate.forgetting, budget),
        *_beside_the_point(checkpoints, candidate, selected, budget),
        *((chosen,) if chosen else ()),
    )
    score = f"step {candidate.step} scores {percent(candidate.task.score)} on {task}"
    beside = [f"base {percent(base.score)}" if base else "", f"few-shot {percent(few_shot.score)}" if few_shot else ""]
    score += f" ({', '.join(b for b in beside if b)})" if any(beside) else ""
    prompt_due = bool(examples) and no_prompt is None
    kind, headline = (
        _damage(checkpoints, candidate, score, budget)
        or _use(candidate, score, prompt_due)
        or (_certainty(candidate, score, selected, budget))
    )
    return Verdict(kind, headline, reasons, selected)


# --- the first objection that stands decides; damage comes before lack of use --------------------------------------

Ruling = tuple[Kind, str]


def _damage(
    checkpoints: Sequence[CheckpointScores], candidate: CheckpointScores, score: str, budget: float
) -> Ruling | None:
    gain, forgetting = candidate.versus_base, candidate.forgetting
    assert gain is not None
    if forgetting is not None and is_catastrophic(forgetting, budget):
        lost = f"general skills fall by {_plain_points(forgetting.mean_drop)}"
        if gain.low > 0:
            return "do_not_ship", f"Catastrophic forgetting: {score}, but {lost}."
        return "do_not_ship", f"Catastrophic forgetting, and nothing gained: {score}; {lost}."
    if gain.high < 0 and gain.n >= MIN_ITEMS:
        return "do_not_ship", f"Training made it worse: {score}."
    if forgetting is not None and not inside_budget(candidate, budget):
        over = (
            f"general skills fall by {_plain_points(forgetting.mean_drop)}, over the budget of {_plain_points(budget)}"
        )
        if _any_keeps(checkpoints, budget):
            return "not_enough_evidence", f"{_capital(score)}, but {over}; those inside it are not scored on the task."
        return "do_not_ship", f"No checkpoint keeps its general skills: {score}, but {over}."
    return None


def _use(candidate: CheckpointScores, score: str, prompt_due: bool) -> Ruling | None:
    gain, prompt = candidate.versus_base, candidate.versus_few_shot
    assert gain is not None
    if gain.n < MIN_ITEMS:
        return "not_enough_evidence", f"Too few items to tell ({gain.n}): {score}."
    if gain.low <= 0:
        return "not_enough_evidence", f"No difference from the base model could be shown: {score}."
    if prompt is None:
        untried = f"{_capital(score)}, but it was not compared with a few-shot prompt yet."
        return ("not_enough_evidence", untried) if prompt_due else None
    if prompt.low <= 0:
        if prompt.mean <= 0 or prompt.high < WORTHWHILE_GAIN:
            return "do_not_ship", f"A few-shot prompt would have done as well: {score}."
        tell = f"as far as {prompt.n} items can tell"
        return "not_enough_evidence", f"A few-shot prompt would have done as well, {tell}: {score}."
    return None


def _certainty(candidate: CheckpointScores, score: str, selected: int | None, budget: float) -> Ruling:
    forgetting, capital = candidate.forgetting, _capital(score)
    if forgetting is None:
        return "not_enough_evidence", f"{capital}; what it forgot was not measured."
    if not can_show_forgetting(forgetting, budget):
        few = f"the base model had {forgetting.known} of {forgetting.n} general items right"
        return "not_enough_evidence", f"{capital}; what it forgot cannot be told, as {few}."
    if candidate.files != "complete":
        return "not_enough_evidence", f"{capital}, but its files are {candidate.files}."
    if selected is None:
        why = "the evaluation did not finish, or what it chose is gone"
        return "not_enough_evidence", f"{capital}, but no checkpoint is selected: {why}."
    return "ship", f"{capital} and keeps its general skills."


def _capital(score: str) -> str:
    return score[0].upper() + score[1:]


# --- the steps of the argument -------------------------------------------------------------------------------------


def _nothing_to_judge(
    checkpoints: Sequence[CheckpointScores], candidate: CheckpointScores | None, base: Estimate | None
) -> str:
    if not checkpoints:
        return "There is no checkpoint yet."
    if candidate is None or candidate.task is None:
        return "No checkpoint has been evaluated on a task yet."
    return (
        "The base model has not been evaluated on the same items." if base is None else "No items in common with base."
    )


def _against_base(gain: Difference) -> Reason:
    measured = f"{points(gain.mean)} points {points_interval(gain.low, gain.high)} on the same {gain.n} items"
    if gain.n < MIN_ITEMS:
        return Reason(None, f"Against the base model: {measured}, too few to tell.")
    if gain.low > 0:
        return Reason(True, f"It beats the base model: {measured}.")
    if gain.high < 0:
        return Reason(False, f"It is worse than the base model: {measured}.")
    seen = _detectable(gain)
    return Reason(None, f"It may be no better than the base model: {measured}; {seen}.")


def _against_few_shot(gain: Difference | None, prompt: str, no_prompt: str | None) -> Reason:
    if gain is None:
        return Reason(None, f"It was not compared with a few-shot prompt ({no_prompt or 'evaluation.few_shot'}).")
    measured = f"{points(gain.mean)} points {points_interval(gain.low, gain.high)} on the same {gain.n} items"
    if gain.n < MIN_ITEMS:
        return Reason(None, f"Against the base model with {prompt}: {measured}, too few to tell.")
    if gain.low > 0:
        return Reason(True, f"It beats the base model with {prompt}: {measured}.")
    if gain.high < 0:
        return Reason(False, f"The base model with {prompt} does better: {measured}.")
    return Reason(False, f"The base model with {prompt} does as well: {measured}; {_detectable(gain)}.")


def _kept(forgetting: Forgetting | None, budget: float) -> Reason:
    if forgetting is None:
        return Reason(None, "What it forgot was not measured (evaluation.general).")
    interval = f"[{bare_points(forgetting.drop_low)}, {bare_points(forgetting.drop_high)}]"
    drop = f"mean drop {_plain_points(forgetting.mean_drop)} {interval}, {lost_share(forgetting)}, {forgetting.n} items"
    if is_catastrophic(forgetting, budget):
        return Reason(False, f"Catastrophic forgetting: {drop}; the budget is {_plain_points(budget)}.")
    if forgetting.mean_drop > budget + 1e-12:
        return Reason(False, f"It forgets more than the budget of {_plain_points(budget)}: {drop}.")
    if not can_show_forgetting(forgetting, budget):
        known = f"the base model had {forgetting.known} of {forgetting.n} general items right"
        return Reason(None, f"What it forgot cannot be told, as {known}: {drop}.")
    if forgetting.drop_high > budget:
        doubt = f"the budget of {_plain_points(budget)} lies inside the interval"
        return Reason(True, f"It keeps its general skills, not beyond doubt ({doubt}): {drop}.")
    return Reason(True, f"It keeps its general skills within the budget of {_plain_points(budget)}: {drop}.")


def _beside_the_point(
    checkpoints: Sequence[CheckpointScores], candidate: CheckpointScores, selected: int | None, budget: float
) -> list[Reason]:
    """Why this checkpoint was judged and not another."""
    if selected is not None and selected != candidate.step:
        inside = f"Step {selected} is inside the forgetting budget, but it has not learned the task"
        return [Reason(False, f"{inside}; these are the numbers of step {candidate.step}, the best scoring.")]
    if selected is None and not _any_keeps(checkpoints, budget):
        why = f"No checkpoint is inside the forgetting budget; step {candidate.step} is the best scoring one"
        return [Reason(False, f"{why}.")]
    later = [c for c in checkpoints if c.step != candidate.step and is_catastrophic(c.forgetting, budget)]
    if later:
        steps = str(later[0].step) if len(later) == 1 else f"{later[0].step} to {later[-1].step}"
        return [Reason(None, f"Not every checkpoint would do: catastrophic forgetting at step {steps}.")]
    return []


def _detectable(gain: Difference) -> str:
    return f"{gain.n} items would show a difference of {_plain_points(gain.detectable)} or more"


def _plain_points(share: float) -> str:
    text = bare_points(share).removesuffix(".0")
    return f"{text} point" if text == "1" else f"{text} points"
