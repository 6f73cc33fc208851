"""The verifier beside pip check, torch's collect_env and version 1.0; and
what the manifest costs.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from measuring import ROOT, compare, time_command

VERIFIER = ROOT / "scripts/verify_environment.py"
VERSION_1 = "cc90f63"


def verify(prefix: Path, rounds: int) -> str:
    """The quick level and the full level; two Markdown tables."""
    python = prefix / "bin/python"
    quick = {
        "verify_environment.py --level quick": [python, VERIFIER, "--level", "quick"],
        "python -m pip check": [python, "-m", "pip", "check"],
        "python -m torch.utils.collect_env": [python, "-m", "torch.utils.collect_env"],
    }
    with tempfile.TemporaryDirectory() as name:
        old = unpack_version_1(Path(name))
        full = {
            "verify_environment.py": [python, VERIFIER],
            "version 1.0's, on the same environment": [python, old],
        }
        tables = [
            compare_commands("The verifier, quick level", quick, rounds),
            compare_commands("The verifier, full level", full, rounds),
        ]
    return "\n".join(tables)


def write_manifest(prefix: Path, rounds: int) -> str:
    """The quick level with and without the session manifest; a Markdown table."""
    quick = [prefix / "bin/python", VERIFIER, "--level", "quick"]
    with tempfile.TemporaryDirectory() as name:
        commands = {
            "quick level": quick,
            "quick level and --manifest": [
                *quick,
                "--manifest",
                Path(name, "manifest.json"),
            ],
        }
        return compare_commands("The session manifest", commands, rounds)


def compare_commands(
    title: str, commands: "dict[str, list[object]]", rounds: int
) -> str:
    """Runs commands in turns; a Markdown table."""
    contenders = {}
    for name, command in commands.items():
        contenders[name] = lambda command=command: time_command(*command).seconds
    return compare(title, contenders, rounds)


def unpack_version_1(folder: Path) -> Path:
    """The verifier of version 1.0, with its modules, in a folder."""
    command = ["git", "-C", ROOT, "archive", VERSION_1]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder / "scripts/verify_environment.py"
