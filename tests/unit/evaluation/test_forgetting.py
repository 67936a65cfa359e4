import numpy as np
import pytest
from scipy import stats as scipy_stats

from distributed_ft.errors import EvaluationError
from distributed_ft.evaluation.forgetting import Suite, forgetting

# eight items: kept, kept, kept, lost, lost, won, wrong, wrong
BEFORE = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
AFTER = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
GROUPS = ["a", "a", "b", "b", "b", "c", "c", None]


def test_rate_counts_items_right_before_and_wrong_after() -> None:
    result = forgetting([Suite(BEFORE, AFTER, GROUPS)])
    assert result.rate == pytest.approx(2 / 8)
    assert result.of_known == pytest.approx(2 / 5)
    assert result.mean_drop == pytest.approx(1 / 8)  # one was won, so an average hides half of the loss
    assert (result.n, result.known) == (8, 5)


def test_intervals_bracket_the_rates() -> None:
    result = forgetting([Suite(BEFORE * 20, AFTER * 20, GROUPS * 20)])
    assert result.low < result.rate < result.high
    assert result.of_known_low < result.of_known < result.of_known_high
    assert result.drop_low < result.mean_drop < result.drop_high


def test_rate_intervals_are_wilsons() -> None:
    result = forgetting([Suite(BEFORE * 20, AFTER * 20, GROUPS * 20)])
    of_all = scipy_stats.binomtest(40, 160).proportion_ci(method="wilson")
    of_known = scipy_stats.binomtest(40, 100).proportion_ci(method="wilson")
    assert (result.low, result.high) == pytest.approx((of_all.low, of_all.high))
    assert (result.of_known_low, result.of_known_high) == pytest.approx((of_known.low, of_known.high))


def test_an_unchanged_model_forgot_nothing_as_far_as_so_few_items_can_tell() -> None:
    few, many = (forgetting([Suite(BEFORE * k, BEFORE * k, GROUPS * k)]) for k in (1, 100))
    for result in (few, many):
        assert (result.rate, result.low, result.mean_drop) == (0, 0, 0)
        assert result.drop_low < 0 < result.drop_high
    assert few.high > 0.3 > 0.005 > many.high > 0
    assert many.drop_high < few.drop_high / 5


def test_suites_count_the_same_in_the_mean_drop_whatever_their_size() -> None:
    large, small = Suite([1.0] * 400, [1.0] * 400, [None] * 400), Suite([1.0] * 20, [0.0] * 16 + [1.0] * 4, [None] * 20)
    result = forgetting([large, small])
    assert result.mean_drop == pytest.approx(0.8 / 2)
    assert result.rate == pytest.approx(16 / 420)  # of all items
    assert (result.n, result.known, result.before) == (420, 420, 1)
    assert result.drop_low == pytest.approx(0.4 - (0.8 - forgetting([small]).drop_low) / 2, abs=0.002)


def test_a_base_that_knows_nothing_has_nothing_to_forget() -> None:
    result = forgetting([Suite([0.0] * 4, [1.0, 0.0, 0.0, 0.0], ["a"] * 4)])
    assert (result.rate, result.of_known, result.known, result.before) == (0.0, 0.0, 0, 0.0)
    assert (result.of_known_low, result.of_known_high) == (0, 1)
    assert result.mean_drop == -0.25


def test_the_ceiling_is_what_the_base_knew_guesses_aside() -> None:
    assert forgetting([Suite(BEFORE, AFTER, GROUPS)]).ceiling == pytest.approx(5 / 8)
    guessed = forgetting([Suite(BEFORE, [0.0] * 8, GROUPS, chance=0.25)])
    assert guessed.ceiling == pytest.approx((5 / 8 - 0.25) / 0.75)
    assert guessed.rate == pytest.approx(guessed.ceiling)  # all is wrong: nothing that was known is left
    assert guessed.of_known == pytest.approx(1)


def test_backward_transfer_is_the_mean_over_skills_whatever_their_size() -> None:
    # skills a, b, c and the item without one: 0, -2/3, +1/2, 0
    result = forgetting([Suite(BEFORE, AFTER, GROUPS)])
    assert result.backward_transfer == pytest.approx((0 - 2 / 3 + 1 / 2 + 0) / 4)
    assert result.backward_low < result.backward_transfer < result.backward_high
    alike = forgetting([Suite(BEFORE * 20, AFTER * 20, ["a"] * 160)])
    assert alike.backward_transfer == pytest.approx(-alike.mean_drop)
    assert (alike.backward_low, alike.backward_high) == pytest.approx((-alike.drop_high, -alike.drop_low), abs=0.01)


