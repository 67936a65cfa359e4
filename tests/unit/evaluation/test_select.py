import pytest

from distributed_ft.evaluation.select import TIE, Candidate, Trend, inside, select, trend


def items(right: int, n: int = 200) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def candidate(step: int, right: int, drop: float | None) -> Candidate:
    return Candidate(step, {"task": items(right)}, drop)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        pytest.param([candidate(1, 100, 0.0), candidate(2, 180, 0.01)], 2, id="the most accurate"),
        pytest.param([candidate(1, 150, 0.01), candidate(2, 180, 0.2)], 1, id="the most accurate inside the budget"),
        pytest.param([candidate(1, 179, 0.0), candidate(2, 180, 0.0)], 1, id="the earlier one within noise"),
        pytest.param([candidate(2, 180, 0.0), candidate(1, 180, 0.0)], 1, id="the earlier one at a tie"),
        pytest.param(
            [candidate(1, 120, 0.0), candidate(2, 180, 0.0), candidate(3, 181, 0.0)], 2, id="the earliest within noise"
        ),
        pytest.param([candidate(1, 180, 0.05)], 1, id="the budget itself is inside"),
        pytest.param([candidate(1, 100, None), candidate(2, 180, None)], 2, id="without a general suite"),
        pytest.param([candidate(1, 180, 0.3), candidate(2, 180, 0.1)], None, id="none inside the budget"),
        pytest.param([candidate(1, 180, -0.3)], 1, id="a gain is no loss"),
        pytest.param([], None, id="no checkpoint"),
        pytest.param([Candidate(1, {}, 0.0)], None, id="no task"),
    ],
)
def test_selection(candidates: list[Candidate], expected: int | None) -> None:
    assert select(candidates, forgetting_budget=0.05).step == expected


def test_the_reason_names_budget_and_least_drop_when_none_is_inside() -> None:
    reason = select([candidate(1, 180, 0.3), candidate(2, 180, 0.1)], 0.05).reason
    assert "0.100 (step 2)" in reason
    assert "0.05" in reason


def test_the_reason_says_that_an_earlier_one_is_as_good() -> None:
    assert "within noise" in select([candidate(1, 179, 0.0), candidate(2, 180, 0.0)], 0.05).reason


def test_tasks_count_the_same_whatever_their_size() -> None:
    large_gain_on_few = Candidate(2, {"large": items(500, 1000), "small": items(20, 20)}, 0.0)
    small_gain_on_many = Candidate(1, {"large": items(600, 1000), "small": items(0, 20)}, 0.0)
    assert select([small_gain_on_many, large_gain_on_few], 0.05).step == 2


def test_inside_is_not_a_matter_of_rounding() -> None:
    assert inside(candidate(1, 1, 0.1 + 0.2), 0.3)


@pytest.mark.parametrize("right", range(100, 199))
def test_a_tie_is_not_a_matter_of_rounding(right: int) -> None:
    top = candidate(2, right + 2, 0.0)
    assert top.accuracy - candidate(1, right, 0.0).accuracy == pytest.approx(TIE)
    assert select([candidate(1, right, 0.0), top], 0.05).step == 1


@pytest.mark.parametrize(
    ("scores", "min_delta", "expected"),
    [
        pytest.param([(100, 0), (120, 0), (140, 0)], 0.0, Trend(3, 3, 0), id="it rises"),
        pytest.param([(100, 0), (140, 0), (140, 0), (139, 0)], 0.0, Trend(4, 2, 2), id="as good is not better"),
        pytest.param([(100, 0), (140, 0), (130, 0), (141, 0)], 0.0, Trend(4, 4, 0), id="it rises again"),
        pytest.param([(100, 0), (110, 0), (120, 0)], 0.05, Trend(3, 3, 0), id="the delta is of the best, not the last"),
        pytest.param([(100, 0), (110, 0), (110, 0)], 0.05, Trend(3, 1, 2), id="a rise by the delta is none"),
        pytest.param([(100, 0), (190, 0.2), (195, 0.3)], 0.0, Trend(3, 1, 2), id="what has forgotten is no better"),
        pytest.param([(100, 0.2), (190, 0.2)], 0.0, Trend(2, None, 2), id="none inside the budget"),
    ],
)
def test_how_long_a_training_has_not_helped(scores: list[tuple[int, float]], min_delta: float, expected: Trend) -> None:
    candidates = [candidate(step, right, drop) for step, (right, drop) in enumerate(scores, 1)]
    assert trend(candidates, 0.05, min_delta) == expected
    assert trend(candidates[::-1], 0.05, min_delta) == expected


def test_without_a_score_there_is_no_trend() -> None:
    assert trend([], 0.05, 0.0) is None
    assert trend([Candidate(1, {}, 0.0)], 0.05, 0.0) is None
