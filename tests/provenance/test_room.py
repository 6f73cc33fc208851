"""Who imports whom: provenance imports what lies below it, and its two large parts stand apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fixtures.commands import ROOT

SCRIPTS = ROOT / "scripts"
PROVENANCE = "lockedenv.provenance"
BELOW = ("prefix", "host", "spec", "errors", "redaction")
APART = ("certificate", "ranks")


def imported_modules(path: Path) -> "set[str]":
    """The modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
    return {name for name in found if name.startswith("lockedenv.")}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SCRIPTS).with_suffix("").parts)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_provenance_imports_only_what_lies_below_it() -> None:
    allowed = [PROVENANCE, *(f"lockedenv.{room}" for room in BELOW)]
    for path in (SCRIPTS / "lockedenv/provenance").rglob("*.py"):
        for name in imported_modules(path):
            ours = any(is_in(name, package) for package in allowed)
            assert ours or name in ("lockedenv.ROOT", "lockedenv.VERSION"), (path, name)


@pytest.mark.parametrize("part", APART)
def test_cli_alone_imports_the_certificate_and_the_ranks(part: str) -> None:
    """So each can be deleted, with its module of cli, and nothing else is touched."""
    package = f"{PROVENANCE}.{part}"
    for path in SCRIPTS.rglob("*.py"):
        name = module_name(path)
        if not is_in(name, package) and not is_in(name, "lockedenv.cli"):
            for imported in imported_modules(path):
                assert not is_in(imported, package), (path, imported)


def test_nothing_below_cli_imports_provenance() -> None:
    for path in SCRIPTS.rglob("*.py"):
        name = module_name(path)
        if not is_in(name, PROVENANCE) and not is_in(name, "lockedenv.cli"):
            for imported in imported_modules(path):
                assert not is_in(imported, PROVENANCE), (path, imported)
