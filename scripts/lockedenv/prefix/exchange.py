"""The exchange of an environment for its successor: one rename of a link.

Whenever it is killed, PREFIX is the old environment or the new one, whole. `lifecycle.py` decides
which of the two is used, and when the old one is removed.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from dataclasses import replace
from pathlib import Path

from lockedenv.errors import Stop
from lockedenv.prefix.kept_files import Say, tell_kept
from lockedenv.prefix.mark import read_mark, write_mark
from lockedenv.prefix.place import Prefix, linked_environment
from lockedenv.prefix.removal import refuse_mounts, remove_environment

AT_FDCWD = -100
RENAME_EXCHANGE = 2  # linux/fs.h


def point(prefix: Prefix, folder: Path) -> None:
    """Makes PREFIX a link to an environment in PREFIX.d, by one rename. Raises Stop where a folder
    is in its place.
    """
    name = prefix.public_path
    if name.is_dir() and not name.is_symlink():
        try:
            name.rmdir()  # an empty folder holds nothing to lose
        except OSError:
            raise Stop(
                f"{name} appeared while the environment was made, and is not empty: move it away, "
                "and run again"
            ) from None
    _link(prefix, folder).rename(name)


def _link(prefix: Prefix, folder: Path) -> Path:
    """Makes a link in PREFIX.d, which is renamed to PREFIX: its text is right for that place."""
    link = prefix.container / f".{prefix.public_path.name}.{secrets.token_hex(8)}"
    link.symlink_to(Path(prefix.container.name, folder.name))
    return link


def exchange(prefix: Prefix, say: Say) -> None:
    """Makes PREFIX lead to the environment `prefix.path`."""
    name = prefix.public_path
    if linked_environment(name) or not name.exists():
        point(prefix, prefix.path)
        return
    # An environment of version 2.0 is a folder at PREFIX. It is moved into PREFIX.d, and its mark
    # gets the id of its place there first: a killed run finds it at either place.
    old = prefix.successor()
    mark = read_mark(name)
    if mark is None or not prefix.owns(name, mark):
        raise Stop(
            f"{name} is not an environment of this set-up any more; move it away, and run again"
        )
    refuse_mounts(name)
    write_mark(name, replace(mark, id=old.path.name))
    link = _link(prefix, prefix.path)
    link.rename(old.path)
    if _swap(name, old.path):
        return
    old.path.unlink()
    # The disk cannot exchange two names, or the folder belongs to an image's lower layer.
    tell_kept(remove_environment(prefix, name), say)
    point(prefix, prefix.path)


def _swap(first: Path, second: Path) -> bool:
    """Exchanges two paths in one step; gives False where this disk cannot do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:
        return False
    paths = (os.fsencode(first), os.fsencode(second))
    status = renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE)
    return bool(status == 0)
