"""Disks: which one a path lies on, its free space, and what it can do."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path

GIB = 1024**3


def existing_parent(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists.

    The disk of a path that is still to be made is asked there.
    """
    for place in (path, *path.parents):
        if place.exists():
            return place
    return Path("/")


def free_bytes(path: Path) -> int:
    """What is free on the disk of a path, for this user."""
    return shutil.disk_usage(existing_parent(path)).free


def same_filesystem(first: Path, second: Path) -> bool:
    """Whether two paths, existing or not, are on one file system."""
    return existing_parent(first).stat().st_dev == existing_parent(second).stat().st_dev


@functools.lru_cache
def has_links_and_locks(folder: Path) -> bool:
    """Whether the disk of a folder has hard links and file locks.

    uv's cache needs both, and network disks may have neither. Where nothing can be written the
    answer is yes: that is found and told elsewhere.
    """
    try:
        scratch = tempfile.TemporaryDirectory(dir=existing_parent(folder))
    except OSError:
        return True
    with scratch as place:
        with open(f"{place}/a", "w") as file, contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.link(f"{place}/a", f"{place}/b")
            return True
    return False


def size_text(size: float) -> str:
    """Bytes for people, in decimal units as disks are sold: 1.6 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
