from pathlib import Path

import pytest

from benchmarks import page


def test_the_page_on_performance_is_what_the_result_files_say() -> None:
    assert page.PAGE.read_text() == page.page()


def test_what_was_not_measured_stands_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page.harness, "RESULTS", tmp_path)
    empty = page.page()
    assert empty.count(page.NOT_MEASURED) >= 4 + 15
    assert "nan" not in empty
