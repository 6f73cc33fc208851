"""Ways to change a copy of the repository's locks, for the tests that see whether a change is noticed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Callable

from conftest import ROOT
from lockedenv.spec.locks import CONTENT, content_digest

FILES = (
    "environment.yml",
    "environment-dev.yml",
    "pyproject.toml",
    "conda-lock.yml",
    "requirements.txt",
    "requirements-dev.txt",
)
Change = Callable[[Path], None]


def copy_locks(target: Path) -> Path:
    """The repository's specification and locks, copied into a folder."""
    for name in FILES:
        shutil.copy2(ROOT / name, target / name)
    shutil.copytree(ROOT / "locks", target / "locks")
    return target


def replaced(path: str, old: str, new: str) -> Change:
    """A change that puts a text in place of the first match of an expression in a file."""

    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert re.search(old, text), f"{path} has no {old}"
        (root / path).write_text(re.sub(old, new, text, count=1))

    return change


def resealed(path: str, change: Change) -> Change:
    """A change after which the lock counts its packages and carries the digest of its lines again, as a careful hand would."""

    def change_and_seal(root: Path) -> None:
        change(root)
        text = (root / path).read_text()
        packages = re.findall(r"^(?:- \{|[A-Za-z0-9._-]+==)", text, re.M)
        text = re.sub(r"^# \d+ packages$", f"# {len(packages)} packages", text, flags=re.M)
        text = re.sub(rf"^{CONTENT}.*$", CONTENT + content_digest(text), text, flags=re.M)
        (root / path).write_text(text)

    return change_and_seal


def version_of(name: str) -> str:
    """What stands in conda-lock.yml for a package and its version, as an expression."""
    return f'"{name}", "version": "[^"]*"'
