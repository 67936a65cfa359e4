"""The audit as a whole: chunks and processes change nothing, findings are per file, what is shown is masked."""

import json
import random
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from benchmarks.audit_corpora import Row, rows_of
from benchmarks.audit_faults import FAULTS, plant
from benchmarks.audit_quality import loads
from distributed_ft.config.schema import AuditConfig
from distributed_ft.data.audit import duplicates
from distributed_ft.data.audit.fairness import wilson
from distributed_ft.data.audit.rows import Rows
from distributed_ft.data.audit.run import AuditSettings, File, Reference, audit
from distributed_ft.data.audit.size import NEEDED
from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.findings import Finding
from distributed_ft.errors import ConfigError


def ids(findings: list[Finding]) -> set[str]:
    return {f.id for f in findings}


def file_of(rows: list[Row], path: str = "train.jsonl", chunk: int = 1000) -> File:
    examples = [row.example(line, path) for line, row in enumerate(rows, 1)]
    return File(path, [partial(list, examples[i : i + chunk]) for i in range(0, len(examples), chunk)])


def of(finding_id: str, findings: list[Finding]) -> list[int]:
    return [line for f in findings if f.id == finding_id for line in f.rows]


def test_chunks_and_processes_change_no_finding() -> None:
    rows, reference = rows_of("extraction", 400, 0), rows_of("extraction", 100, 9)
    for name in ("exact copy", "drift of JSON", "secret", "test item in training"):
        rows, _ = plant(rows, reference, FAULTS[name], 0.02, random.Random(name))
    test = [Reference("test", "test.jsonl", True, loads(reference, "test.jsonl"))]
    whole = audit([file_of(rows)], test, AuditSettings(), workers=1)
    cut = audit([file_of(rows, chunk=90)], test, AuditSettings(), workers=2)
    assert [(f.id, list(f.rows)) for f in whole.findings] == [(f.id, list(f.rows)) for f in cut.findings]
    assert ids(whole.findings) == {"duplicate.exact", "format.drift", "secret", "contamination.test"}


def test_a_forked_process_can_look_at_rows_after_its_parent_did() -> None:
    rows = Rows([row.example(line, "t") for line, row in enumerate(rows_of("questions", 600, 0), 1)])
    duplicates.look(rows)  # by threads of the library's own, that a fork would not have
    process = get_context("fork").Process(target=duplicates.look, args=(rows,))
    process.start()
    process.join(60)
    done = process.exitcode
    if done is None:
        process.kill()
    assert done == 0, "it waits for threads that it does not have"


def test_each_file_has_its_own_findings_and_each_reference_its_severity() -> None:
    rows, other = rows_of("questions", 60, 0), rows_of("questions", 60, 1)
    references = [
        Reference("validation", "v.jsonl", False, loads(rows[:5], "v.jsonl")),
        Reference("tickets", "t.jsonl", True, loads(other[3:5], "t.jsonl")),
    ]
    found = audit([file_of(rows, "a"), file_of(other, "b")], references, AuditSettings(), workers=1).findings
    assert [(f.id, f.severity, f.path, list(f.rows)) for f in found] == [
        ("contamination.tickets", "error", "b", [4, 5]),
        ("contamination.validation", "warning", "a", [1, 2, 3, 4, 5]),
    ]
    assert "t.jsonl:1" in found[0].examples[0].text


def test_a_shared_instruction_is_no_contamination() -> None:
    rows, reference = rows_of("sentiment", 200, 0), rows_of("sentiment", 100, 1)
    assert rows[0].prompt[:200] == reference[0].prompt[:200]
    found = audit([file_of(rows)], [Reference("t", "t", True, loads(reference, "t"))], AuditSettings(), workers=1)
    assert found.findings == []
    assert found.statistics["train.jsonl"]["contamination"] == {"t": {"items": 100, "seen": 0, "rows": 0}}


def test_what_is_shown_holds_no_personal_data_and_no_secret() -> None:
    rows = rows_of("questions", 300, 0)
    for name in ("personal data", "secret"):
        rows, _ = plant(rows, [], FAULTS[name], 0.1, random.Random(name))
    found = audit([file_of(rows)], [], AuditSettings(), workers=1).findings
    texts = " ".join(shown.text for f in found for shown in f.examples)
    assert ids(found) == {"pii", "secret"}
    assert texts
    for word in ("@gmail", "@posteo", "AKIA", "ghp_", "sk_live", "-----BEGIN"):
        assert word not in texts


