"""`dft data audit`: what is wrong with a run's data, or with data files that have no run yet."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_ft.errors import EXIT_DONE, EXIT_USER, ConfigError
from launcher.preview import visible

if TYPE_CHECKING:
    from distributed_ft.config.load import LoadedRun

_MOST_LINES = 8  # of a finding's rows, named


def audit_run(loaded: "LoadedRun", as_json: bool) -> int:
    """Audit what a run.yaml trains on; prints `data/report.json`, or the same for people. Returns the exit code."""
    from distributed_ft.data.prepare import prepare
    from distributed_ft.model.load import load_tokenizer, quiet_libraries
    from distributed_ft.train import preflight

    quiet_libraries()
    config = loaded.config
    data = prepare(config, load_tokenizer(config.model.base), preflight.cache_of(config))
    return _tell(preflight.audited(config, data).report, as_json)


def audit_files(paths: Sequence[str], as_json: bool) -> int:
    """Audit data files as they are: nothing is tokenised, and there is nothing that they are held against."""
    from dataclasses import asdict

    from distributed_ft.config.schema import AuditConfig
    from distributed_ft.data.audit.of_run import rows_of
    from distributed_ft.data.audit.run import AuditSettings, File, audit
    from distributed_ft.data.reading import Reading
    from distributed_ft.data.report import with_audit

    readings = [Reading(path) for path in paths]
    found = audit([File(r.path, rows_of(r, False)) for r in readings], [], AuditSettings.of(AuditConfig(), Path()))
    told = {"findings": [asdict(f) for f in found.findings], "statistics": found.statistics}
    return _tell(with_audit({"schema": 1, "findings": []}, told, ()), as_json)


def is_run(paths: Sequence[Path]) -> bool:
    """Whether what is audited is a run.yaml. Raises ConfigError for one among data files."""
    yaml = [path for path in paths if path.suffix in (".yaml", ".yml")]
    if yaml and len(paths) > 1:
        raise ConfigError(f"{yaml[0]}: is a run; audit it alone, or name data files only")
    return bool(yaml)


def _tell(report: Mapping[str, Any], as_json: bool) -> int:
    from distributed_ft.data.report import stopping

    print(json.dumps(report, indent=2, ensure_ascii=False) if as_json else text(report))
    return EXIT_USER if stopping(report) else EXIT_DONE


def text(report: Mapping[str, Any]) -> str:
    """The findings, the worst first, each with its rows and examples, and a last line that sums up."""
    findings = report["findings"]
    blocks = ["\n".join(_finding(finding)) for finding in findings]
    standing = [finding for finding in findings if not finding["waived"]]
    counts = {level: sum(f["severity"] == level for f in standing) for level in ("error", "warning")}
    said = [f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts.items()]
    if len(standing) < len(findings):
        said.append(f"{len(findings) - len(standing)} waived")
    if bad := report.get("rows_bad", 0):
        said.append(f"{bad:,} unreadable row{'s' if bad != 1 else ''} passed over (data.skip_bad)")
    last = f"{', '.join(said)}" + ("; a run on this data is refused" if counts["error"] else "")
    return "\n\n".join([*blocks, last])


def _finding(finding: Mapping[str, Any]) -> list[str]:
    rows = finding["rows"]
    listed = ", ".join(map(str, rows[:_MOST_LINES])) + (", …" if len(rows) > _MOST_LINES else "")
    level = f"{finding['severity']}, waived" if finding["waived"] else finding["severity"]
    where = f" · {finding['path']}" if finding["path"] else ""
    share = f" · {finding['count']:,} {'row' if finding['count'] == 1 else 'rows'}"
    lines = [f"{level}: {finding['id']}{share}{where}", f"  {_safe(finding['message'])}"]
    if rows:
        lines.append(f"  {'lines' if len(rows) > 1 else 'line'} {listed}")
    for shown in finding["examples"]:
        lines += [f"  {shown['row']:>8} | {_safe(line)}" for line in shown["text"].split("\n")[:_MOST_LINES]]
    return lines


def _safe(line: str) -> str:
    """Without control characters: damaged text, which is what is shown here, shall not reach the terminal as it is."""
    return "".join(map(visible, line))
