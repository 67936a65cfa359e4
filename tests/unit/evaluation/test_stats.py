import numpy as np
import pytest
from scipy import stats as scipy_stats

from distributed_ft.evaluation.stats import bootstrap, mcnemar, mean, paired_difference, wilson

RNG = np.random.default_rng(7)


def test_standard_error_is_scipys() -> None:
    scores = RNG.random(57)
    result = mean(scores)
    assert result.value == pytest.approx(scores.mean())
    assert result.stderr == pytest.approx(scipy_stats.sem(scores))
    assert result.n == 57


def test_one_score_alone_has_the_largest_standard_error() -> None:
    assert mean([1.0]).stderr == 0.5


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (3, 3), (1, 9), (12, 2), (40, 70), (900, 1100)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    before = [1] * lost + [0] * won + [1, 1, 0]
    after = [0] * lost + [1] * won + [1, 1, 0]
    expected = scipy_stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert mcnemar(before, after) == pytest.approx(expected)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 3), (187, 200), (500, 1000)])
def test_wilson_interval_is_scipys(right: int, n: int) -> None:
    expected = scipy_stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("values", [RNG.choice([-1.0, 0.0, 1.0], 80), RNG.normal(size=60)])
def test_bootstrap_interval_is_scipys(values: np.ndarray) -> None:
    expected = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap([values]) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_bootstrap_gives_every_task_the_same_weight() -> None:
    many_zeros, few_ones = np.zeros(1000), np.ones(10)
    assert bootstrap([many_zeros, few_ones]) == pytest.approx((0.5, 0.5))


def test_bootstrap_interval_covers_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(400):
        low, high = bootstrap([rng.binomial(1, 0.4, 150)], seed=trial, resamples=600)
        covered += low <= 0.4 <= high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)


def test_paired_difference_is_after_minus_before_and_repeatable() -> None:
    before, after = [0, 0, 1, 1, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0, 1, 0]
    difference = paired_difference(before, after)
    assert difference.value == pytest.approx(0.375)
    assert difference.low < 0.375 < difference.high
    assert difference.p == pytest.approx(scipy_stats.binomtest(1, 5, 0.5).pvalue)
    assert paired_difference(before, after) == difference


def test_partial_credit_has_no_mcnemar_p() -> None:
    assert paired_difference([0.5, 0.2], [1.0, 0.4]).p is None