def test_no_row_sees_its_neighbour() -> None:
    rows = rows_of("questions", 60, 0)
    rows[3] = rows[3].answered("Nobody remembers the password: hx")
    rows[4] = Row("8Kq2vTz91 is the code of the gate. " + rows[4].prompt, rows[4].answer)
    rows[7] = rows[7].answered("Nobody in Dunmere remembers which number to call")
    rows[8] = Row("030 22738910 visitors a year. " + rows[8].prompt, rows[8].answer)
    assert not {"secret", "pii"} & ids(audit([file_of(rows)], [], AuditSettings(), workers=1).findings)
    rows[3] = rows[3].answered("Nobody remembers the password: hx8Kq2vTz91.")
    rows[7] = rows[7].answered("The number to call is 030 22738910, says nobody.")
    found = audit([file_of(rows)], [], AuditSettings(), workers=1).findings
    assert (of("secret", found), of("pii", found)) == ([4], [8])


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        ("I’m so sorry, but I can’t help with that.", "answer.placeholder.refusal"),
        ("“I'm unable to assist with that request.”", "answer.placeholder.refusal"),
        ("It was moved. As a large language model I was not there.", "answer.placeholder.refusal"),
        ("The harbour of [\u00a0Insert town] was moved twice.", "answer.placeholder"),
        ("The harbour was moved twice.\nTODO: say when", "answer.placeholder"),
        ("This will be added later.", "answer.placeholder"),
        ("Lorem ipsum dolor sit amet.", "answer.placeholder"),
        ("Dear {{first name}}, it was moved twice.", "answer.placeholder"),
        ("N/A", "answer.placeholder"),
        ("I am sorry that the harbour was moved twice.", ""),
        ("I can see [1, 2] why the response to it <was> so harsh.", ""),
    ],
)
def test_an_answer_that_is_none_is_told_by_its_words(answer: str, finding: str) -> None:
    rows = rows_of("questions", 60, 0)
    rows[9] = rows[9].answered(answer)
    found = audit([file_of(rows)], [], AuditSettings(), workers=1).findings
    assert of(finding, found) == ([10] if finding else [])
    assert not any(f.id.startswith("answer.placeholder") and f.id != finding for f in found)


@pytest.mark.parametrize("kind", NEEDED)
def test_too_few_rows_for_the_kind_of_task_are_told(kind: str) -> None:
    rows = rows_of("questions", 99, 0)
    found = audit([file_of(rows)], [], AuditSettings(kind=kind), workers=1).findings
    assert ids(found) == {"size"}
    assert f"{NEEDED[kind]:,}" in found[0].message
    assert found[0].severity == "warning"


def test_answers_that_differ_between_groups_are_told_and_equal_ones_are_not() -> None:
    rows = [Row(f"Application {i} of {i * 7}?", ("yes", "no")[i % 2 if i < 200 else i % 4 > 0]) for i in range(400)]
    for equal in (False, True):
        named = [Row(r.prompt, r.answer, columns={"region": ("a", "b")[(i // 200, i // 4 % 2)[equal]]})
                 for i, r in enumerate(rows)]  # fmt: skip
        found = audit([file_of(named)], [], AuditSettings(sensitive="region"), workers=1)
        assert ("fairness" in ids(found.findings)) is not equal
        assert len(found.statistics["train.jsonl"]["fairness"]) == 4
    missing = audit([file_of(rows)], [], AuditSettings(sensitive="regoin"), workers=1).findings
    assert "fairness.column" in ids(missing)


def test_wilson_intervals_are_those_of_the_literature() -> None:
    from scipy.stats import binomtest

    for count, total in ((0, 10), (3, 10), (81, 263), (50, 50)):
        expected = binomtest(count, total).proportion_ci(method="wilson")
        assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_given_schema_is_what_every_answer_must_satisfy() -> None:
    rows = [Row(f"How old is person {i}?", f'{{"age": {i}}}') for i in range(30)]
    rows[7] = Row("How old is nobody?", '{"age": "none"}')
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 28}}, "required": ["age"]}
    found = audit([file_of(rows)], [], AuditSettings(schema=schema), workers=1).findings
    assert of("format.schema", found) == [8, 30]


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("https://user:pass@host.org", False),
        ("mysql://root:root@db.host.org/x", False),
        ("postgres://app:Zq7rT2wK@db.host.org/x", True),
    ],
)
def test_the_password_of_a_manual_is_no_secret(url: str, is_one: bool) -> None:
    rows = [Row("How do I connect?", f"Write {url} into the file.")]
    assert ("secret" in ids(audit([file_of(rows)], [], AuditSettings(), workers=1).findings)) == is_one


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("[1]", "not a JSON Schema"),
        ('{"type": "objekt"}', r"not a JSON Schema: 'objekt' is not valid"),
        ('{"properties": 3}', r"not a JSON Schema: 3 is not of type 'object' \(at \$.properties\)"),
        ('{"properties": {"age": {"pattern": "("}}}', "not a JSON Schema: '\\(' is not a 'regex'"),
        ('{"$ref": "#/$defs/age"}', r"\$ref '/\$defs/age' is not in the schema file"),
        ('{"$ref": "http://schemas.invalid/age.json"}', r"\$ref 'http://schemas.invalid/age.json' is not in the"),
    ],
)
def test_a_schema_that_is_none_is_the_users_to_correct(tmp_path: Path, schema: str, message: str) -> None:
    (tmp_path / "s.json").write_text(schema)
    rows = [Row(f"How old is person {i}?", f'{{"age": {i}}}') for i in range(30)]

    def run() -> None:
        settings = AuditSettings.of(AuditConfig.model_validate({"schema": "s.json"}), tmp_path)
        audit([file_of(rows)], [], settings, workers=1)

    with pytest.raises(ConfigError, match=message):
        run()


