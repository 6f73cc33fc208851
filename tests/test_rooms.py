"""Who imports whom: a room imports rooms below it, as docs/ARCHITECTURE.md shows them, and some stand apart."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from fixtures.commands import ROOT

PACKAGE = ROOT / "scripts/lockedenv"
# Each room, the highest first, and the rooms that it may import.
ROOMS = {
    "cli": {
        "install",
        "verify",
        "provenance",
        "pod",
        "backends",
        "lock",
        "prefix",
        "spec",
        "host",
    },
    "install": {"backends", "prefix", "spec", "host"},
    "verify": {"prefix", "spec", "host"},
    "provenance": {"prefix", "spec", "host"},
    "pod": {"backends", "spec", "host"},
    "backends": {"prefix", "spec", "host"},
    "lock": {"spec", "host"},
    "prefix": {"spec", "host"},
    "spec": {"host"},
    "host": set(),
}
# Parts of a room that could be deleted with their modules of cli, and nothing else would be touched.
APART = ("provenance.certificate", "provenance.ranks")


def imported_modules(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{name.name}" for name in node.names)
    return {name.partition(".")[2] for name in found if name.startswith("lockedenv.")}


def test_the_page_shows_each_room_in_this_order() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    assert re.findall(r"^\| `([a-z]+)/` \|", text, re.MULTILINE) == list(ROOMS)
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_rooms_below_it(room: str) -> None:
    modules = sorted((PACKAGE / room).rglob("*.py"))
    assert len(modules) > 3
    for module in modules:
        rooms = {name.partition(".")[0] for name in imported_modules(module)}
        wrong = rooms & set(ROOMS) - ROOMS[room] - {room}
        assert not wrong, f"{module.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("part", APART)
def test_cli_alone_imports_the_certificate_and_the_ranks(part: str) -> None:
    importing = set()
    for module in PACKAGE.rglob("*.py"):
        if any(f"{name}.".startswith(f"{part}.") for name in imported_modules(module)):
            importing.add(".".join(module.relative_to(PACKAGE).parts[:-1]))
    assert importing == {"cli", part}
