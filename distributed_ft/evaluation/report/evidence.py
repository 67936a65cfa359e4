"""What a report is made of: everything known about a run, typed, with None where a thing is not known.

Scores and rates are shares in [0, 1]; `low` and `high` bound 95% intervals; losses are nats per supervised token.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from distributed_ft.evaluation.confusion import Confusion
from distributed_ft.evaluation.strength import Frontier
from distributed_ft.evaluation.task import CutOff

Files = Literal["complete", "damaged", "removed"]


@dataclass(frozen=True)
class Estimate:
    """A mean score over `n` items."""

    score: float
    stderr: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences (later minus earlier) over the `n` items that both models answered."""

    mean: float
    low: float
    high: float
    n: int
    detectable: float  # the smallest true difference that a test of n such items finds four times out of five
    p: float | None = None  # two-sided: McNemar's exact test, or the sign-flip test: see evaluation.stats
    p_holm: float | None = None  # p, adjusted for all the tasks that the two are compared on; None of a mean over tasks
    clusters: int | None = None  # how many the items are of; None: each stands alone

    @property
    def shown(self) -> bool:
        """Whether there is a difference beyond doubt, also for one task of several."""
        return not self.low <= 0 <= self.high and (self.p_holm is None or self.p_holm < 0.05)


@dataclass(frozen=True)
class Forgetting:
    """What a checkpoint lost on the general suite; a positive drop is a loss."""

    rate: float  # share of all items that are right before and wrong after, corrected for chance
    low: float
    high: float
    of_known: float | None  # the same items as a share of those right before; None if none was
    mean_drop: float
    drop_low: float
    drop_high: float
    n: int
    known: int  # items that the base had right
    before: float  # mean score of the base: no drop can be larger
    ceiling: float | None = None  # share that the base knew, guesses aside: rate can be no larger
    of_known_low: float | None = None
    of_known_high: float | None = None
    backward_transfer: float | None = None  # mean over the skills of after minus before (Lopez-Paz and Ranzato 2017)
    backward_low: float | None = None
    backward_high: float | None = None


@dataclass(frozen=True)
class Skill:
    """One group of general items, before and after."""

    name: str
    before: float
    after: float
    n: int
    drop_low: float = -1.0
    drop_high: float = 1.0
    p_holm: float = 1.0  # two-sided, of no change, adjusted for all the skills
    rate: float = 0.0  # share of the items right before and wrong after, less what guessing explains
    low: float = 0.0
    high: float = 1.0
    ceiling: float = 1.0  # share that the base knew: rate can be no larger

    @property
    def drop(self) -> float:
        return self.before - self.after


@dataclass(frozen=True)
class TaskComparison:
    """One task three ways: base, base with examples in the prompt, tuned (the judged checkpoint)."""

    name: str
    metric: str
    base: Estimate | None
    few_shot: Estimate | None
    tuned: Estimate | None
    versus_base: Difference | None
    versus_few_shot: Difference | None
    further: dict[str, tuple[float | None, ...]] = field(default_factory=dict)  # means over items, of all three
    totals: dict[str, tuple[float | None, ...]] = field(default_factory=dict)  # of all answers together, in any unit
    empty: tuple[float | None, ...] = ()  # shares of answers without text
    confusion: Confusion | None = None  # of the tuned model


@dataclass(frozen=True)
class Divergence:
    """Mean KL(base || tuned) of the next token of held-out text, in nats a token."""

    kl: float
    low: float
    high: float
    tokens: int
    texts: int


@dataclass(frozen=True)
class CheckpointScores:
    """One checkpoint. Task figures are means over the tasks when there are several."""

    step: int
    files: Files
    task: Estimate | None = None
    versus_base: Difference | None = None
    versus_few_shot: Difference | None = None
    general: Estimate | None = None
    forgetting: Forgetting | None = None
    validation_loss: float | None = None
    drift: Divergence | None = None


@dataclass(frozen=True)
class Curves:
    """Losses by step; `smoothed` is a centred moving average of `loss` over `window` steps."""

    steps: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()
    smoothed: tuple[float, ...] = ()
    window: int = 1
    validation_steps: tuple[int, ...] = ()
    validation_loss: tuple[float, ...] = ()
    skipped: tuple[int, ...] = ()  # steps whose update was skipped: loss or gradient not finite


@dataclass(frozen=True)
class Answer:
    text: str
    score: float
    right: bool


