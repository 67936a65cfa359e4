"""The data section of the report: which file is which."""

from distributed_ft.evaluation.report.facts import titles


def test_files_of_one_name_are_told_apart() -> None:
    assert titles(["/d/train.jsonl", "/d/more.csv"]) == ["train.jsonl", "more.csv"]
    assert titles(["/d/a/train.jsonl", "/d/b/train.jsonl"]) == ["a/train.jsonl", "b/train.jsonl"]
    assert titles(["/d/a/x.csv", "/e/a/x.csv"]) == ["/d/a/x.csv", "/e/a/x.csv"]
    assert titles(["/d/sets", "/d/sets (test)"]) == ["sets", "sets (test)"]
