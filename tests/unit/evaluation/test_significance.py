"""Tests of significance against scipy's, and against tables worked by hand."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from distributed_ft.evaluation.significance import holm, mcnemar, sign_flip, t_quantile

RNG = np.random.default_rng(11)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (3, 3), (1, 9), (12, 2), (40, 70), (900, 1100)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    before = [1] * lost + [0] * won + [1, 1, 0]
    after = [0] * lost + [1] * won + [1, 1, 0]
    expected = scipy_stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert mcnemar(before, after) == pytest.approx(expected)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 6), (3, 3), (1, 9), (2, 12)])
def test_the_sign_flip_test_of_right_or_wrong_items_is_mcnemars(lost: int, won: int) -> None:
    differences = [-1.0] * lost + [1.0] * won + [0.0] * 20
    assert sign_flip(differences) == pytest.approx(mcnemar([1] * lost + [0] * won, [0] * lost + [1] * won))


def test_the_sign_flip_test_is_near_mcnemars_where_it_is_drawn() -> None:
    differences = [-1.0] * 40 + [1.0] * 62
    assert sign_flip(differences) == pytest.approx(mcnemar([1] * 40 + [0] * 62, [0] * 40 + [1] * 62), abs=0.003)
    assert sign_flip(differences) == sign_flip(differences)
    assert 0 < sign_flip([1.0] * 200) < 1e-4


@pytest.mark.parametrize("size", [6, 12, 40])
def test_the_sign_flip_test_of_partial_credit_is_scipys(size: int) -> None:
    differences = np.round(RNG.normal(0.15, 0.4, size), 2)
    expected = scipy_stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    ).pvalue
    assert sign_flip(differences) == pytest.approx(expected, abs=1e-12 if size <= 12 else 0.01)


def test_the_sign_flip_test_calls_chance_a_difference_once_in_20() -> None:
    rng = np.random.default_rng(1)
    values, shares = [-1.0, -0.5, 0.0, 0.5, 1.0], [0.1, 0.1, 0.6, 0.1, 0.1]
    called = sum(sign_flip(rng.choice(values, 60, p=shares), seed=trial) < 0.05 for trial in range(1000))
    assert called / 1000 == pytest.approx(0.05, abs=0.02)


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    # Holm 1979: p = 0.01, 0.04, 0.03, 0.005 are 4 x 0.005, 3 x 0.01, 2 x 0.03, and no less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_calls_one_of_six_true_hypotheses_false_once_in_20_at_most() -> None:
    p = np.random.default_rng(2).random((2000, 6))
    assert np.mean([min(holm(row.tolist())) < 0.05 for row in p]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("probability", [0.8, 0.975])
@pytest.mark.parametrize("dof", [1, 2, 3, 4, 7, 19, 30, 199, 200, 201, 5000])
def test_quantiles_of_students_t_are_scipys(probability: float, dof: int) -> None:
    assert t_quantile(probability, dof) == pytest.approx(scipy_stats.t.ppf(probability, dof), rel=1e-7)
