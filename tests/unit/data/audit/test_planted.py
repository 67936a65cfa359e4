"""A fast part of benchmarks/audit_quality.py: every kind of fault once, in small data, and the clean data itself."""

import pytest

from benchmarks.audit_corpora import CORPORA
from benchmarks.audit_faults import FAULTS, Fault
from benchmarks.audit_quality import clean_findings, score

SIZE = 300


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_planted_is_found_and_nothing_else(name: str) -> None:
    fault = FAULTS[name]
    one = Fault(fault.finding, fault.corpora[:1], fault.change, fault.copies, fault.both, fault.of_reference, (0.02,))
    if name == "rare label":
        one = Fault(fault.finding, fault.corpora, fault.change, rates=(0.005,))
    result = score(name, one, SIZE, [0])
    assert result["planted"] > 0
    assert result["recall"] == 1.0, result
    assert result["precision"] == 1.0, result


@pytest.mark.parametrize("corpus", CORPORA)
def test_nothing_is_found_in_clean_data(corpus: str) -> None:
    assert list(clean_findings(corpus, SIZE, [7])) == []
