"""What should lie in a prefix, by the locks, the packages' records and the inventory,
and what does lie there.

The locks decide what is locked. A package's own record says which files it has, and its digest is
in the lock. The inventory adds what no record has: modification times, links and what the set-up
wrote. So a note of ours that is missing or forged hides nothing.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockedenv.errors import printable
from lockedenv.prefix.compare_inventory import (
    PathDifference,
    PathProblem,
    compare_full,
    compare_quick,
    times_changed_wholesale,
    unlisted_paths,
)
from lockedenv.prefix.conda_files import record_path
from lockedenv.prefix.inventory import (
    VENV,
    WRITTEN,
    Inventory,
    InventoryEntry,
    InventoryError,
    Package,
    PathKind,
    is_bytecode,
    is_inside,
    parent_folders,
    read_inventory,
)
from lockedenv.prefix.make_inventory import record_entries
from lockedenv.prefix.records import Dist, Installed
from lockedenv.spec.layers import Layer


@dataclass(frozen=True)
class Owner:
    """Who brought a path: a package of the locks, or one that was added."""

    package: str
    locked: bool


class PrefixContents:
    """The paths of a prefix, compared with what should be there. Each question is answered once.

    `locked`: the names of the locked packages, those of requirements-dev.txt and flash-attn among
    them where they are installed in the locked version.
    """

    def __init__(self, installed: Installed, locked: set[str]) -> None:
        self.installed = installed
        self.prefix = installed.prefix
        self.locked = locked
        self.inventory_error = ""
        self.inventory: Inventory | None = None
        try:
            self.inventory = read_inventory(self.prefix)
        except InventoryError as error:
            self.inventory_error = str(error)

    @functools.cached_property
    def sites(self) -> list[str]:
        """The prefix's own site-packages folders, relative to it, each with a slash at its end."""
        found = []
        for site in self.installed.sites:
            found.append(site.relative_to(self.prefix).as_posix() + "/")
        return found

    @functools.cached_property
    def _noted(self) -> dict[str, InventoryEntry]:
        if not self.inventory:
            return {}
        return self.inventory.entries_by_path()

    @functools.cached_property
    def recorded(self) -> dict[str, tuple[InventoryEntry, Owner]]:
        """What the records of the installed packages list.

        A locked package counts before an added one.
        """
        added: dict[str, tuple[InventoryEntry, Owner]] = {}
        locked: dict[str, tuple[InventoryEntry, Owner]] = {}
        for record in self.installed.conda:
            owner = Owner(record.name, record.name in self.locked)
            found = locked if owner.locked else added
            meta = record_path(record.name, record.version, record.build)
            found[meta] = (
                InventoryEntry(meta, PathKind.FILE, package=record.name),
                owner,
            )
            for path, sha256 in record.hashes.items():
                if is_inside(path) and not is_bytecode(path):
                    entry = InventoryEntry(
                        path, PathKind.FILE, sha256=sha256, package=record.name
                    )
                    found[path] = (entry, owner)
        for dist in self._wheels():
            owner = Owner(dist.name, dist.name in self.locked)
            found = locked if owner.locked else added
            for entry in record_entries(self.prefix, dist):
                found[entry.path] = (entry, owner)
        return {**added, **locked}

    @functools.cached_property
    def recorded_bytecode(self) -> dict[str, str]:
        """Path -> sha256 of the bytecode that locked conda packages bring."""
        found = {}
        for record in self.installed.conda:
            if record.name in self.locked:
                for path, sha256 in record.hashes.items():
                    if sha256 and is_bytecode(path):
                        found[path] = sha256
        return found

    def _wheels(self) -> Iterator[Dist]:
        for dist in self.installed.dists:
            if dist.manager == Layer.PIP and self.prefix in dist.path.parents:
                yield dist

    @functools.cached_property
    def expected(self) -> Inventory:
        """What the set-up, or whoever installed the locks, left: the records,
        completed by the inventory."""
        entries: list[InventoryEntry] = []
        for path, (entry, owner) in self.recorded.items():
            if owner.locked:
                entries.append(self._complete(path, entry))
        for path in self.unrecorded_parts():
            noted = self._noted.get(path)
            if noted:
                entries.append(noted)
            elif os.path.lexists(self.prefix / path):
                entries.append(self._as_it_is(InventoryEntry(path, PathKind.FILE)))
        for folder in parent_folders(entries):
            entries.append(InventoryEntry(folder, PathKind.FOLDER))
        packages: tuple[Package, ...] = ()
        interpreter = None
        if self.inventory:
            packages = self.inventory.packages
            interpreter = self.inventory.interpreter
        return Inventory(packages, tuple(entries), interpreter)

    def _complete(self, path: str, entry: InventoryEntry) -> InventoryEntry:
        noted = self._noted.get(path)
        if noted is None:
            return entry if entry.sha256 else self._as_it_is(entry)
        if not entry.sha256:
            return noted._replace(package=entry.package)
        size = entry.size if entry.size >= 0 else noted.size
        if (
            noted.kind is PathKind.FILE
            and noted.size == size
            and noted.sha256 == entry.sha256
        ):
            return noted
        return noted._replace(
            kind=PathKind.FILE, size=size, sha256=entry.sha256, package=entry.package
        )

    def _as_it_is(self, entry: InventoryEntry) -> InventoryEntry:
        """For what has no recorded hash and is in no inventory: it has to be there,
        whatever it is."""
        path = self.prefix / entry.path
        if path.is_symlink():
            return entry._replace(kind=PathKind.LINK, target=os.readlink(path))
        return entry

    def unrecorded_parts(self) -> list[str]:
        """The paths that may lie in the prefix without a package: the venv's, and the set-up's."""
        paths = list(WRITTEN)
        if self.installed.backend.is_venv:
            for site in sorted(self.prefix.glob("lib/python3.*/site-packages")):
                names = {
                    "python": site.parent.name,
                    "site": site.relative_to(self.prefix).as_posix(),
                }
                paths += [template.format(**names) for template in VENV]
        elif self.inventory:
            # A conda package's files that its record names otherwise, such as links made by the
            # set-up.
            for entry in self.inventory.entries:
                if entry.kind is PathKind.LINK and entry.path not in self.recorded:
                    paths.append(entry.path)
        return paths

    @functools.cached_property
    def quick_differences(self) -> list[PathDifference]:
        """By type, size and modification time;
        by the hash where that is another time or none was recorded."""
        if not self.inventory or self.times_changed:
            return self.full_differences
        differences = []
        touched = {}
        for difference in self._status_differences:
            if difference.problem is PathProblem.TIME:
                touched[difference.path] = difference
            else:
                differences.append(difference)
        entries = [entry for entry in self.expected.entries if entry.path in touched]
        differences += compare_full(self.prefix, Inventory((), tuple(entries)))
        return differences

    @functools.cached_property
    def _status_differences(self) -> list[PathDifference]:
        return compare_quick(self.prefix, self.expected)

    @property
    def times_changed(self) -> bool:
        """Whether the modification times say nothing,
        as after a copy or in the layer of an image."""
        if not self.inventory:
            return False
        return times_changed_wholesale(self.expected, self._status_differences)

    @functools.cached_property
    def full_differences(self) -> list[PathDifference]:
        """By the hashes."""
        return compare_full(self.prefix, self.expected)

    @functools.cached_property
    def forged(self) -> list[str]:
        """What the inventory says otherwise than the records,
        or of a path that no package has any more."""
        lines = []
        own = set(self.unrecorded_parts())
        for path, noted in self._noted.items():
            found = self.recorded.get(path)
            if noted.kind is PathKind.FOLDER or path in own:
                continue
            if found is None and os.path.lexists(self.prefix / path):
                lines.append(f"{path}: is in the inventory, and no package has it")
            elif found is None:
                lines.append(f"{path}: missing")
            elif found[0].sha256 and noted.sha256 and found[0].sha256 != noted.sha256:
                lines.append(
                    f"{path}: the inventory has another hash of it than its package"
                )
        return sorted(printable(line) for line in lines)

    @functools.cached_property
    def unlisted(self) -> list[str]:
        """What lies in the prefix and nothing locked has, the files of added packages among it."""
        return unlisted_paths(self.prefix, self.expected)

    def owner(self, path: str) -> str:
        """The added package that an unlisted path is of; empty if it is of none."""
        found = self.recorded.get(path)
        return found[1].package if found else ""


