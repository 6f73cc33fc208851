"""The verdict on a pod stands apart: cli alone imports it, and it imports the rooms below. So for host."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fixtures.commands import ROOT

PACKAGE = ROOT / "scripts/lockedenv"
# Modules that lie in no room, below all of them.
BELOW = {"", "errors", "redaction", "output", "reporter"}


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a module imports; "" is the package itself."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "lockedenv":
            names = [f"lockedenv.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "lockedenv":
                room = rest.partition(".")[0]
                rooms.add(room if room.islower() else "")
    return rooms


def modules_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize(
    "room, below",
    [("pod", {"pod", "spec", "host"}), ("host", {"host"}), ("spec", {"spec", "host"})],
)
def test_a_room_imports_downwards(room: str, below: set[str]) -> None:
    for module in modules_of(room):
        upwards = imported_rooms(module) - below - BELOW
        assert not upwards, f"{module.relative_to(ROOT)} imports {sorted(upwards)}"


def test_only_the_commands_import_the_verdict_on_a_pod() -> None:
    for module in sorted(PACKAGE.rglob("*.py")):
        room = module.relative_to(PACKAGE).parts[0]
        if room not in ("pod", "cli"):
            assert "pod" not in imported_rooms(module), module.relative_to(ROOT)
