import numpy as np
import pytest
from scipy import stats as scipy_stats

from distributed_ft.evaluation.stats import (
    bootstrap,
    mcnemar,
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


def test_newcombes_interval_covers_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        low, high = newcombe(*pairs(*rng.multinomial(200, [0.85, 0.08, 0.02, 0.05])))
        covered += low <= 0.06 <= high
    assert covered / 1000 == pytest.approx(0.95, abs=0.02)


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


def test_bootstrap_interval_covers_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(400):
        low, high = bootstrap(rng.binomial(1, 0.4, 150), seed=trial, resamples=600)
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
