import numpy as np
import pytest
from scipy import stats as scipy_stats

from benchmarks.interval_coverage import CASES, GUESSED, TASKS, TRANSFER, Case, coverage
from distributed_ft.errors import EvaluationError
from distributed_ft.evaluation.stats import (
    Pairs,
    bootstrap,
    detectable,
    difference,
    interval,
    mean,
    newcombe,
    paired_difference,
    paired_interval,
    wilson,
)

RNG = np.random.default_rng(7)


def test_standard_error_is_scipys() -> None:
    scores = RNG.random(57)
    result = mean(scores)
    assert result.value == pytest.approx(scores.mean())
    assert result.stderr == pytest.approx(scipy_stats.sem(scores))
    assert result.n == 57


def test_one_score_alone_has_the_largest_standard_error() -> None:
    assert mean([1.0]).stderr == 0.5


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 3), (187, 200), (500, 1000)])
def test_wilson_interval_is_scipys(right: int, n: int) -> None:
    expected = scipy_stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("values", [RNG.choice([-1.0, 0.0, 1.0], 80), RNG.normal(size=60)])
def test_bootstrap_interval_is_scipys(values: np.ndarray) -> None:
    expected = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap(values) == pytest.approx((expected.low, expected.high), abs=0.015)


def pairs(kept: int, won: int, lost: int, wrong: int) -> tuple[list[int], list[int]]:
    """Scores before and after, of so many items that were right or wrong."""
    return [1] * kept + [0] * won + [1] * lost + [0] * wrong, [1] * kept + [1] * won + [0] * lost + [0] * wrong


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, table III, method 10
        ((59, 6, 16, 80), -0.1186, -0.0046),  # Cavo et al. 2012; Fagerland, Lydersen and Laake 2017, chapter 8
    ],
)
def test_newcombes_interval_is_that_of_the_published_examples(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    assert newcombe(*pairs(*table)) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("before", "after"), [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.25, 1.0), (1.0, 0.9)]
)
def test_items_that_are_all_alike_leave_the_more_doubt_the_fewer_they_are(before: float, after: float) -> None:
    widths = []
    for n in (1, 6, 200):
        low, high = paired_interval([([before] * n, [after] * n)])
        assert low <= after - before <= high
        widths.append(high - low)
    assert widths[0] > widths[1] > 0.3 > 0.05 > widths[2] > 0.01  # at 200, about the 3 / n of the rule of three
    two_tasks = paired_interval([([before] * 6, [after] * 6)] * 2)
    assert two_tasks[1] - two_tasks[0] == pytest.approx(widths[1] / 2**0.5)


def test_every_task_has_the_same_weight_in_an_interval() -> None:
    many_lost, few_won = ([1.0] * 1000, [0.0] * 1000), ([0.0] * 10, [1.0] * 10)
    low, high = paired_interval([many_lost, few_won])
    assert low == pytest.approx((paired_interval([few_won])[0] - 1) / 2, abs=0.001)
    assert high == pytest.approx(0, abs=0.005)


def test_paired_difference_is_after_minus_before_and_repeatable() -> None:
    before, after = [0, 0, 1, 1, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0, 1, 0]
    difference = paired_difference(before, after)
    assert difference.value == pytest.approx(0.375)
    assert difference.low < 0.375 < difference.high
    assert difference.p == pytest.approx(scipy_stats.binomtest(1, 5, 0.5).pvalue)
    assert paired_difference(before, after) == difference


def test_every_comparison_has_a_p() -> None:
    before, after = [0.5, 0.2, 0.3, 0.0, 1.0, 0.4], [1.0, 0.4, 0.9, 0.1, 1.0, 0.9]
    credit = paired_difference(before, after)
    assert (credit.test, credit.p) == ("sign_flip", 2 * 0.5**5)  # all five that differ, one way
    passages = paired_difference([0, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1], ["p", "p", "p", "q", "q", "q"])
    assert (passages.test, passages.p, passages.units) == ("sign_flip", 0.5, 2)  # of two passages, not of five items


def test_a_difference_of_several_tasks_has_a_p_over_all_their_items() -> None:
    tasks = [Pairs([0, 0, 0, 1], [1, 1, 1, 1]), Pairs([0.5] * 8, [0.5] * 6 + [0.75, 0.25])]
    found = difference(tasks)
    assert found.value == pytest.approx(0.75 / 2)
    assert (found.n, found.units, found.test) == (12, 12, "sign_flip")
    assert found.p == pytest.approx(2 * 1 / 8 * 3 / 4)  # the three won alike, and the other two not against them


