"""Which paths of an environment a removal keeps, and which it may delete.

A path that is in the inventory, or that an added package recorded, may be deleted if it is as it
was installed. Everything else is the user's, and is kept. This module changes nothing.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Mapping, Sequence

from lockedenv.host.files import FileRefused, read_json, read_regular
from lockedenv.prefix.conda_files import HISTORY
from lockedenv.prefix.edits import edited_or_unproven, edited_since, edited_texts
from lockedenv.prefix.inventory import (
    INVENTORY,
    MANIFEST,
    NOTES,
    Inventory,
    Package,
    PathKind,
    inventory_or_none,
    is_bytecode,
)
from lockedenv.prefix.make_inventory import earlier_inventory, take_inventory
from lockedenv.prefix.mark import Mark, State, read_mark
from lockedenv.prefix.place import find_backend, mark_or_none
from lockedenv.prefix.records import file_sha256, read_prefix
from lockedenv.prefix.version_2 import NOTE as NOTE_OF_VERSION_2
from lockedenv.spec.environment import MARK
from lockedenv.spec.layers import Layer

TAG_LIMIT = 10_000  # bytes
# https://bford.info/cachedir/, with the comments that tools write.
CACHE_TAG = re.compile(rb"Signature: 8a477f597d28d172789f06886806bc55(\n(#[^\n]*)?)*")
HISTORY_LIMIT = 10_000_000  # bytes
# A time, a command or specification, and the packages that came and went.
CONDA_HISTORY = re.compile(rb"((==> [^\n]* <==|[#+-][^\n]*)?(\n|\Z))*")
VERSION_2_FIELDS = {"files", "links", "wheels", "records", "conda"}
# Where packages put their files; only there may a link into the cache belong to one that is half
# installed.
PACKAGE_FOLDERS = (
    "bin",
    "etc",
    "include",
    "lib",
    "lib64",
    "libexec",
    "share",
    "ssl",
    "x86_64-conda-linux-gnu",
)


@dataclass(frozen=True)
class FolderContents:
    """What a folder contains: `own` is to be kept, `disposable` may be deleted, `folders` may be
    removed once both are gone, deepest first.
    """

    own: Sequence[str]
    disposable: Sequence[str]
    folders: Sequence[str]


def own_paths(folder: Path) -> list[str]:
    """What a removal of this environment would move out of it: the user's files and folders, and
    edited files.
    """
    mark = read_mark(folder)
    unfinished = mark is not None and is_unfinished(mark)
    inventory = whole_inventory(folder, mark) or attributed_inventory(folder)
    return sorted(classify(folder, inventory, unfinished).own)


def is_unfinished(mark: Mark) -> bool:
    """Whether an environment was not whole when its removal began."""
    if mark.state is State.REMOVING:
        return mark.other.get("unfinished") is True
    return mark.state is State.MAKING


def whole_inventory(folder: Path, mark: Mark | None) -> Inventory | None:
    """The inventory of an environment; None where there is none, or where the installation was not
    finished: then it may have a part only.
    """
    if mark is not None and mark.state is State.MAKING:
        return None
    return inventory_or_none(folder)


def attributed_inventory(folder: Path) -> Inventory:
    """An inventory of a folder without one, made from the records in it; without edited files."""
    taken = take_inventory(
        folder,
        recorded_packages(folder),
        with_interpreter=False,
        earlier=earlier_inventory(folder),
    )
    edited = edited_or_unproven(folder, taken)
    edited.update(edited_texts(folder))
    entries = []
    for entry in taken.entries:
        if entry.path not in edited:
            entries.append(entry)
    return replace(taken, entries=tuple(entries))


def recorded_packages(folder: Path) -> list[Package]:
    """Every package that has a record in a folder, locked or added."""
    installed = read_prefix(folder)
    packages = []
    for record in installed.conda:
        packages.append(
            Package(record.name, record.version, record.sha256, Layer.CONDA)
        )
    for dist in installed.dists:
        packages.append(Package(dist.name, dist.version, "", Layer.PIP))
    return packages


def classify(folder: Path, inventory: Inventory, unfinished: bool) -> FolderContents:
    """Sorts what an environment contains into what is kept and what may be deleted.

    `unfinished`: the files of a package that is half installed may be deleted too.
    """
    deletable = _installed_paths(folder, inventory)
    deletable |= intact_notes(folder, mark_or_none(folder))
    deletable |= _added_paths(folder, inventory)
    listings = _list_folders(folder)
    if unfinished:
        deletable.update(_links_to_cache(folder, listings))
    return _sort(listings, deletable)


def _installed_paths(folder: Path, inventory: Inventory) -> set[str]:
    """The files and links of an inventory that were not edited since."""
    paths = set()
    for entry in inventory.entries:
        if entry.kind is not PathKind.FOLDER:
            paths.add(entry.path)
    return paths - edited_since(folder, inventory)


def _added_paths(folder: Path, inventory: Inventory) -> set[str]:
    """The files of packages that the inventory does not have, as far as they are proven to be
    unedited.
    """
    locked = {package.name for package in inventory.packages}
    added = []
    for package in recorded_packages(folder):
        if package.name not in locked:
            added.append(package)
    if not added:
        return set()
    taken = take_inventory(folder, added, with_interpreter=False)
    brought = {entry.path for entry in taken.entries if entry.package}
    return brought - edited_or_unproven(folder, taken)


# Notes


def intact_notes(folder: Path, mark: Mark | None) -> set[str]:
    """The notes of the set-up and of its tools in an environment that have the content of such a
    note.

    A file of the same name with other content is the user's.
    """
    found = {MARK}
    for name in NOTES:
        try:
            path = folder / name
            if stat.S_ISREG(path.lstat().st_mode) and _is_note(folder, name, mark):
                found.add(name)
        except (OSError, FileRefused, ValueError, RecursionError):
            continue
    return found


def _is_note(folder: Path, name: str, mark: Mark | None) -> bool:
    path = folder / name
    if name == INVENTORY:
        return inventory_or_none(folder) is not None
    if name == MANIFEST:
        if mark is not None and mark.manifest:
            return file_sha256(path) == mark.manifest
        return {"schema_version", "fingerprint"} <= set(read_json(path))
    if name == NOTE_OF_VERSION_2:
        return bool(VERSION_2_FIELDS & set(read_json(path)))
    if name == ".lock":
        return path.lstat().st_size == 0
    if name == "CACHEDIR.TAG":
        return CACHE_TAG.fullmatch(read_regular(path, TAG_LIMIT)) is not None
    if name == HISTORY:
        is_conda = find_backend(folder).has_conda_layer
        return (
            is_conda
            and CONDA_HISTORY.fullmatch(read_regular(path, HISTORY_LIMIT)) is not None
        )
    return False


# Sorting what lies there


@dataclass(frozen=True)
class _Listing:
    """What one folder contains, as paths relative to the environment. `readable`: whether it could
    be listed.
    """

    folders: Sequence[str]
    files: Sequence[str]
    readable: bool = True


def _list_folders(folder: Path) -> dict[str, _Listing]:
    """Every folder of an environment ("" is itself) with its content, each before those in it."""
    listings = {}
    pending = [""]
    while pending:
        inside = pending.pop()
        folders = []
        files = []
        try:
            with os.scandir(folder / inside) as found:
                for entry in found:
                    path = f"{inside}/{entry.name}" if inside else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    else:
                        files.append(path)
        except OSError:
            # Permission is missing, or the folder lies deeper than a path can be long.
            if not inside:
                raise
            listings[inside] = _Listing((), (), readable=False)
            continue
        listings[inside] = _Listing(folders, files)
        pending += folders
    return listings


def _sort(listings: Mapping[str, _Listing], deletable: set[str]) -> FolderContents:
    """Sorts the paths of an environment.

    `listings`: every folder, each before those in it. `deletable`: the files that may be deleted.
    Bytecode and empty folders may be deleted too. A folder that is kept whole is kept with all that
    is in it.
    """
    whole = _folders_kept_whole(listings, deletable)
    own = []
    disposable = []
    folders = []
    for inside, listing in listings.items():
        if not whole.isdisjoint(with_parents(inside)):
            continue
        for path in listing.folders:
            if path in whole:
                own.append(path)
            else:
                folders.append(path)
        for path in listing.files:
            if path in deletable or is_bytecode(path):
                disposable.append(path)
            else:
                own.append(path)
    # A folder can be removed only after the folders in it, and was found before them.
    folders.reverse()
    return FolderContents(sorted(own), disposable, folders)


def _folders_kept_whole(
    listings: Mapping[str, _Listing], deletable: set[str]
) -> set[str]:
    """The folders in which, at every depth, something is to be kept and no file of `deletable` is.

    A folder that could not be listed is one of them: its content is not known.
    """
    with_own: set[str] = set()
    with_deletable: set[str] = set()
    for inside, listing in listings.items():
        around = with_parents(inside)
        if not listing.readable:
            with_own.update(around)
        for path in listing.files:
            if path in deletable:
                with_deletable.update(around)
            elif not is_bytecode(path):
                with_own.update(around)
    return with_own - with_deletable


def with_parents(path: str) -> list[str]:
    """A relative path and the folders that it lies in."""
    found = []
    while path:
        found.append(path)
        path = os.path.dirname(path)
    return found


def _links_to_cache(folder: Path, listings: Mapping[str, _Listing]) -> list[str]:
    """The files of half installed packages: hard links that lead out of the environment, into the
    cache.
    """
    links: Counter[tuple[int, int]] = Counter()
    found = []
    for inside, listing in listings.items():
        for path in listing.files:
            status = os.lstat(folder / path)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink < 2:
                continue
            links[status.st_dev, status.st_ino] += 1
            if inside.split("/", 1)[0] in PACKAGE_FOLDERS:
                found.append((path, status))
    paths = []
    for path, status in found:
        if links[status.st_dev, status.st_ino] < status.st_nlink:
            paths.append(path)
    return paths
