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


def compares_backends_name(node: ast.AST) -> bool:
    """Whether code asks which backend it has to do with, by its name."""
    if not isinstance(node, ast.Compare):
        return False
    texts = [ast.unparse(side) for side in (node.left, *node.comparators)]
    named = any(re.match(r"[(\[{]?BackendName\.", text) for text in texts)
    written = any(text in ("'conda'", "'pip'") for text in texts)
    of_backend = any(text.split(".")[-1] == "backend" for text in texts)
    return named or (written and of_backend)


@pytest.mark.parametrize(
    "code",
    [
        "backend == BackendName.CONDA",
        "installed.backend != 'conda'",
        "a and b.backend is not BackendName.PIP",
        "backend in (BackendName.CONDA, BackendName.PIP)",
    ],
)
def test_a_comparison_with_a_backends_name_is_seen(code: str) -> None:
    assert any(map(compares_backends_name, ast.walk(ast.parse(code))))


def test_what_a_backend_has_is_asked_and_not_its_name() -> None:
    """A backend more would have to be added at each place that compares a name."""
    comparing = []
    for module in PACKAGE.rglob("*.py"):
        tree = ast.parse(module.read_text())
        if any(map(compares_backends_name, ast.walk(tree))):
            comparing.append(module.relative_to(PACKAGE).as_posix())
    assert comparing == ["spec/layers.py"]
