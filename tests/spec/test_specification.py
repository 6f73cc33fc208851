"""A lock says which specification it is of, without a YAML library and without conda-lock."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.commands import ROOT
from fixtures.lock_damage import copy_locks, replaced
from lockedenv.spec.environment import Environment, list_environments
from lockedenv.spec.specification import (
    meaningful_lines,
    specification_digest,
    strip_comment,
)


@pytest.mark.parametrize("env", list_environments(), ids=lambda env: env.name)
def test_the_repositorys_locks_are_of_their_specifications(env: Environment) -> None:
    assert env.edited_since_locked() is False


@pytest.mark.parametrize(
    "path, old, new",
    [
        ("environment.yml", "peft>=0.6.0", "peft>=0.7.0"),
        ("environment.yml", "  - tqdm>=4.66.0\n", ""),
        ("environment.yml", "  - nvidia\n", ""),
        ("locks/virtual-packages.yml", '"2.35"', '"2.36"'),
        ("locks/flash-attn.in", "flash-attn==2.8.3 ", "flash-attn==2.8.2 "),
        ("locks/flash-attn.in", "glibc 2.32", "glibc 2.31"),
    ],
)
def test_an_edit_of_the_specification_is_seen(
    path: str, old: str, new: str, tmp_path: Path
) -> None:
    copy_locks(tmp_path)
    env = Environment(tmp_path)
    assert env.edited_since_locked() is False
    replaced(path, old, new)(tmp_path)
    assert env.edited_since_locked() is True


def test_a_specification_in_another_encoding_is_an_edited_one(tmp_path: Path) -> None:
    """lock.sh refuses it, with its line; the set-up goes on with the locks, and says so."""
    copy_locks(tmp_path)
    with (tmp_path / "environment.yml").open("ab") as file:
        file.write("  - größe\n".encode("latin-1"))
    assert Environment(tmp_path).edited_since_locked() is True


def test_a_lock_that_does_not_say_what_it_is_of_is_not_called_old(
    tmp_path: Path,
) -> None:
    copy_locks(tmp_path)
    replaced("conda-lock.yml", "# Specification.*\n", "")(tmp_path)
    assert Environment(tmp_path).edited_since_locked() is False


def test_an_environment_without_virtual_packages_has_the_repositorys(
    tmp_path: Path,
) -> None:
    (tmp_path / "environment.yml").write_text("channels: [conda-forge]\n")
    before = specification_digest(tmp_path)
    (tmp_path / "locks").mkdir()
    text = (ROOT / "locks/virtual-packages.yml").read_text()
    (tmp_path / "locks/virtual-packages.yml").write_text(text)
    assert specification_digest(tmp_path) == before
    (tmp_path / "locks/virtual-packages.yml").write_text(text.replace("2.35", "2.31"))
    assert specification_digest(tmp_path) != before


@pytest.mark.parametrize(
    "line, kept",
    [
        ("- numpy  # a reason", "- numpy  "),
        ("# a comment", ""),
        ("  # a comment", "  "),
        ("- numpy#1", "- numpy#1"),
        ("- 'a # b'  # c", "- 'a # b'  "),
        ('- "a # b"', '- "a # b"'),
        ("- it's # a comment", "- it's "),
        ("channels: ['a # b', c]  # d", "channels: ['a # b', c]  "),
    ],
)
def test_what_a_comment_is(line: str, kept: str) -> None:
    assert strip_comment(line) == kept


def test_the_lines_that_count() -> None:
    assert meaningful_lines("a: 1  \n\n# b\n  c: 2 # d\n") == ["a: 1", "  c: 2"]
