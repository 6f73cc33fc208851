"""The known vulnerabilities that apply to the installed versions.

The file is written by `scripts/lock.sh --audit`, from what pip-audit reports of the locks.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

KNOWN = Path(__file__).with_name("vulnerabilities.json")


@dataclass(frozen=True)
class VulnerabilityEntry:
    """One known vulnerability.

    `fixed_in` is empty if no version fixes it; `severity` may be "unknown".
    """

    id: str
    aliases: list[str]
    package: str
    fixed_in: str
    severity: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Vulnerability:
    """A known vulnerability of an installed package; the fields are those of VulnerabilityEntry."""

    id: str
    package: str
    installed: str
    fixed_in: str
    severity: str
    what: str
    remedy: str


def read_entries() -> list[VulnerabilityEntry]:
    """The known vulnerabilities, of the file."""
    return [
        VulnerabilityEntry(**entry)
        for entry in json.loads(KNOWN.read_text(encoding="utf-8"))
    ]


def find_vulnerabilities(
    find_version: Callable[[str], str | None],
) -> list[Vulnerability]:
    """The known vulnerabilities whose package is installed in an affected version.

    `find_version` gives the installed version of a package, or None.
    """
    found = []
    for entry in read_entries():
        installed = find_version(entry.package)
        if installed is None:
            continue
        release = installed.split("+")[0]
        if not entry.fixed_in or _numbers(release) < _numbers(entry.fixed_in):
            found.append(
                Vulnerability(
                    id=entry.id,
                    package=entry.package,
                    installed=installed,
                    fixed_in=entry.fixed_in,
                    severity=entry.severity,
                    what=entry.what,
                    remedy=entry.remedy,
                )
            )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