def test_a_row_full_of_hints_is_no_quadratic_search_and_hides_nothing() -> None:
    key = "sk-proj-Zq7rT2wKx81LmVb3Nd6PcY0sHg5JfA4e"
    answers = ["eyJ" * 20_000, "sk-" * 20_000 + " " + key, "sk- " * 900 + key, "sk- \n" * 9 + key]
    begin = time.process_time()
    found = audit([file_of([Row("What is it?", a) for a in answers])], [], AuditSettings(), workers=1).findings
    assert of("secret", found) == [2, 3, 4]
    assert time.process_time() - begin < 15, "it took minutes"


def test_what_a_tool_is_called_with_is_looked_at() -> None:
    key = "sk-proj-Zq7rT2wKx81LmVb3Nd6PcY0sHg5JfA4e"
    said = [{"key": key}, {"mail": "hans.meier@gmx.de"}, {"place": "Ulm"}]
    calls = [json.dumps({"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}) for arguments in said]
    rows = [(Message("user", f"Do {i}."), Message("assistant", "", extras=call)) for i, call in enumerate(calls)]
    examples = [Example(str(i), row, i, "t", None) for i, row in enumerate(rows, 1)]
    found = audit([File("t", [partial(list, examples)])], [], AuditSettings(), workers=1).findings
    assert (of("secret", found), of("pii", found)) == ([1], [2])


def test_one_answer_to_everything_is_told() -> None:
    rows = [Row(f"Is {i} a square?", "no" if i != 7 else "It is hard to tell.") for i in range(30)]
    (finding,) = (f for f in audit([file_of(rows)], [], AuditSettings(), workers=1).findings if f.id == "imbalance")
    assert (finding.severity, finding.count, finding.message[:34]) == (
        "warning",
        29,
        "29 of 30 rows: they have one and t",
    )
    varied = [Row(f"Is {i} a square?", "no" if i % 3 else "yes") for i in range(30)]
    assert "imbalance" not in ids(audit([file_of(varied)], [], AuditSettings(), workers=1).findings)


def test_a_category_of_its_own_for_each_row_is_a_key() -> None:
    rows = rows_of("questions", 300, 0)
    whole = [row.example(line, "t") for line, row in enumerate(rows, 1)]
    parts = [partial(list, [replace(e, group=f"c{e.line}") for e in whole[i : i + 50]]) for i in range(0, 300, 50)]
    found = audit([File("t", parts)], [], AuditSettings(), workers=1)
    assert ("imbalance" in ids(found.findings), found.statistics["t"]["categories"]) == (False, {})
    halves = [partial(list, [replace(e, group=f"c{e.line % 2}") for e in whole[i : i + 50]]) for i in range(0, 300, 50)]
    assert audit([File("t", halves)], [], AuditSettings(), workers=1).statistics["t"]["categories"] == {
        "c1": 150,
        "c0": 150,
    }


def test_what_is_shown_of_a_shard_is_in_it() -> None:
    test = rows_of("questions", 3, 0)
    shards = [[*rows_of("questions", 30, number), test[number]] for number in (1, 2)]
    parts = [[row.example(line, f"{n}.jsonl") for line, row in enumerate(shard, 1)] for n, shard in enumerate(shards)]
    folder = File("folder", [partial(list, part) for part in parts])
    found = audit([folder], [Reference("test", "tests", True, loads(test, "test.jsonl"))], AuditSettings()).findings
    seen = [f for f in found if f.id == "contamination.test"]
    assert [(f.path, list(f.rows), len(f.examples)) for f in seen] == [("0.jsonl", [31], 1), ("1.jsonl", [31], 1)]
    for finding, row, line in zip(seen, test[1:], (2, 3), strict=True):
        assert row.prompt[-40:] in finding.examples[0].text
        assert f"has all of test.jsonl:{line}: " in finding.examples[0].text


def test_plain_text_needs_no_question_and_an_empty_file_has_no_findings() -> None:
    messages = (Message(TEXT, "The harbour was rebuilt after a long winter."),)
    example = Example("1", messages, 1, "t", None)
    assert audit([File("t", [partial(list, [example])])], [], AuditSettings(), workers=1).findings == []
    empty = audit([File("t", [])], [], AuditSettings(), workers=1)
    assert (empty.findings, empty.statistics["t"]["rows"]) == ([], 0)
