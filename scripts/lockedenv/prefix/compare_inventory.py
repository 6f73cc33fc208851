"""Compares a prefix with its inventory: which paths differ, and which are not in the inventory.

It changes nothing. The caller decides what a difference means: a removal keeps an edited file, a
check reports it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Iterable, Iterator

from lockedenv.host.files import FileRefused, read_regular
from lockedenv.prefix.inventory import (
    NOTES,
    Inventory,
    InventoryEntry,
    PathKind,
    is_bytecode,
)
from lockedenv.prefix.records import hashes

TEXT_LIMIT = 1_000_000  # bytes of a text that users may edit
READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


class PathProblem(Enum):
    """How a path differs from its entry."""

    MISSING = "missing"
    KIND = "kind"
    SIZE = "size"
    TIME = "time"
    TARGET = "target"
    EXECUTABLE = "executable"
    CONTENT = "content"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class PathDifference:
    """A path of the inventory that is not as it was recorded."""

    path: str
    problem: PathProblem
    package: str = ""


def compare_quick(prefix: Path, inventory: Inventory) -> list[PathDifference]:
    """Every path whose type, size, modification time, link target or executable bit is not as
    recorded.
    """
    differences = []
    root = f"{prefix}/"
    for entry in inventory.entries:
        problem = _compare_status(root, entry, times=True)
        if problem:
            differences.append(PathDifference(entry.path, problem, entry.package))
    return differences


def compare_full(prefix: Path, inventory: Inventory) -> list[PathDifference]:
    """Every path whose type, size, content, link target or executable bit is not as recorded.

    The modification time is not compared, because the content is.
    """
    differences = []
    to_read = []
    root = f"{prefix}/"
    for entry in inventory.entries:
        problem = _compare_status(root, entry, times=False)
        if problem:
            differences.append(PathDifference(entry.path, problem, entry.package))
        elif entry.kind is PathKind.FILE and entry.sha256:
            to_read.append(entry)
    found = hashes(prefix / entry.path for entry in to_read)
    for entry in to_read:
        sha256 = found[prefix / entry.path]
        if not sha256:
            differences.append(
                PathDifference(entry.path, PathProblem.UNREADABLE, entry.package)
            )
        elif sha256 != entry.sha256:
            differences.append(
                PathDifference(entry.path, PathProblem.CONTENT, entry.package)
            )
    return differences


def keeps_content(prefix: Path, entry: InventoryEntry) -> bool:
    """Whether a text still has its recorded content; lines may have been added before or after
    it.
    """
    try:
        content = read_regular(prefix / entry.path, TEXT_LIMIT)
    except (OSError, FileRefused):
        return False
    for part in (content[: entry.size], content[-entry.size :]):
        if hashlib.sha256(part).hexdigest() == entry.sha256:
            return True
    return False


def times_changed_wholesale(
    inventory: Inventory, differences: Iterable[PathDifference]
) -> bool:
    """Whether most files have another modification time, as after a copy or in the layer of an
    image.
    """
    problems = Counter(difference.problem for difference in differences)
    if not problems[PathProblem.TIME]:
        return False
    kinds = Counter(entry.kind for entry in inventory.entries)
    return problems[PathProblem.TIME] * 2 > kinds[PathKind.FILE]


def _compare_status(
    root: str, entry: InventoryEntry, times: bool
) -> PathProblem | None:
    path = root + entry.path
    try:
        status = os.lstat(path)
    except OSError:
        return PathProblem.MISSING
    mode = status.st_mode
    if entry.kind is PathKind.FILE:
        if not stat.S_ISREG(mode):
            return PathProblem.KIND
        if status.st_size != entry.size and entry.size >= 0:
            return PathProblem.SIZE
        if not mode & READABLE:
            return PathProblem.UNREADABLE
        if times and status.st_mtime_ns != entry.mtime_ns:
            return PathProblem.TIME
        if entry.executable and not mode & stat.S_IXUSR:
            return PathProblem.EXECUTABLE
    elif entry.kind is PathKind.LINK:
        if not stat.S_ISLNK(mode):
            return PathProblem.KIND
        if os.readlink(path) != entry.target:
            return PathProblem.TARGET
    elif not stat.S_ISDIR(mode):
        return PathProblem.KIND
    return None


def unlisted_paths(prefix: Path, inventory: Inventory) -> list[str]:
    """The files, links and empty folders in a prefix that are not in the inventory: relative to the
    prefix, sorted.

    Without bytecode in __pycache__ and the notes of the set-up. The files of added packages are
    included.
    """
    listed = {entry.path for entry in inventory.entries}
    listed.update(NOTES)
    return sorted(path for path in walk(prefix) if path not in listed)


def walk(prefix: Path) -> Iterator[str]:
    """Every file, link and empty folder below a folder, relative to it, without bytecode in
    __pycache__.

    A folder that cannot be read is given as an empty one: permission is missing, or it lies deeper
    than a path can be long.
    """
    pending = [""]
    while pending:
        folder = pending.pop()
        empty = True
        try:
            with os.scandir(f"{prefix}/{folder}") as found:
                for entry in found:
                    empty = False
                    path = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{path}/")
                    elif not is_bytecode(path):
                        yield path
        except OSError:
            if not folder:
                raise
        if empty and folder:
            yield folder.rstrip("/")
