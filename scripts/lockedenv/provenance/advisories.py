"""The known vulnerabilities of the locked versions (vulnerabilities.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, List

from lockedenv.installed import Installed
from lockedenv.machine import version_tuple


def vulnerabilities(installed: Installed) -> List[Dict[str, str]]:
    """The known vulnerabilities (vulnerabilities.json) whose package is installed in an affected version."""
    found = []
    for entry in json.loads((Path(__file__).parent / "vulnerabilities.json").read_text()):
        version = installed.version(entry["package"])
        if version and (not entry["fixed_in"] or version_tuple(version.split("+")[0]) < version_tuple(entry["fixed_in"])):
            found.append({**entry, "installed": version})
    return found