def test_the_clustered_standard_error_is_that_of_equation_4() -> None:
    # Miller 2024: SE^2 = (1 / n^2) sum over clusters of all products of residuals; and G / (G - 1) for n / (n - 1)
    scores, clusters = RNG.random(12), ["a"] * 5 + ["b"] * 3 + ["c"] * 3 + ["d"]
    residuals = scores - scores.mean()
    products = sum(residuals[i] * residuals[j] for i in range(12) for j in range(12) if clusters[i] == clusters[j])
    found = mean(scores, clusters)
    assert found.stderr**2 == pytest.approx(4 / 3 * products / 12**2)
    assert (found.n, found.units) == (12, 4)


def test_copies_of_items_do_not_make_a_score_surer() -> None:
    scores = [0.0, 1.0, 1.0, 0.5, 1.0, 0.0, 0.25, 1.0]
    copied, clusters = np.repeat(scores, 6), [str(i // 6) for i in range(48)]
    assert mean(copied, clusters).stderr == pytest.approx(mean(scores).stderr)
    assert mean(copied).stderr < mean(scores).stderr / 2
    shifted = np.minimum(1.0, np.add(scores, 0.25))
    alone, together = paired_difference(scores, shifted), paired_difference(copied, np.repeat(shifted, 6), clusters)
    assert (together.low, together.high, together.p) == pytest.approx((alone.low, alone.high, alone.p))
    assert together.detectable == pytest.approx(alone.detectable)


def test_items_that_stand_alone_are_what_they_are_without_clusters() -> None:
    scores = RNG.random(20)
    assert mean(scores, [None] * 20) == mean(scores, [str(i) for i in range(20)]) == mean(scores)
    assert mean(scores, ["a", "a", *[None] * 18]).units == 19


def test_one_cluster_alone_has_the_largest_standard_error() -> None:
    assert mean([0.0, 1.0, 1.0], ["a"] * 3).stderr == 0.5
    low, high = interval(mean([0.0, 1.0, 1.0], ["a"] * 3))
    assert 0 <= low < 0.2
    assert 0.9 < high <= 1


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 3), (187, 200)])
def test_the_interval_of_right_or_wrong_items_is_wilsons(right: int, n: int) -> None:
    scores = [1.0] * right + [0.0] * (n - right)
    assert interval(mean(scores)) == pytest.approx(wilson(right, n))


def test_partial_credit_is_surer_than_right_or_wrong_items_of_the_same_mean() -> None:
    credit, binary = interval(mean([0.6, 0.8] * 30)), interval(mean(([1.0] * 7 + [0.0] * 3) * 6))
    assert binary[0] < credit[0] < 0.7 < credit[1] < binary[1]
    assert interval(mean([0.5] * 100)) == pytest.approx((0.5 - wilson(0, 100)[1] / 2, 0.5 + wilson(0, 100)[1] / 2))


def test_the_bootstrap_draws_clusters_whole() -> None:
    scores = RNG.random(40)
    copied, clusters = np.repeat(scores, 5), [str(i // 5) for i in range(200)]
    assert bootstrap(copied, clusters) == pytest.approx(bootstrap(scores), abs=0.01)
    assert np.ptp(bootstrap(copied)) < np.ptp(bootstrap(scores)) / 2


def test_2_8_standard_errors_are_detectable_and_at_least_five_items() -> None:
    assert detectable(0.02, 1000) == pytest.approx(2.8 * 0.02, rel=0.01)
    assert detectable(0.02, 10) > 0.06
    assert detectable(0.0, 200) == pytest.approx(5 / 200)
    assert detectable(0.9, 3) == 1


def test_a_difference_that_is_detectable_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(4)
    lost, n = 0.08, 400
    error = np.sqrt((0.1 + 2 * lost - 0.1**2) / n)  # of items of which 18% are won and 8% lost
    won = lost + detectable(float(error), n)
    found = 0
    for _ in range(400):
        kinds = rng.choice(3, n, p=[won, lost, 1 - won - lost])
        low, _ = paired_interval([(kinds == 1, kinds == 0)])
        found += low > 0
    assert found / 400 == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_an_error(bad: float) -> None:
    scores = [0.5, 1.0, bad, 0.0]
    for use in (mean, bootstrap, lambda s: paired_difference(s, s), lambda s: paired_interval([(s, s)])):
        with pytest.raises(EvaluationError, match=r"1 of 4 scores are not numbers, the first is .* of item 3"):
            use(scores)


MAIN = [case for case in CASES if case.required]
SLOW = (TASKS, TRANSFER, GUESSED)


@pytest.mark.parametrize("case", MAIN, ids=[f"{case.interval}, {case.scenario}" for case in MAIN])
def test_the_intervals_that_decide_hold_the_truth_19_times_in_20(case: Case) -> None:
    if case.interval in SLOW:
        assert coverage(case, 200, trials=1000, seed=1)["coverage"] == pytest.approx(0.95, abs=0.015)
    else:
        found = [coverage(case, n, trials=3000, seed=1)["coverage"] for n in (100, 200)]
        assert np.mean(found) == pytest.approx(0.95, abs=0.01)