def describe(prefix: Path, difference: PathDifference) -> str:
    """A difference in words, with its path."""
    path = prefix / difference.path
    texts = {
        PathProblem.MISSING: "missing",
        PathProblem.KIND: _describe_kind(path),
        PathProblem.SIZE: _describe_size(path),
        PathProblem.TIME: "changed since it was installed (its modification time)",
        PathProblem.TARGET: _describe_target(path),
        PathProblem.EXECUTABLE: "no program any more; chmod +x makes it one",
        PathProblem.CONTENT: "changed since it was installed",
        PathProblem.UNREADABLE: "cannot be read",
    }
    return printable(f"{difference.path}: {texts[difference.problem]}")


def _describe_kind(path: Path) -> str:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "missing"
    if stat.S_ISLNK(mode):
        return f"is a link now, to {os.readlink(path)}"
    if stat.S_ISDIR(mode):
        return "is a folder now"
    if stat.S_ISREG(mode):
        return "no longer a link"
    return "cannot be read: it is not a regular file"


def _describe_size(path: Path) -> str:
    try:
        size = os.lstat(path).st_size
    except OSError:
        return "missing"
    if size == 0:
        return "empty"
    return "changed since it was installed (its size)"


def _describe_target(path: Path) -> str:
    try:
        return f"links to {os.readlink(path)} now"
    except OSError:
        return "missing"
