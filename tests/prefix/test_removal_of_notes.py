"""The notes of the set-up and of tools: one is removed only with the content that was written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from lockedenv.prefix.lifecycle import change_mark
from lockedenv.prefix.ownership import own_paths
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.prefix.removal import remove_environment
from small_environment import contents, install

HISTORY = (
    "==> 2026-01-01 00:00:00 <==\n# cmd: conda install six\n+conda-forge::six-1-0\n"
)
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This file is a cache directory tag.\n"
WROTE = '{"schema_version": 2, "fingerprint": "a", "results": []}\n'


def test_files_of_peoples_that_are_named_as_those_of_tools_are_kept(
    prefix: Prefix,
) -> None:
    (prefix.path / ".lock").write_text("combination: 1234")
    (prefix.path / "CACHEDIR.TAG").write_text("notes on tags")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert kept.names == (".lock", "CACHEDIR.TAG")


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("maximalcai-manifest.json", WROTE, WROTE.replace("[]", '["of mine"]')),
        ("maximalcai-installed.json", '{"files": {}, "links": {}}', "my packages"),
        ("maximalcai-inventory.json", None, "my things"),
        (".lock", "", "combination: 1234"),
        ("CACHEDIR.TAG", TAG, f"{TAG}my notes"),
    ],
)
def test_a_note_goes_only_with_the_content_that_was_written(
    name: str, ours: str | None, theirs: str, tmp_path: Path
) -> None:
    """Every file with such a name was deleted, whatever people had written into it."""
    for number, text in enumerate((ours, theirs)):
        prefix = install(find_prefix(tmp_path / f"env{number}"))
        noted = hashlib.sha256(WROTE.encode()).hexdigest()
        change_mark(prefix, manifest=noted)
        # What these tests make, and only an inventory knows.
        (prefix.path / "activate").unlink()
        (prefix.path / "pip.conf").unlink()
        if text is not None:
            (prefix.path / name).write_text(text)
        expected = [name] if text == theirs else []
        assert own_paths(prefix.path) == expected
        kept = remove_environment(prefix, prefix.path)
        if text == theirs:
            assert kept is not None
            assert kept.names == (name,)
            assert contents(kept.folder) == {name: theirs}
        else:
            assert kept is None


def test_a_link_with_the_name_of_a_note_is_kept(prefix: Prefix) -> None:
    (prefix.path / "maximalcai-manifest.json").symlink_to("/nowhere")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert kept.names == ("maximalcai-manifest.json",)


def test_a_manifest_of_which_no_hash_was_noted_goes_if_it_is_one(
    tmp_path: Path,
) -> None:
    """As in an environment that an earlier version made."""
    ours = install(find_prefix(tmp_path / "ours"))
    (ours.path / "maximalcai-manifest.json").write_text(WROTE)
    assert remove_environment(ours, ours.path) is None
    theirs = install(find_prefix(tmp_path / "theirs"))
    (theirs.path / "maximalcai-manifest.json").write_text("my notes")
    assert remove_environment(theirs, theirs.path) is not None


def test_condas_history_is_a_note_of_condas_environments_alone(tmp_path: Path) -> None:
    cases = [
        ("pip", HISTORY, True),
        ("conda", HISTORY, False),
        ("conda", "my history", True),
    ]
    for number, (backend, text, moved) in enumerate(cases):
        prefix = install(find_prefix(tmp_path / f"env{number}"))
        change_mark(prefix, backend=backend)
        (prefix.path / "conda-meta").mkdir()
        (prefix.path / "conda-meta/history").write_text(text)
        kept = remove_environment(prefix, prefix.path)
        if moved:
            assert kept is not None
            assert contents(kept.folder) == {"conda-meta/history": text}
        else:
            assert kept is None
