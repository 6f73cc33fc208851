"""What the tests of the one command do with the environments that it made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from fixtures.commands import clean_environ, sh
from fixtures.machine import Machine
from lockedenv.spec.environment import MARK

SITE = "lib/python3.11/site-packages"


def set_up_with(
    machine: Machine, case: str, *options: Any, **environ: str
) -> "subprocess.CompletedProcess[str]":
    """The set-up where one thing is other than on this machine: programs/set_up_with.py has the cases."""
    program = Path(__file__).with_name("programs") / "set_up_with.py"
    command = ["python3", program, case, *machine.command(*options)[1:]]
    environ = {"PYTHONPATH": str(machine.project / "scripts"), **environ}
    return sh(*command, check=False, env={**machine.environ, **environ})


def change_mark(folder: Path, **changes: Any) -> dict[str, Any]:
    """What a mark says; the changes are written to it."""
    path = folder / MARK
    document = json.loads(path.read_text())
    if changes:
        path.write_text(json.dumps({**document, **changes}))
    return dict(document)


def edit(path: Path) -> None:
    """Edits a file in place, as an editor or a program does: its links in the cache change with it."""
    with path.open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(content[:-2] + b"#\n")


def add_package(machine: Machine, requirement: str) -> None:
    """Installs a package into the environment, as people do."""
    python = machine.prefix / "bin/python"
    command = [
        machine.prefix / "bin/uv",
        "pip",
        "install",
        "--python",
        python,
        requirement,
    ]
    sh(*command, env=clean_environ())


def environments(machine: Machine) -> list[Path]:
    """The environments that lie side by side."""
    return sorted(machine.prefix.with_name(f"{machine.prefix.name}.d").iterdir())
