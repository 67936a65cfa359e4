"""What the report shows, and that it shows it safely."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.report_runs import FORGETTING, HEALTHY, make_run, read

from distributed_ft.artifacts import RunDirectory, step_name, write_json
from distributed_ft.evaluation.report import write as report


class Page(HTMLParser):
    """What a browser would do with the file: elements, and everything that it would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href") and not (
                value or ""
            ).startswith("#"):
                self.fetched.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = make_run(tmp_path_factory.mktemp("healthy"), HEALTHY)
    report.write(run.path)
    return run


def test_a_healthy_run_is_shipped_with_the_numbers_of_its_best_checkpoint(healthy: RunDirectory) -> None:
    found = read(healthy)
    assert found["schema"] == 1
    assert found["verdict"] == "ship"
    assert found["best_step"] == 300
    three = [found["task"][who]["score"] for who in ("base", "few_shot", "tuned")]
    assert three == pytest.approx([0.02, 0.31, 0.94])
    assert {"score", "stderr", "n"} <= found["task"]["tuned"].keys()
    assert found["forgetting"]["mean_drop"] == pytest.approx((0.1 + 0.05) / 8)
    assert {"rate", "low", "high", "mean_drop"} <= found["forgetting"].keys()
    assert [row["step"] for row in found["checkpoints"]] == [100, 200, 300]
    assert found["missing"] == found["diagnosis"] == []
    assert "Ship step 300" in healthy.report("md").read_text().splitlines()[0]


def test_the_paired_difference_is_that_of_the_items_both_answered(healthy: RunDirectory) -> None:
    gain = read(healthy)["task"]["versus_few_shot"]
    assert gain["mean"] == pytest.approx(0.94 - 0.31)
    assert gain["n"] == 200
    # nested right answers: 126 of 200 items differ, all one way; binomial standard error of that share
    assert gain["low"] == pytest.approx(0.63 - 1.96 * math.sqrt(0.63 * 0.37 / 200), abs=0.01)


def test_lost_general_skills_are_called_catastrophic_forgetting_and_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, FORGETTING)
    report.write(run.path)
    found = read(run)
    assert found["verdict"] == "do_not_ship"
    assert found["best_step"] is None
    assert found["judged_step"] == 300
    assert "catastrophic forgetting" in found["headline"].lower()
    assert found["forgetting"]["catastrophic"] is True
    assert found["diagnosis"][0]["id"] == "catastrophic_forgetting"
    assert "addition (95% → 10%)" in found["diagnosis"][0]["evidence"]
    assert "data.train" in found["diagnosis"][0]["remedies"][0]
    for suffix in ("md", "html"):
        text = run.path.joinpath(f"report.{suffix}").read_text()
        assert "Catastrophic forgetting: step 300 scores 95% on tickets" in text
        assert "Forgotten: general items right before, wrong now" in text


def test_a_run_that_a_prompt_equals_is_not_shipped(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"base": (0.1, 0.95), "few-shot": (0.9, None), step_name(300): (0.9, 0.95)})
    report.write(run.path)
    found = read(run)
    assert found["verdict"] == "do_not_ship"
    assert "few-shot prompt would have done as well" in found["headline"]
    assert [finding["id"] for finding in found["diagnosis"]] == ["few_shot_is_enough"]


def test_without_an_evaluation_the_report_shows_the_curve_and_names_the_command(tmp_path: Path) -> None:
    run = make_run(tmp_path, {step_name(100): (None, None), step_name(300): (None, None)})
    report.write(run.path)
    found = read(run)
    assert found["verdict"] == "not_enough_evidence"
    assert found["best_step"] is None
    assert found["task"] == {"base": None, "few_shot": None, "tuned": None}
    assert found["forgetting"]["rate"] is None
    assert f"dft eval {run.path}" in {missing["remedy"] for missing in found["missing"]}
    assert 'class="plot wide"' in run.report("html").read_text()


def test_one_checkpoint_is_enough_for_every_part_of_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"base": (0.02, 0.95), "few-shot": (0.31, None), step_name(7): (0.94, 0.95)}, steps=7)
    report.write(run.path)
    assert read(run)["verdict"] == "ship"
    page = Page(run.report("html").read_text())
    assert page.tags.count("svg") == 6  # two plots, each for a wide page and for a phone


def test_text_of_a_model_or_a_row_never_becomes_markup(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)> {} \"' ``` | </style></title>{{{{ 7*7 }}}} & <b>"
    run = make_run(tmp_path, HEALTHY, n=30, request=attack)
    write_json(run.environment, {"host": attack})
    samples = run.results(step_name(300), "tickets") / "samples.jsonl"
    lines = [{**json.loads(line), "response": attack * 40} for line in samples.read_text().splitlines()]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.write(run.path)
    text = run.report("html").read_text()
    page = Page(text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not {"script", "img"} & set(page.tags)
    assert page.handlers == []
    assert "7*7" in text
    markdown = run.report("md").read_text()
    outside_fences = re.sub(r"^(`{3,})\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside_fences


def test_the_page_fetches_nothing(healthy: RunDirectory) -> None:
    text = healthy.report("html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert not {"link", "script", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert len(text) < 400_000


def test_markdown_shows_the_three_ways_as_an_aligned_table(healthy: RunDirectory) -> None:
    lines = healthy.report("md").read_text().splitlines()
    start = lines.index("## Base, few-shot prompt, tuned") + 2
    rows = lines[start : start + 5]
    assert len({len(row) for row in rows}) == 1
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[2][:3] == ["tickets", "base", "2.0%"]
    assert cells[3][1:3] == ["base + 4 examples", "31.0%"]
    assert cells[4][1:3] == ["tuned, step 300", "94.0%"]


def test_the_same_run_gives_the_same_bytes(healthy: RunDirectory) -> None:
    first = [healthy.path.joinpath(f"report.{suffix}").read_bytes() for suffix in ("json", "md", "html")]
    report.write(healthy.path)
    assert first == [healthy.path.joinpath(f"report.{suffix}").read_bytes() for suffix in ("json", "md", "html")]


def test_the_training_data_is_shown_with_findings_counts_and_overlap(healthy: RunDirectory) -> None:
    page = healthy.report("html").read_text()
    section = page.split("<h2>Training data</h2>")[1].split("</section>")[0]
    assert "contamination.tickets" in section
    assert "error, waived" in section
    assert "&lt;b&gt;Where is A-1001?&lt;/b&gt;" in section, "rows are shown, and never become markup"
    assert "Where is &lt;it&gt;?" in section
    assert section.count('<svg class="plot') == 2, "lengths, wide and narrow"
    assert "4 others" in section, "15 categories: eleven bars, and one for the others"
    assert "JSON object" not in section, "one form alone is no comparison"
    rows = re.findall(r'<tr><th scope="row">(\w+)</th><td class="num">([\d,]+)</td>.*?>(\d+)</b>', section)
    assert rows == [("tickets", "200", "1"), ("general", "408", "0")]
    markdown = healthy.report("md").read_text()
    assert "contamination.tickets (1): it holds an item" in markdown