def test_each_skill_has_an_interval_and_a_p_adjusted_for_all_of_them() -> None:
    groups = ["lost"] * 20 + ["kept"] * 20 + ["hit"] * 20
    before, after = [1.0] * 60, [0.0] * 12 + [1.0] * 43 + [0.0] * 5
    found = forgetting([Suite(before, after, groups)]).by_group
    wilson = scipy_stats.binomtest(12, 20).proportion_ci(method="wilson")
    assert (found["lost"].low, found["lost"].high) == pytest.approx((wilson.low, wilson.high))
    assert found["lost"].drop_low < found["lost"].drop == 0.6 < found["lost"].drop_high
    assert [found[g].p for g in ("lost", "hit", "kept")] == pytest.approx([2 / 2**12, 2 / 2**5, 1])
    assert [found[g].p_holm for g in ("lost", "hit", "kept")] == pytest.approx([6 / 2**12, 4 / 2**5, 1])


def test_items_of_one_passage_make_forgetting_no_surer() -> None:
    rng = np.random.default_rng(6)
    before, after = (rng.random(60) < 0.8).astype(float), (rng.random(60) < 0.5).astype(float)
    alone = forgetting([Suite(before.tolist(), after.tolist(), [None] * 60)])
    copies = [np.repeat(x, 4).tolist() for x in (before, after)]
    together = forgetting([Suite(*copies, [None] * 240, clusters=[str(i // 4) for i in range(240)])])
    for name in ("rate", "low", "high", "of_known", "of_known_low", "drop_low", "backward_high"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), abs=0.02), name


def test_a_suite_of_guesses_that_lost_nothing_leaves_a_doubt() -> None:
    result = forgetting([Suite([1.0] * 20, [1.0] * 20, [None] * 20, chance=0.25)])
    assert (result.rate, result.low) == (0, 0)
    assert 0.05 < result.high < 0.3
    assert 0.05 < result.of_known_high < 0.3


def test_a_score_that_is_no_number_is_not_taken_for_a_wrong_answer() -> None:
    with pytest.raises(EvaluationError, match="not numbers"):
        forgetting([Suite([1.0, 1.0], [1.0, float("nan")], [None, None])])


def test_by_group_names_the_skill_that_was_lost() -> None:
    groups = forgetting([Suite(BEFORE, AFTER, GROUPS)]).by_group
    assert list(groups) == ["a", "b", "c"]
    assert (groups["b"].before, groups["b"].rate, groups["b"].n) == (1.0, pytest.approx(2 / 3), 3)
    assert groups["b"].after == pytest.approx(1 / 3)
    assert (groups["c"].before, groups["c"].after, groups["c"].rate) == (0.0, 0.5, 0.0)


@pytest.mark.parametrize("choices", [2, 4])
@pytest.mark.parametrize("forgets", [0.0, 0.15])
def test_chance_correction_finds_what_was_forgotten_among_guesses(choices: int, forgets: float) -> None:
    rng = np.random.default_rng(5)
    n, knows, learns = 50_000, 0.4, 0.2  # what is not known is guessed, each time anew
    draw = rng.random(n)
    known_before, known_after = draw < knows, (draw >= forgets) & (draw < knows + learns)
    before, after = (
        np.where(known, 1, rng.random(n) < 1 / choices).astype(float).tolist() for known in (known_before, known_after)
    )
    uncorrected = forgetting([Suite(before, after, [None] * n)])
    corrected = forgetting([Suite(before, after, [None] * n, chance=1 / choices)])
    assert abs(uncorrected.rate - forgets) > 0.015
    assert corrected.rate == pytest.approx(forgets, abs=0.01)
    assert corrected.of_known == pytest.approx(forgets / knows, abs=0.03)
    assert corrected.low <= corrected.rate <= corrected.high
    halves = [
        Suite(x[0], x[1], [None] * (n // 2), 1 / choices)
        for x in ((before[::2], after[::2]), (before[1::2], after[1::2]))
    ]
    assert forgetting(halves).rate == pytest.approx(corrected.rate, abs=0.002)
