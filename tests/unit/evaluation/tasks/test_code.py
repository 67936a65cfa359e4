import itertools
from pathlib import Path
from typing import Any

import pytest
from support.tasks import config_of, score_of, task_of

from distributed_ft.config.schema import EvaluationConfig
from distributed_ft.errors import ConfigError, DataError
from distributed_ft.evaluation.sandbox import problem
from distributed_ft.evaluation.task import Generate, Task
from distributed_ft.evaluation.tasks import build_tasks
from distributed_ft.evaluation.tasks.code import code_of, pass_at_k

pytestmark = pytest.mark.skipif(problem() is not None, reason=f"no sandbox here: {problem()}")
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
RIGHT, WRONG = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b"


@pytest.mark.parametrize(("draws", "passed"), [(1, 0), (1, 1), (5, 0), (5, 1), (5, 3), (5, 5)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_that_hold_a_right_one(draws: int, passed: int) -> None:
    answers = [True] * passed + [False] * (draws - passed)
    for k in range(1, draws + 1):
        chosen = list(itertools.combinations(answers, k))
        assert pass_at_k(draws, passed, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))


def task(folder: Path, tests: Any = TESTS, prompt: str = "Write add.", more: Any = None, **keys: Any) -> Task:
    return task_of(folder, [{"prompt": prompt, "tests": tests, **(more or {})}], metric="pass_at_k", **keys)


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (RIGHT, 1),
        (f"Here it is:\n```python\n{RIGHT}\n```\nIt adds.", 1),
        (f"```\n{RIGHT}\n```", 1),
        (f"```python\n{RIGHT}", 1),  # cut off before the fence
        (WRONG, 0),
        ("def add(a, b:", 0),
        ("", 0),
        (f"{RIGHT}\nimport sys; sys.exit(0)", 0),  # leaves before the tests
        (f"{RIGHT}\nimport os; os._exit(0)", 0),
        ("def add(a, b):\n    while True: pass", 0),
        (f"{RIGHT}\nimport socket; socket.socket()", 0),
        (f"{RIGHT}\nprint('said')", 1),
    ],
)
def test_code_passes_when_its_tests_run_to_their_end(tmp_path: Path, answer: str, passes: int) -> None:
    assert score_of(task(tmp_path, time_limit=1), answer).value == passes


def test_all_draws_count(tmp_path: Path) -> None:
    drawn = task(tmp_path, k=[1, 2, 4], draws=4, temperature=0.8)
    request = drawn.request(drawn.examples()[0])
    assert isinstance(request, Generate)
    assert (request.draws, request.temperature) == (4, 0.8)
    score = score_of(drawn, RIGHT, WRONG, WRONG, RIGHT)
    assert score.value == 0.5
    assert score.further == pytest.approx({"pass@1": 0.5, "pass@2": 5 / 6, "pass@4": 1.0})


def test_tests_may_be_a_list_or_a_function_that_checks_an_entry_point(tmp_path: Path) -> None:
    assert score_of(task(tmp_path, tests=TESTS.splitlines()), RIGHT).value == 1
    check = "def check(candidate):\n    assert candidate(1, 2) == 3"
    keys: dict[str, Any] = {"more": {"entry": "add"}, "entry_point_column": "entry"}
    assert score_of(task(tmp_path, tests=check, **keys), RIGHT).value == 1
    assert score_of(task(tmp_path, tests=check, **keys), WRONG).value == 0


def test_a_function_may_be_completed(tmp_path: Path) -> None:
    completed = task(tmp_path, prompt='def add(a, b):\n    """The sum."""\n', complete=True)
    request = completed.request(completed.examples()[0])
    assert isinstance(request, Generate)
    assert "\ndef " in request.stop
    assert score_of(completed, "    return a + b\n").value == 1
    assert score_of(completed, "    return a * b\n").value == 0


def test_the_first_block_of_python_is_the_code() -> None:
    assert code_of("```sh\nls\n```\n```python\nx = 1\n```\n```python\nx = 2\n```") == "x = 1"


@pytest.mark.parametrize(
    ("row", "keys", "says"),
    [
        ({"prompt": "q"}, {}, r"rows\.jsonl:1: nothing in the column 'tests', which metric pass_at_k"),
        ({"prompt": "q", "tests": "assert ("}, {}, r"rows\.jsonl:1: the tests \"assert \(\" are not Python"),
        ({"prompt": "q", "tests": "x", "e": "a b"}, {"entry_point_column": "e"}, 'the entry point "a b" is no name'),
        ({"prompt": "q", "tests": "x"}, {"entry_point_column": "e"}, "nothing in the column 'e'"),
    ],
)
def test_rows_that_nothing_can_pass_are_refused(
    tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        task_of(tmp_path, [row], metric="pass_at_k", **keys)


def test_no_code_is_run_unasked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "tests": "assert True"}\n')
    code = config_of(name="t", path=str(tmp_path / "rows.jsonl"), metric="pass_at_k")
    with pytest.raises(ConfigError, match=r"evaluation\.allow_code_execution: true"):
        build_tasks(EvaluationConfig(tasks=(code,), general=()))
    assert build_tasks(EvaluationConfig(tasks=(code,), general=(), allow_code_execution=True))