@dataclass(frozen=True)
class SideBySide:
    """One item with every model's answer to it."""

    task: str
    id: str
    group: str | None
    request: str
    reference: str
    base: Answer | None
    few_shot: Answer | None
    tuned: Answer


@dataclass(frozen=True)
class SampleGroup:
    """Some of the items that went one way, and how many there are in all."""

    kind: Literal["fixed", "broken", "still_wrong", "forgotten"]
    total: int
    shown: tuple[SideBySide, ...]


@dataclass(frozen=True)
class Missing:
    """Something the report would show; `remedy` is the command or the key that makes it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Prompt:
    """How many examples were chosen for the prompt of a task, and the validation score of each number tried."""

    task: str
    used: int
    tried: tuple[tuple[int, float], ...]
    n: int  # validation rows


@dataclass(frozen=True)
class Deviation:
    """The most frequent way in which a task's wrong answers leave the format of the references."""

    count: int  # answers that leave it this way
    start: float  # median share of the reference that stands before that place
    character: int  # the same in characters
    expected: str  # an excerpt of a reference around that place, …
    found: str  # … and of the answer
    same_words: int  # of them, answers of the very words of the reference
    in_base: int  # answers of the base model that leave it this way
    in_training: float | None  # share of the training answers that are written this way; None: not known


@dataclass(frozen=True)
class TaskAnswers:
    """What the answers of one checkpoint to one task look like: counts of its `n` items."""

    task: str
    step: int
    n: int
    wrong: int
    empty: int
    ran_on: int  # wrong ones that go on behind the right answer, or are far longer than any
    base_ran_on: int  # the same of the base model
    as_base: int  # word for word the base's
    from_training: int  # wrong ones that are, word for word, an answer of a training row
    references_in_training: int  # items whose right answer is one of a training row as well, as labels are
    training_known: bool  # the training file could be read
    deviation: Deviation | None = None


@dataclass(frozen=True)
class Training:
    """Cost of the run, summed over `metrics.jsonl`."""

    steps: int = 0
    epochs: float | None = None
    tokens: int | None = None  # supervised, over all processes
    seconds: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds else None


@dataclass(frozen=True)
class Evidence:
    """One run directory, read. `judged_step` is the checkpoint the comparisons are about (see `verdict.judged`)."""

    name: str
    path: str
    config: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    budget: float  # largest mean drop on the general suite that a shipped checkpoint may have
    few_shot_examples: int | None
    no_prompt: str | None  # why there is no few-shot prompt, where one was asked for and cannot be
    tasks: tuple[TaskComparison, ...]
    task: TaskComparison | None  # the only task, or the mean over the tasks
    general: TaskComparison | None  # the same comparison on the general suite
    checkpoints: tuple[CheckpointScores, ...]
    best_step: int | None  # chosen by the selection, inside the budget
    selection_reason: str | None
    judged_step: int | None
    skills: tuple[Skill, ...]
    samples: tuple[SampleGroup, ...]
    curves: Curves
    training: Training
    evaluation_seconds: float
    cut_off: dict[str, CutOff]  # by task
    missing: tuple[Missing, ...]
    choosing: TaskComparison | None = None  # on the rows of `checkpoints`, where `task` is of other ones: see below
    how_chosen: str | None = None  # what the way of choosing means for the score of the chosen one
    optimistic: bool = False  # it was chosen on rows that it is judged by
    prompts: tuple[Prompt, ...] = ()  # few-shot prompts that were chosen, by task
    ended_early: str | None = None  # why the training did not go on to its last step
    strength: Frontier | None = None  # of a checkpoint's adapter, where it was scored at several
    answers: tuple[TaskAnswers, ...] = ()  # to each task, of the judged checkpoint and of the newest one
    plain_text_rows: float | None = None  # share of the training rows without turns; None: not known

    @property
    def judged(self) -> CheckpointScores | None:
        """The judged checkpoint with its scores on the rows of `task`: test rows, while the checkpoints are chosen and
        compared with one another (`checkpoints`, `choosing`) on validation rows, where there are any."""
        row = next((c for c in self.checkpoints if c.step == self.judged_step), None)
        if row is None or self.task is None or self.task.tuned is None:
            return row
        on = self.task
        return replace(row, task=on.tuned, versus_base=on.versus_base, versus_few_shot=on.versus_few_shot)
