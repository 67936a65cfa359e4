import numpy as np
import pytest
from scipy import stats as scipy_stats

from distributed_ft.evaluation.forgetting import forgetting

# eight items: kept, kept, kept, lost, lost, won, wrong, wrong
BEFORE = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
AFTER = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
GROUPS = ["a", "a", "b", "b", "b", "c", "c", None]


def test_rate_counts_items_right_before_and_wrong_after() -> None:
    result = forgetting(BEFORE, AFTER, GROUPS)
    assert result.rate == pytest.approx(2 / 8)
    assert result.of_known == pytest.approx(2 / 5)
    assert result.mean_drop == pytest.approx(1 / 8)  # one was won, so an average hides half of the loss
    assert (result.n, result.known) == (8, 5)


def test_intervals_bracket_the_rates() -> None:
    result = forgetting(BEFORE * 20, AFTER * 20, GROUPS * 20)
    assert result.low < result.rate < result.high
    assert result.of_known_low < result.of_known < result.of_known_high
    assert result.drop_low < result.mean_drop < result.drop_high


def test_rate_interval_is_scipys_bootstrap() -> None:
    result = forgetting(BEFORE * 20, AFTER * 20, GROUPS * 20)
    lost = np.array(BEFORE * 20) * (1 - np.array(AFTER * 20))
    expected = scipy_stats.bootstrap(
        (lost,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_an_unchanged_model_forgot_nothing() -> None:
    result = forgetting(BEFORE, BEFORE, GROUPS)
    assert (result.rate, result.low, result.high, result.mean_drop, result.drop_low, result.drop_high) == (0,) * 6


def test_a_base_that_knows_nothing_has_nothing_to_forget() -> None:
    result = forgetting([0.0] * 4, [1.0, 0.0, 0.0, 0.0], ["a"] * 4)
    assert (result.rate, result.of_known, result.known) == (0.0, 0.0, 0)
    assert result.mean_drop == -0.25


def test_by_group_names_the_skill_that_was_lost() -> None:
    groups = forgetting(BEFORE, AFTER, GROUPS).by_group
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
    uncorrected = forgetting(before, after, [None] * n)
    corrected = forgetting(before, after, [None] * n, chance=1 / choices)
    assert abs(uncorrected.rate - forgets) > 0.015
    assert corrected.rate == pytest.approx(forgets, abs=0.01)
    assert corrected.of_known == pytest.approx(forgets / knows, abs=0.03)
    assert corrected.low <= corrected.rate <= corrected.high
