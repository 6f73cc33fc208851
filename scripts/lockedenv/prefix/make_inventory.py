"""Makes the inventory of a prefix, and updates it after a repair.

Hashes come from the packages' own records (RECORD, conda-meta): only files without one are read.
The only file that it writes is the inventory. `compare_inventory.py` finds what differs from one.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Iterable, Iterator, Mapping

from lockedenv.prefix.conda_files import is_in_conda_meta, record_path
from lockedenv.prefix.interpreter import read_interpreter
from lockedenv.prefix.inventory import (
    NOTES,
    VENV,
    WRITTEN,
    Inventory,
    InventoryEntry,
    Package,
    PathKind,
    inventory_or_none,
    is_bytecode,
    is_inside,
    parent_folders,
    write_inventory,
)
from lockedenv.prefix.mark import MadeBy
from lockedenv.prefix.place import mark_or_none
from lockedenv.prefix.records import (
    Dist,
    Installed,
    file_sha256,
    hashes,
    read_prefix,
    read_record_rows,
)
from lockedenv.prefix.version_2 import read_note
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName, Layer


def locked_packages(environment: Environment, backend: BackendName) -> list[Package]:
    """The packages that the locks of an environment name for a backend."""
    packages = []
    if backend.has_conda_layer:
        for archive in environment.conda():
            packages.append(
                Package(archive.name, archive.version, archive.sha256, Layer.CONDA)
            )
    for wheel in environment.wheels(backend):
        packages.append(Package(wheel.name, wheel.version, wheel.sha256, Layer.PIP))
    return packages


def take_inventory(
    prefix: Path,
    packages: Iterable[Package],
    with_interpreter: bool = True,
    earlier: Inventory | None = None,
    written: Iterable[str] = (),
) -> Inventory:
    """The inventory of a prefix in which these packages were installed. Reads no file that has a
    recorded hash.

    Packages, files and folders that users added are not in it. For files that no wheel brought, the
    entries of `earlier` stay, so that an edited file is not recorded as installed. This does not
    hold for the paths that the set-up has `written` since.
    """
    locked = tuple(packages)
    installed = read_prefix(prefix)
    found: dict[str, InventoryEntry] = {}
    for path in [*_written_paths(prefix), *_venv_paths(installed)]:
        found[path] = InventoryEntry(path, PathKind.FILE)
    for entry in _conda_entries(installed, locked):
        found[entry.path] = entry
    for entry in _wheel_entries(installed, locked):
        found[entry.path] = entry
    kept = _kept_entries(earlier, locked, found, set(written))
    taken = []
    for entry in found.values():
        if entry.path not in kept:
            taken.append(_with_status(prefix, entry))
    entries = [*_with_hashes(prefix, taken), *kept.values()]
    entries += _folders(entries)
    interpreter = None
    if with_interpreter and installed.backend.is_venv:
        interpreter = read_interpreter(prefix / "bin/python")
    entries.sort()
    return Inventory(locked, tuple(entries), interpreter, time.time_ns())


def _kept_entries(
    earlier: Inventory | None,
    locked: tuple[Package, ...],
    found: Mapping[str, InventoryEntry],
    rewritten: set[str],
) -> dict[str, InventoryEntry]:
    """The entries of an earlier inventory for what a repair of the wheels does not change."""
    if earlier is None:
        return {}
    unchanged = {""}
    for package in locked:
        if package.layer is Layer.CONDA and package in earlier.packages:
            unchanged.add(package.name)
    kept = {}
    for entry in earlier.entries:
        if entry.kind is PathKind.FOLDER or entry.package not in unchanged:
            continue
        if entry.path in rewritten:
            continue
        if not entry.package and entry.path in found and found[entry.path].package:
            continue  # a package brings it now
        kept[entry.path] = entry
    return kept


def _written_paths(prefix: Path) -> Iterator[str]:
    for path in WRITTEN:
        if os.path.lexists(prefix / path):
            yield path


def _venv_paths(installed: Installed) -> Iterator[str]:
    prefix = installed.prefix
    if installed.backend.has_conda_layer:
        return
    for site in sorted(prefix.glob("lib/python3.*/site-packages")):
        names = {
            "python": site.parent.name,
            "site": site.relative_to(prefix).as_posix(),
        }
        for template in VENV:
            path = template.format(**names)
            if os.path.lexists(prefix / path):
                yield path


def _names_in_layer(packages: Iterable[Package], layer: Layer) -> set[str]:
    names = set()
    for package in packages:
        if package.layer is layer:
            names.add(package.name)
    return names


def _conda_entries(
    installed: Installed, locked: tuple[Package, ...]
) -> Iterator[InventoryEntry]:
    names = _names_in_layer(locked, Layer.CONDA)
    for record in installed.conda:
        if record.name not in names:
            continue
        meta = record_path(record.name, record.version, record.build)
        yield InventoryEntry(
            meta, PathKind.FILE, sha256=record.sha256_here, package=record.name
        )
        for path, sha256 in record.hashes.items():
            if is_inside(path) and not is_bytecode(path):
                yield InventoryEntry(
                    path, PathKind.FILE, sha256=sha256, package=record.name
                )


def _wheel_entries(
    installed: Installed, locked: tuple[Package, ...]
) -> Iterator[InventoryEntry]:
    names = _names_in_layer(locked, Layer.PIP)
    for dist in installed.dists:
        if (
            dist.name in names
            and dist.manager == Layer.PIP
            and installed.prefix in dist.path.parents
        ):
            yield from record_entries(installed.prefix, dist)


def record_entries(prefix: Path, dist: Dist) -> Iterator[InventoryEntry]:
    """What the RECORD of a wheel lists, with its hashes and sizes; RECORD itself has none.

    Gives nothing for a RECORD that cannot be read: a check reports that package.
    """
    site = dist.path.parent.relative_to(prefix).as_posix()
    try:
        rows = read_record_rows(dist.path / "RECORD")
    except (OSError, ValueError):
        return
    for row in rows:
        path = f"{site}/{row.path}"
        # Only these are changed by normpath, which takes long for 25,000 rows.
        if row.path[0] in "./" or "//" in path or "/." in path:
            path = os.path.normpath(os.path.join(site, row.path))
            if not is_inside(path):
                continue
        if path.endswith(".pyc") and is_bytecode(path):
            continue
        yield InventoryEntry(
            path, PathKind.FILE, size=row.size, sha256=row.sha256, package=dist.name
        )


def _with_status(prefix: Path, entry: InventoryEntry) -> InventoryEntry:
    """The entry with the present state of its path. The size and the hash that its package recorded
    stay.
    """
    try:
        status = os.lstat(prefix / entry.path)
    except OSError:
        return entry
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(prefix / entry.path)
        return entry._replace(kind=PathKind.LINK, size=-1, sha256="", target=target)
    size = entry.size if entry.size >= 0 else status.st_size
    executable = bool(status.st_mode & stat.S_IXUSR)
    return entry._replace(size=size, mtime_ns=status.st_mtime_ns, executable=executable)


def _with_hashes(prefix: Path, entries: list[InventoryEntry]) -> list[InventoryEntry]:
    unknown = []
    for entry in entries:
        if entry.kind is PathKind.FILE and not entry.sha256:
            unknown.append(prefix / entry.path)
    found = hashes(unknown)
    completed = []
    for entry in entries:
        sha256 = found.get(prefix / entry.path, entry.sha256)
        completed.append(entry._replace(sha256=sha256))
    return completed


def _folders(entries: Iterable[InventoryEntry]) -> list[InventoryEntry]:
    """Entries for the folders that hold the entries: a folder may be replaced by a link."""
    return [
        InventoryEntry(folder, PathKind.FOLDER) for folder in parent_folders(entries)
    ]


# A later one


def earlier_inventory(prefix: Path) -> Inventory | None:
    """The inventory of a prefix; without one, what version 2.0 noted of the files that it
    installed; else None.

    In a folder that a user made, version 2.0 noted the user's files too: that note is not used.
    """
    inventory = inventory_or_none(prefix)
    if inventory is not None:
        return inventory
    mark = mark_or_none(prefix)
    if mark is None or mark.made_by is not MadeBy.SETUP:
        return None
    note = read_note(prefix)
    found = hashes(prefix / path for path in note.files)
    entries = []
    for path, sha256 in note.files.items():
        entry = InventoryEntry(path, PathKind.FILE, sha256=sha256)
        if found[prefix / path] == sha256:
            entry = _with_status(prefix, entry)
        entries.append(entry)
    for path, target in note.links.items():
        entries.append(InventoryEntry(path, PathKind.LINK, target=target))
    inside = []
    for entry in entries:
        if is_inside(entry.path) and entry.path not in NOTES:
            inside.append(entry)
    return Inventory((), tuple(inside))


def without_reinstalled(inventory: Inventory, prefix: Path) -> Inventory:
    """The inventory without the conda packages that were installed again: their records differ from
    it.
    """
    reinstalled = set()
    for entry in inventory.entries:
        if entry.package and is_in_conda_meta(entry.path):
            if file_sha256(prefix / entry.path) != entry.sha256:
                reinstalled.add(entry.package)
    packages = []
    for package in inventory.packages:
        if package.name not in reinstalled:
            packages.append(package)
    return replace(inventory, packages=tuple(packages))


def complete_inventory(
    prefix: Path, locked: Iterable[Package], written: Iterable[str] = ()
) -> None:
    """Updates the inventory for the paths that the set-up has `written` since it was taken; reads
    nothing else.

    An inventory that is missing or damaged is taken anew.
    """
    inventory = inventory_or_none(prefix)
    if inventory is None:
        write_inventory(
            prefix, take_inventory(prefix, locked, earlier=earlier_inventory(prefix))
        )
        return
    changed = [InventoryEntry(path, PathKind.FILE) for path in written]
    if changed:
        write_inventory(
            prefix, _renewed(inventory, prefix, inventory.packages, changed)
        )


def with_package(
    inventory: Inventory, package: Package, prefix: Path, written: Iterable[str] = ()
) -> Inventory:
    """The inventory with one more wheel, which was just installed, in place of an earlier one of
    its name.

    `written`: the paths that the set-up wrote with it; those that are not there are left out.
    """
    packages = [known for known in inventory.packages if known.name != package.name]
    packages.append(package)
    changed: list[InventoryEntry] = []
    for dist in read_prefix(prefix).dists:
        if dist.name == package.name and dist.manager == Layer.PIP:
            changed += record_entries(prefix, dist)
    for path in written:
        if os.path.lexists(prefix / path):
            changed.append(InventoryEntry(path, PathKind.FILE))
    others = [entry for entry in inventory.entries if entry.package != package.name]
    without_package = replace(inventory, entries=tuple(others))
    return _renewed(without_package, prefix, packages, changed)


def _renewed(
    inventory: Inventory,
    prefix: Path,
    packages: Iterable[Package],
    changed: Iterable[InventoryEntry],
) -> Inventory:
    """The inventory with the present state of the paths of some entries."""
    found: dict[str, InventoryEntry] = {}
    for entry in inventory.entries:
        if entry.kind is not PathKind.FOLDER:
            found[entry.path] = entry
    taken = [_with_status(prefix, entry) for entry in changed]
    for entry in _with_hashes(prefix, taken):
        found[entry.path] = entry
    entries = [*found.values(), *_folders(found.values())]
    entries.sort()
    return replace(inventory, packages=tuple(packages), entries=tuple(entries))
