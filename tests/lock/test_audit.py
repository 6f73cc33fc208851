"""The list of known vulnerabilities follows pip-audit's reports.

In pip_audit/, nothing-audited.json is what pip-audit 2.10.1 wrote of requirements.txt where it reached no database, with
"No known vulnerabilities found" and exit status 0. The reports by-hand-*.json were written by hand in the same format.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.audit_reports import write_reports
from fixtures.commands import ROOT, sh
from fixtures.version_tables import copy_tables
from lockedenv.cli import lock
from lockedenv.errors import Stop
from lockedenv.lock import audit, version_table
from lockedenv.spec import vulnerabilities
from lockedenv.spec.environment import list_environments
from lockedenv.spec.layers import BackendName
from lockedenv.spec.vulnerabilities import find_vulnerabilities, read_entries

REPORTS = Path(__file__).with_name("pip_audit")
DEFAULT = REPORTS / "by-hand-default.json"
CURRENT = REPORTS / "by-hand-current.json"
NEW = REPORTS / "by-hand-new.json"
NOTHING_AUDITED = REPORTS / "nothing-audited.json"


def no_severity(name: str) -> str:
    return ""


def test_the_repositorys_list_is_complete_and_in_order() -> None:
    entries = read_entries()
    assert entries == sorted(entries, key=lambda entry: (entry.package, entry.id))
    for entry in entries:
        assert entry.what
        assert entry.remedy
        assert entry.severity in ("low", "moderate", "high", "critical", audit.UNKNOWN)


def test_the_current_environment_has_no_known_vulnerability() -> None:
    [current] = [env for env in list_environments() if env.name == "current"]
    versions = {pin.name: pin.version for pin in current.wheels(BackendName.PIP)}
    assert find_vulnerabilities(versions.get) == []


def test_what_is_known_is_kept_as_people_wrote_it() -> None:
    known = {entry.id: entry for entry in read_entries()}
    result = audit.audit([DEFAULT, CURRENT], no_severity)
    assert result.new == []
    assert [entry.id for entry in result.entries] == [
        "CVE-2025-32434",
        "CVE-2025-3730",
        "PYSEC-2026-139",
        "CVE-2026-1839",
    ]
    for entry in result.entries:
        assert entry.what == known[entry.id].what
        assert entry.remedy == known[entry.id].remedy
        assert (
            entry.fixed_in == known[entry.id].fixed_in
        ), "kept where the report names none"
    assert "CVE-2026-24747" in [entry.id for entry in result.gone]


def test_an_alias_names_the_same_vulnerability() -> None:
    result = audit.audit([DEFAULT], no_severity)
    by_id = {entry.id: entry for entry in result.entries}
    assert by_id["CVE-2025-32434"].aliases == ["GHSA-53q9-r3pm-6pq6", "PYSEC-2025-41"]
    assert by_id["PYSEC-2026-139"].aliases == ["CVE-2026-4538"]


def test_a_new_vulnerability_gets_an_entry_with_severity_and_remedy() -> None:
    severities = {"GHSA-aaaa-bbbb-cccc": "high"}
    result = audit.audit([DEFAULT, NEW], lambda name: severities.get(name, ""))
    assert [entry.id for entry in result.new] == ["PYSEC-2027-7", "CVE-2027-1000"]
    unfixed, fixed = result.new
    assert fixed.package == "jinja2"
    assert fixed.aliases == ["GHSA-aaaa-bbbb-cccc"]
    assert fixed.fixed_in == "3.1.7", "the lowest version above the installed one"
    assert fixed.severity == "high"
    assert (
        fixed.remedy == "update it to 3.1.7 or newer: scripts/lock.sh --update jinja2"
    )
    assert fixed.what.startswith("A template of someone else leaves the sandbox.")
    assert len(fixed.what) <= audit.DESCRIPTION_LENGTH
    assert unfixed.fixed_in == ""
    assert unfixed.severity == audit.UNKNOWN
    assert (
        unfixed.remedy
        == "no version fixes it; read https://osv.dev/vulnerability/PYSEC-2027-7"
    )


def test_a_severity_that_is_known_is_not_asked_for_again() -> None:
    asked: list[str] = []
    audit.audit([DEFAULT, NEW], lambda name: asked.append(name) or "")  # type: ignore[func-returns-value]
    assert "PYSEC-2027-7" in asked
    assert "CVE-2025-32434" not in asked


@pytest.fixture
def list_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "vulnerabilities.json"
    copy.write_text(vulnerabilities.KNOWN.read_text())
    monkeypatch.setattr(vulnerabilities, "KNOWN", copy)
    monkeypatch.setattr(audit, "KNOWN", copy)
    copy_tables(tmp_path, monkeypatch)
    return copy


def test_a_vulnerability_that_the_list_lacks_is_an_error(
    list_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The first run writes it and fails; the second finds the list complete."""
    reports = write_reports(tmp_path, DEFAULT, NEW)
    monkeypatch.setattr(audit, "ask_osv", no_severity)
    monkeypatch.setattr(audit.audit, "__defaults__", (no_severity,))
    assert lock.audit_locks(reports) == 1
    text = capsys.readouterr().out
    assert (
        "| CVE-2027-1000 | jinja2 | unknown | 3.1.7 | update it to 3.1.7 or newer"
        in text
    )
    assert "New: PYSEC-2027-7, CVE-2027-1000." in text
    assert "No longer reported: " in text
    assert version_table.find_stale_tables(list_environments()) == [], "they count them"
    assert lock.audit_locks(reports) == 0
    assert "New: " not in capsys.readouterr().out
    installed = {"jinja2": "3.1.6", "idna": "3.20"}
    found = find_vulnerabilities(installed.get)
    assert [entry.id for entry in found] == ["PYSEC-2027-7", "CVE-2027-1000"]
    assert lock.audit_locks(write_reports(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("No known vulnerability.")
    assert json.loads(list_copy.read_text()) == []


def test_an_environment_without_a_report_is_an_error_and_its_entries_stay(
    list_copy: Path, tmp_path: Path
) -> None:
    """As when pip-audit broke off for one lock and wrote nothing."""
    before = list_copy.read_text()
    for path in write_reports(tmp_path, DEFAULT):
        with pytest.raises(
            Stop, match=r"no report has .* in all\); give pip-audit's report"
        ):
            lock.audit_locks([path])
    assert list_copy.read_text() == before


def test_what_a_newer_lock_does_not_have_is_fixed_there() -> None:
    """Some advisories name the last version that is affected and no fix: current must not be called affected."""
    old = audit.Reported(
        "PYSEC-2027-9", ["CVE-2027-9"], "torch", "2.5.1", [], "It breaks."
    )
    reports = [
        audit.AuditReport({"torch": "2.5.1"}, [old]),
        audit.AuditReport({"torch": "2.15.0"}, []),
    ]
    [entry] = audit.compare(reports, [], no_severity).new
    assert (entry.id, entry.fixed_in) == ("CVE-2027-9", "2.15.0")
    assert "update it to 2.15.0 or newer" in entry.remedy
    new = replace(old, installed="2.15.0")
    reports[1] = audit.AuditReport({"torch": "2.15.0"}, [new])
    [entry] = audit.compare(reports, [], no_severity).new
    assert entry.fixed_in == ""
    assert "no version fixes it" in entry.remedy


def test_an_audit_that_reached_no_database_is_an_error_and_no_empty_list() -> None:
    reason = (
        r"did not audit 75 of 75 packages.* accelerate \(Dependency not found on PyPI"
    )
    with pytest.raises(Stop, match=reason):
        audit.audit([NOTHING_AUDITED], no_severity)


def test_the_fix_in_a_pre_release_is_the_release() -> None:
    """As databases have it for CVE-2026-1839; a pre-release would make 5.0.0 itself look older than the fix."""
    listed = audit.read_report(DEFAULT).reported
    [reported] = [entry for entry in listed if entry.package == "transformers"]
    assert (
        audit.first_fix(replace(reported, fix_versions=["5.0.0rc3", "5.0.0"]))
        == "5.0.0"
    )
    assert audit.first_fix(replace(reported, fix_versions=["5.0.0rc3"])) == "5.0.0"
    assert audit.first_fix(replace(reported, fix_versions=[])) == ""


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"dependencies": [{"name": "x"}]}', '{"dependencies": 3}']
)
def test_what_is_no_report_is_refused_with_the_command(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(
        Stop, match="is no report of pip-audit .* write it with: pip-audit"
    ):
        audit.read_report(path)
    with pytest.raises(Stop, match="is no report of pip-audit"):
        audit.read_report(tmp_path / "missing.json")


class Answer:
    """What requests.get gives, as a context manager."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status_code = status
        self.raw = self
        self.body = body

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def read(self, limit: int, decode_content: bool) -> bytes:
        return self.body[:limit]


@pytest.mark.parametrize(
    "status, document, severity",
    [
        (
            200,
            {"id": "GHSA-x", "database_specific": {"severity": "MODERATE"}},
            "moderate",
        ),
        (200, {"id": "PYSEC-x"}, ""),
        (200, [], ""),
        (404, {"code": 5, "message": "Bug not found."}, ""),
    ],
)
def test_the_severity_of_osv(
    status: int, document: Any, severity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(document).encode()
    monkeypatch.setattr(
        audit.requests, "get", lambda *args, **options: Answer(status, body)
    )
    assert audit.ask_osv("GHSA-x") == severity


def test_a_database_that_does_not_answer_leaves_the_severity_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise audit.requests.ConnectionError("no route")

    monkeypatch.setattr(audit.requests, "get", fail)
    assert audit.ask_osv("GHSA-x") == ""
    [reported] = [
        entry for entry in audit.read_report(NEW).reported if entry.package == "idna"
    ]
    assert audit.first_severity(reported, audit.ask_osv) == audit.UNKNOWN
    assert (
        audit.first_fix(replace(reported, fix_versions=["3.19", "3.21", "4"])) == "3.21"
    )


def test_the_text_of_the_pull_request(tmp_path: Path) -> None:
    relock = tmp_path / "relock"
    relock.mkdir()
    (relock / "changes.md").write_text("| changes |\n")
    (relock / "audit.md").write_text("No known vulnerability.\n")
    command = [ROOT / ".github/relock_text.sh", tmp_path]
    text = sh(*command, "2026-11-24").stdout
    assert "after 2026-11-24 are left out" in text
    assert "It has not run." in text
    for backend, result in (
        ("conda", "27 passed, 0 failed"),
        ("pip", "**failed** 1 failed"),
    ):
        verdict = tmp_path / f"verdict-current-{backend}"
        verdict.mkdir()
        (verdict / f"current-{backend}.md").write_text(
            f"| current | {backend} | {result} |\n"
        )
    text = sh(*command, "2026-11-24").stdout
    assert "## What changed\n\n| changes |" in text
    assert "by pip-audit\n\nNo known vulnerability." in text
    assert (
        "| current | conda | 27 passed, 0 failed |\n| current | pip | **failed** 1 failed |"
        in text
    )
    assert sh(*command, check=False).returncode == 2
