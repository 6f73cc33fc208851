"""Which known vulnerabilities apply: vulnerabilities.json beside this file, compared with installed versions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

KNOWN = Path(__file__).with_name("vulnerabilities.json")


@dataclass(frozen=True)
class Vulnerability:
    """One known vulnerability of an installed package. `fixed_in` is empty if no version fixes it."""

    id: str
    package: str
    installed: str
    fixed_in: str
    what: str
    remedy: str


def find_vulnerabilities(find_version: Callable[[str], str | None]) -> list[Vulnerability]:
    """The known vulnerabilities whose package is installed in an affected version.

    `find_version` gives the installed version of a package, or None.
    """
    found = []
    for entry in json.loads(KNOWN.read_text(encoding="utf-8")):
        installed = find_version(entry["package"])
        if installed is None:
            continue
        fixed_in = entry["fixed_in"]
        release = installed.split("+")[0]
        if not fixed_in or _numbers(release) < _numbers(fixed_in):
            found.append(
                Vulnerability(
                    id=entry["id"],
                    package=entry["package"],
                    installed=installed,
                    fixed_in=fixed_in,
                    what=entry["what"],
                    remedy=entry["remedy"],
                )
            )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
