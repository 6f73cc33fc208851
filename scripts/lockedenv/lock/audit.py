"""spec/vulnerabilities.json, made from what pip-audit reports of the locks.

pip-audit says what is known and which version fixes it; the OSV database says how severe it is.
What people wrote about a vulnerability (`what`, `remedy`) is kept.

The file's present ids, severities and versions come from GitHub's advisories and the OSV database
as others have published them in November 2026 (https://github.com/advisories,
https://osv.dev/vulnerability/ID): neither database was reached when it was written. The first
run of the workflow `relock` compares them with the databases themselves.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Sequence

import requests
from lockedenv.errors import Stop
from lockedenv.spec.environment import REQUIREMENTS, Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.locks import PipPackage, canonical
from lockedenv.spec.vulnerabilities import KNOWN, VulnerabilityEntry, read_entries
from packaging.version import Version

OSV = "https://api.osv.dev/v1/vulns/"  # https://google.github.io/osv.dev/get-v1-vulns/
OSV_LIMIT = 1 << 20  # bytes of an answer
TIMEOUT = 30
UNKNOWN = "unknown"
DESCRIPTION_LENGTH = 200
SHOWN = 3  # packages in a message

SeveritySource = Callable[[str], str]


@dataclass(frozen=True)
class Reported:
    """A vulnerability as pip-audit reports it."""

    id: str
    aliases: list[str]
    package: str
    installed: str
    fix_versions: list[str]
    description: str

    @property
    def all_ids(self) -> set[str]:
        return {self.id, *self.aliases}


@dataclass(frozen=True)
class AuditReport:
    """One report. `audited`: package -> the version that was looked up."""

    audited: dict[str, str]
    reported: list[Reported]


@dataclass(frozen=True)
class Audit:
    """What an audit found, beside the file of the repository.

    `entries`: all that are reported now. `new`: those of them that the file lacked. `gone`: those
    of the file that are no longer reported.
    """

    entries: list[VulnerabilityEntry] = field(default_factory=list)
    new: list[VulnerabilityEntry] = field(default_factory=list)
    gone: list[VulnerabilityEntry] = field(default_factory=list)


def read_report(path: Path) -> AuditReport:
    """pip-audit's JSON.

    Raises Stop for a file that is none, and where a package was not audited.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        dependencies: list[dict[str, Any]] = document["dependencies"]
        audited = {}
        reported = []
        skipped = []
        for dependency in dependencies:
            if "skip_reason" in dependency:
                skipped.append(f"{dependency['name']} ({dependency['skip_reason']})")
                continue
            audited[canonical(dependency["name"])] = str(dependency["version"])
            for vulnerability in dependency["vulns"]:
                reported.append(
                    Reported(
                        id=vulnerability["id"],
                        aliases=[*vulnerability["aliases"]],
                        package=canonical(dependency["name"]),
                        installed=dependency["version"],
                        fix_versions=[*vulnerability["fix_versions"]],
                        description=vulnerability["description"],
                    )
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Stop(
            f"{path}: is no report of pip-audit ({error!r}); write it with: "
            "pip-audit --disable-pip --require-hashes --format json --output FILE "
            "--requirement requirements.txt"
        ) from None
    if skipped:
        raise Stop(
            f"{path}: pip-audit did not audit {len(skipped)} of {len(dependencies)} packages, "
            f"although it may say that it found nothing: {skipped[0]}; run it where it reaches "
            "PyPI's JSON pages, or with --vulnerability-service osv"
        )
    return AuditReport(audited, reported)


def is_audited(pin: PipPackage, reports: Sequence[AuditReport]) -> bool:
    """Whether a report has looked up this version."""
    for report in reports:
        if report.audited.get(pin.name) == pin.version:
            return True
    return False


def require_complete(
    reports: Sequence[AuditReport], environments: Sequence[Environment]
) -> None:
    """Raises Stop unless every locked wheel of every environment was audited.

    What is not audited would disappear from the list.
    """
    for environment in environments:
        lacking = []
        for pin in environment.wheels(BackendName.PIP):
            if not is_audited(pin, reports):
                lacking.append(f"{pin.name} {pin.version}")
        if lacking:
            raise Stop(
                f"{environment.folder / REQUIREMENTS}: no report has {', '.join(lacking[:SHOWN])} "
                f"({len(lacking)} in all); give pip-audit's report of this file too"
            )


def compare(
    reports: Sequence[AuditReport],
    known: list[VulnerabilityEntry],
    find_severity: SeveritySource,
) -> Audit:
    """What the reports say, as entries of the file.

    `find_severity` gives the severity of an id, or an empty text.
    """
    all_reported: list[Reported] = []
    for report in reports:
        all_reported += report.reported
    entries: dict[str, VulnerabilityEntry] = {}
    new_ids = set()
    for reported in all_reported:
        entry = find_entry(reported, [*entries.values(), *known])
        fix = first_fix(reported)
        if entry is None:
            fix = fix or first_unaffected(reported, reports)
            entry = make_entry(reported, fix)
            new_ids.add(entry.id)
        severity = entry.severity
        if severity == UNKNOWN:
            severity = first_severity(reported, find_severity)
        aliases = sorted({*entry.aliases, *reported.all_ids} - {entry.id})
        entries[entry.id] = replace(
            entry, aliases=aliases, fixed_in=fix or entry.fixed_in, severity=severity
        )
    result = sorted(entries.values(), key=lambda entry: (entry.package, entry.id))
    new = []
    for entry in result:
        if entry.id in new_ids:
            new.append(entry)
    gone = []
    for entry in known:
        if entry.id not in entries:
            gone.append(entry)
    return Audit(entries=result, new=new, gone=gone)


def find_entry(
    reported: Reported, entries: list[VulnerabilityEntry]
) -> VulnerabilityEntry | None:
    """The entry of the same vulnerability, by its id or an alias."""
    for entry in entries:
        if entry.package == reported.package and reported.all_ids & {
            entry.id,
            *entry.aliases,
        }:
            return entry
    return None


def make_entry(reported: Reported, fix: str) -> VulnerabilityEntry:
    """An entry with what the report says; people may write `what` and `remedy` better."""
    name = reported.id
    for other in sorted(reported.all_ids):
        if other.startswith("CVE-"):
            name = other
            break
    if fix:
        remedy = (
            f"update it to {fix} or newer: scripts/lock.sh --update {reported.package}"
        )
    else:
        remedy = (
            f"no version fixes it; read https://osv.dev/vulnerability/{reported.id}"
        )
    description = " ".join(reported.description.split())
    return VulnerabilityEntry(
        id=name,
        aliases=[],
        package=reported.package,
        fixed_in=fix,
        severity=UNKNOWN,
        what=description[:DESCRIPTION_LENGTH],
        remedy=remedy,
    )


def first_fix(reported: Reported) -> str:
    """The lowest release above the installed one that fixes it; empty if none does.

    Databases name pre-releases too, such as 5.0.0rc3: the fix is then in 5.0.0.
    """
    installed = Version(reported.installed)
    fixes = []
    for text in reported.fix_versions:
        version = Version(text)
        if version > installed:
            fixes.append(version)
    if not fixes:
        return ""
    return min(fixes).base_version


def first_unaffected(reported: Reported, reports: Sequence[AuditReport]) -> str:
    """The lowest newer version that was audited and does not have it; empty if there is none.

    Some advisories name the last version that is affected, and none that fixes it.
    """
    found = []
    for report in reports:
        version = report.audited.get(reported.package, "")
        if not version or Version(version) <= Version(reported.installed):
            continue
        if not has_reported(report, reported):
            found.append(version)
    return min(found, key=Version, default="")


def has_reported(report: AuditReport, vulnerability: Reported) -> bool:
    """Whether a report has the vulnerability too, under any of its ids."""
    for other in report.reported:
        if other.all_ids & vulnerability.all_ids:
            return True
    return False


def first_severity(reported: Reported, find_severity: SeveritySource) -> str:
    """The severity of the first of its ids that has one; GitHub's advisories have it."""
    for name in sorted(reported.all_ids, key=lambda name: not name.startswith("GHSA-")):
        severity = find_severity(name)
        if severity:
            return severity
    return UNKNOWN


def ask_osv(name: str) -> str:
    """The severity that OSV has of an id: low, moderate, high or critical.

    Empty where it has none or does not answer.
    """
    try:
        with requests.get(OSV + name, timeout=TIMEOUT, stream=True) as answer:
            if answer.status_code != 200:
                return ""
            text = answer.raw.read(OSV_LIMIT, decode_content=True)
        severity = json.loads(text)["database_specific"]["severity"]
    except (requests.RequestException, OSError, ValueError, KeyError, TypeError):
        return ""
    return str(severity).lower()


def audit(paths: list[Path], find_severity: SeveritySource = ask_osv) -> Audit:
    """What these reports of pip-audit say beside the file of the repository. Raises Stop."""
    reports = [read_report(path) for path in paths]
    return compare(reports, read_entries(), find_severity)


def write_entries(entries: list[VulnerabilityEntry]) -> None:
    document = [asdict(entry) for entry in entries]
    KNOWN.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def audit_text(result: Audit) -> str:
    """The audit as Markdown."""
    if not result.entries:
        lines = ["No known vulnerability."]
    else:
        lines = [
            "| id | package | severity | fixed in | what to do |",
            "|---|---|---|---|---|",
        ]
    for entry in result.entries:
        fixed_in = entry.fixed_in or "no version"
        lines.append(
            f"| {entry.id} | {entry.package} | {entry.severity} | {fixed_in} | {entry.remedy} |"
        )
    for title, entries in (("New", result.new), ("No longer reported", result.gone)):
        if entries:
            ids = [entry.id for entry in entries]
            lines += ["", f"{title}: {', '.join(ids)}."]
    return "\n".join(lines)
