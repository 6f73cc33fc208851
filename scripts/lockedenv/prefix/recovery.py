"""Repairs what a killed run has left: links, empty folders of environments, and environments that
are unfinished or that a verified one has replaced.

`lifecycle.py` removes an environment; this module does not.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from lockedenv.prefix.exchange import point
from lockedenv.prefix.kept_files import Say
from lockedenv.prefix.lifecycle import give_up
from lockedenv.prefix.mark import Mark, State
from lockedenv.prefix.place import ID, Prefix, mark_or_none
from lockedenv.prefix.removal import mounts_in
from lockedenv.prefix.status import find_move
from lockedenv.spec.environment import MARK

UNPACKED = (
    "maximalcai-uv",
    "maximalcai-pkgs",
)  # what is unpacked for an environment while it is made


def recover(prefix: Prefix, say: Say) -> None:
    """Repairs what a killed run has left, and prints with `say` what it did. The caller holds the
    lock of the prefix.

    A folder with a mount in it is not removed, and nothing in it is changed.
    """
    _drop_unused_links(prefix)
    _drop_begun_folders(prefix)
    for unpacked in unpacked_folders(prefix):
        shutil.rmtree(unpacked, ignore_errors=True)
    if prefix.used() is None:
        folder = _best_installed(prefix)
        if folder is not None:
            point(prefix, folder)
            say(f"{prefix.public_path} leads to the environment {folder} again")
    used = prefix.used()
    used_mark = mark_or_none(used) if used else None
    for folder, mark in prefix.environments():
        if folder not in (used, prefix.path) and _is_over(mark, used_mark):
            give_up(prefix, folder, say)


def _is_over(mark: Mark, used_mark: Mark | None) -> bool:
    """Whether an environment that is not used is unfinished, or was replaced.

    A predecessor is replaced when its successor is verified.
    """
    if mark.state is not State.INSTALLED:
        return True
    if used_mark is None or not used_mark.verified:
        return False
    return mark.made < used_mark.made


def _best_installed(prefix: Prefix) -> Path | None:
    """The environment in PREFIX.d that PREFIX should lead to: the newest verified one; if none is
    verified, the newest.
    """
    newest = None
    for folder, mark in reversed(prefix.environments()):
        if mark.state is not State.INSTALLED:
            continue
        if find_move(Prefix(folder, prefix.public_path)):
            continue
        if mark.verified:
            return folder
        if newest is None:
            newest = folder
    return newest


def _drop_unused_links(prefix: Prefix) -> None:
    """Removes links in PREFIX.d that a run made, and was killed before it renamed them."""
    if not prefix.container.is_dir():
        return
    for path in prefix.container.iterdir():
        ours = re.fullmatch(
            rf"\.{re.escape(prefix.public_path.name)}\.[0-9a-f]{{16}}", path.name
        )
        if ours and path.is_symlink():
            path.unlink()


def _drop_begun_folders(prefix: Prefix) -> None:
    """Removes a folder of an environment in which a killed run had not written the mark yet."""
    if not prefix.container.is_dir():
        return
    for folder in prefix.container.iterdir():
        if folder.is_symlink() or not folder.is_dir() or not ID.fullmatch(folder.name):
            continue
        # A mount point, or a folder of another user, stays.
        with contextlib.suppress(OSError):
            found = list(folder.iterdir())
            # `write_atomically` gives a mark this name until it is whole.
            if all(path.name.startswith(f".{MARK}.") for path in found):
                for path in found:
                    path.unlink()
                folder.rmdir()


def unpacked_folders(prefix: Prefix) -> list[Path]:
    """The folders with what was unpacked to make environments of this prefix, which may be removed.
    Without those that have a mount in them.
    """
    found = [prefix.beside(suffix) for suffix in UNPACKED]
    if prefix.container.is_dir():
        for path in sorted(prefix.container.iterdir()):
            name, _, suffix = path.name.partition(".")
            if ID.fullmatch(name) and suffix in UNPACKED:
                found.append(path)
    removable = []
    for path in found:
        if is_own_folder(path) and not mounts_in(path):
            removable.append(path)
    return removable


def is_own_folder(path: Path) -> bool:
    """Whether a folder exists and belongs to this user: others may be able to write beside it."""
    return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid()
