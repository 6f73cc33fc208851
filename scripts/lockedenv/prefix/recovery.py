"""Puts right what a killed run has left: links, folders that were begun, environments that were not
made to the end or that a verified one has replaced.

An environment is not removed here: `lifecycle.py` gives it up.
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
from lockedenv.prefix.mark import State
from lockedenv.prefix.place import ID, Prefix, mark_or_none
from lockedenv.prefix.removal import mounts_in
from lockedenv.prefix.status import find_move
from lockedenv.spec.environment import MARK

UNPACKED = (
    "maximalcai-uv",
    "maximalcai-pkgs",
)  # what is unpacked for an environment while it is made


def recover(prefix: Prefix, say: Say) -> None:
    """Puts right what a killed run has left, and says what it did. Hold the lock.

    What is mounted in a folder keeps it from being removed; then nothing in it is touched.
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
        if folder in (used, prefix.path):
            continue
        over = mark.state is not State.INSTALLED
        # An older one is a predecessor; it stays until its successor is verified.
        older = used_mark is not None and mark.made < used_mark.made
        if over or (older and used_mark is not None and used_mark.verified):
            give_up(prefix, folder, say)


def _best_installed(prefix: Prefix) -> Path | None:
    """The environment in PREFIX.d that PREFIX should lead to: a verified one, else the newest."""
    best = None
    for folder, mark in prefix.environments():
        if mark.state is State.INSTALLED and not find_move(
            Prefix(folder, prefix.public_path)
        ):
            if best is None or mark.verified >= best[1].verified:
                best = (folder, mark)
    return best[0] if best else None


def _drop_unused_links(prefix: Prefix) -> None:
    """Removes links that a run left in PREFIX.d when it was killed between
    making and renaming one.
    """
    if not prefix.container.is_dir():
        return
    for path in prefix.container.iterdir():
        ours = re.fullmatch(
            rf"\.{re.escape(prefix.public_path.name)}\.[0-9a-f]{{16}}", path.name
        )
        if ours and path.is_symlink():
            path.unlink()


def _drop_begun_folders(prefix: Prefix) -> None:
    """Removes a folder of an environment in which a killed run had not even written the mark."""
    if not prefix.container.is_dir():
        return
    for folder in prefix.container.iterdir():
        if folder.is_symlink() or not folder.is_dir() or not ID.fullmatch(folder.name):
            continue
        # What is mounted there, or is another user's, stays.
        with contextlib.suppress(OSError):
            found = list(folder.iterdir())
            # What `write_atomically` calls a mark that is not whole yet.
            if all(path.name.startswith(f".{MARK}.") for path in found):
                for path in found:
                    path.unlink()
                folder.rmdir()


def unpacked_folders(prefix: Prefix) -> list[Path]:
    """What was unpacked to make environments of this prefix, which may be gone. Not what something
    is mounted in.
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
    """Whether a folder is there and is this user's; all users may be able to write beside it."""
    return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid()
