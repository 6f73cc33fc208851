"""Which files of an environment were edited since their package or the set-up installed them.

It changes nothing. A file counts as edited unless something proves that it is as it was installed.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Iterator

from lockedenv.host.files import FileRefused, read_regular
from lockedenv.prefix.activation import activate_text, guard_text
from lockedenv.prefix.compare_inventory import PathProblem, compare_full, compare_quick
from lockedenv.prefix.inventory import Inventory, InventoryEntry, is_inside
from lockedenv.prefix.make_inventory import record_entries
from lockedenv.prefix.mark import read_mark
from lockedenv.prefix.place import find_backend, place_of
from lockedenv.prefix.records import CondaRecord, Dist, file_sha256, hashes, read_prefix
from lockedenv.spec.layers import Layer

# Files that installers write into a package's dist-info, in most cases without a hash.
GENERATED = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
PROGRAM_LIMIT = 10_000  # bytes
# The program that conda makes of an entry point; its record has no hash of it.
ENTRY_POINT = re.compile(
    rb"#![^\n]+\n# -\*- coding: utf-8 -\*-\nimport re\nimport sys\n+from [\w.]+ import \w+\n+"
    rb"if __name__ == '__main__':\n"
    rb"[ \t]+sys\.argv\[0\] = re\.sub\(r'[^'\n]*', '', sys\.argv\[0\]\)\n"
    rb"[ \t]+sys\.exit\([\w.]+\(\)\)\n?"
)


def edited_or_unproven(folder: Path, taken: Inventory) -> set[str]:
    """The paths of an inventory just taken that were edited, or are not proven to be as they were
    installed.
    """
    names = {package.name for package in taken.packages}
    paths = unproven_paths(folder, names)
    for entry in edited_entries(folder, taken):
        paths.add(entry.path)
    return paths


def edited_entries(folder: Path, inventory: Inventory) -> list[InventoryEntry]:
    """The entries whose path differs from its record, by content. A path that is missing or not
    executable does not count as edited.
    """
    entries = inventory.entries_by_path()
    edited = []
    for difference in compare_full(folder, inventory):
        if difference.problem not in (PathProblem.MISSING, PathProblem.EXECUTABLE):
            edited.append(entries[difference.path])
    return edited


def edited_since(folder: Path, inventory: Inventory) -> set[str]:
    """The paths of the entries that were edited, by sizes and times. A file is read only where its
    time alone differs.
    """
    entries = inventory.entries_by_path()
    edited = set()
    touched = []
    for difference in compare_quick(folder, inventory):
        if difference.problem is PathProblem.TIME:
            touched.append(difference.path)
        elif difference.problem not in (PathProblem.MISSING, PathProblem.EXECUTABLE):
            edited.add(difference.path)
    found = hashes(folder / path for path in touched)
    for path in touched:
        if found[folder / path] != entries[path].sha256:
            edited.add(path)
    return edited


def unproven_paths(folder: Path, names: set[str]) -> set[str]:
    """The files of the packages of these names that may be edited: no recorded hash shows what they
    should be.

    Without what installers write themselves. A link counts as what it leads to.
    """
    installed = read_prefix(folder)
    found: set[str] = set()
    for record in installed.conda:
        if record.name in names:
            found.update(_unproven_in_conda_record(folder, record))
    for dist in installed.dists:
        wanted = dist.name in names and dist.manager == Layer.PIP
        if wanted and folder in dist.path.parents:
            found.update(_unproven_in_wheel(folder, dist))
    return {path for path in found if os.path.lexists(folder / path)}


def _unproven_in_conda_record(folder: Path, record: CondaRecord) -> Iterator[str]:
    for path, sha256 in record.hashes.items():
        if _is_proven(folder, path, sha256):
            continue
        if not _is_made_by_conda(folder, path):
            yield path


def _unproven_in_wheel(folder: Path, dist: Dist) -> Iterator[str]:
    info = dist.path.relative_to(folder).as_posix()
    generated = {f"{info}/{name}" for name in GENERATED}
    for entry in record_entries(folder, dist):
        if entry.path in generated:
            continue
        if not _is_proven(folder, entry.path, entry.sha256):
            yield entry.path


def _is_proven(folder: Path, path: str, sha256: str) -> bool:
    """Whether a recorded hash shows what a path should be.

    A file is compared with its hash by `edited_entries`, and a link here.
    """
    if not sha256:
        return False
    return not (folder / path).is_symlink() or file_sha256(folder / path) == sha256


def _is_made_by_conda(folder: Path, path: str) -> bool:
    """Whether a path without a hash is a link within the environment, or the program of an entry
    point.
    """
    place = folder / path
    if place.is_symlink():
        target = os.path.normpath(
            os.path.join(os.path.dirname(path), os.readlink(place))
        )
        return is_inside(target)
    try:
        return ENTRY_POINT.fullmatch(read_regular(place, PROGRAM_LIMIT)) is not None
    except (OSError, FileRefused):
        return False


def edited_texts(folder: Path) -> list[str]:
    """The texts of the set-up that differ both from what it writes and from what version 2.0
    noted.
    """
    mark = read_mark(folder)
    if mark is None:
        return []
    prefix = place_of(folder)
    texts = {
        "activate": activate_text(prefix, find_backend(folder)),
        "pip.conf": guard_text(prefix),
    }
    edited = []
    for path, text in texts.items():
        has = file_sha256(folder / path)
        wanted = {hashlib.sha256(text.encode()).hexdigest(), str(mark.other.get(path))}
        if has and has not in wanted:
            edited.append(path)
    return edited
