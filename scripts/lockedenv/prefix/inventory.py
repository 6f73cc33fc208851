"""The inventory of a prefix: one record of every path that the set-up installed,
PREFIX/maximalcai-inventory.json.

A path is in it because a locked package recorded it, because a virtual environment is made of it,
or because the set-up writes it. What lies in a prefix and is not in the inventory was put there by
people, or by what they added. Hashes come from the packages' own records (RECORD, conda-meta): only
files without one are read.

The file is compact, because every quick verification reads it: an environment has about 25,000
paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, NamedTuple

from lockedenv.errors import Stop
from lockedenv.host.files import FileRefused, read_regular, write_atomically
from lockedenv.prefix.conda_files import HISTORY, is_in_conda_meta, record_path
from lockedenv.prefix.interpreter import Interpreter, read_interpreter
from lockedenv.prefix.mark import MadeBy
from lockedenv.prefix.place import find_name, mark_or_none
from lockedenv.prefix.records import (
    COMMAND,
    CONSTRAINTS,
    Dist,
    Installed,
    file_sha256,
    hashes,
    read_prefix,
    read_record_rows,
)
from lockedenv.prefix.version_2 import NOTE as NOTE_OF_VERSION_2
from lockedenv.prefix.version_2 import read_note
from lockedenv.spec.commands import post_create_command
from lockedenv.spec.environment import MARK, Environment, name_in_mark
from lockedenv.spec.layers import BackendName, Layer

INVENTORY = "maximalcai-inventory.json"
MANIFEST = "maximalcai-manifest.json"
LIMIT = 64_000_000  # bytes; 25,000 paths take about 4,000,000
TEXT_LIMIT = 1_000_000  # bytes of a text that people may edit
SCHEMA = 1

# These change in normal use: our own notes, uv's lock, conda's list of what was done.
NOTES = (
    MARK,
    INVENTORY,
    MANIFEST,
    NOTE_OF_VERSION_2,
    ".lock",
    "CACHEDIR.TAG",  # uv's and rattler's, which keeps a folder out of backups
    HISTORY,
)
# What the set-up writes itself.
WRITTEN = (
    "activate",
    "pip.conf",
    CONSTRAINTS,
    "maximalcai-flash-attn",
    COMMAND,
    "etc/conda/activate.d/maximalcai.sh",
    "etc/conda/deactivate.d/maximalcai.sh",
)
# What `uv venv` and `python -m venv` make. {python} is "python3.11", {site} its site-packages.
VENV = (
    ".gitignore",
    "pyvenv.cfg",
    "lib64",
    "bin/python",
    "bin/python3",
    "bin/{python}",
    "bin/Activate.ps1",
    "bin/activate",
    "bin/activate.bat",
    "bin/activate.csh",
    "bin/activate.fish",
    "bin/activate.nu",
    "bin/activate.ps1",
    "bin/activate.xsh",
    "bin/activate_this.py",
    "bin/deactivate.bat",
    "bin/pydoc.bat",
    "{site}/_virtualenv.pth",
    "{site}/_virtualenv.py",
)


READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


class Kind(Enum):
    """What a path is; the value stands in the file."""

    FILE = "f"
    LINK = "l"
    FOLDER = "d"


class Problem(Enum):
    """How a path differs from its entry."""

    MISSING = "missing"
    KIND = "kind"
    SIZE = "size"
    TIME = "time"
    TARGET = "target"
    EXECUTABLE = "executable"
    CONTENT = "content"
    UNREADABLE = "unreadable"


class Entry(NamedTuple):
    """One path. A named tuple, because 25,000 of them are read at each start.

    `path` is relative to the prefix, `size` in bytes (-1: not known), `target` of a link, `sha256`
    in hex of a file (empty: none was recorded), `package` the name of the package that brought it
    or empty.
    """

    path: str
    kind: Kind
    size: int = -1
    mtime_ns: int = 0
    executable: bool = False
    sha256: str = ""
    target: str = ""
    package: str = ""


@dataclass(frozen=True)
class Package:
    """A locked package; `sha256` is the archive's or the wheel's."""

    name: str
    version: str
    sha256: str
    layer: Layer


@dataclass(frozen=True)
class Inventory:
    """What the set-up installed. `interpreter`: the machine's, on the PyPI backend; None on
    conda's.
    """

    packages: tuple[Package, ...]
    entries: tuple[Entry, ...]
    interpreter: Interpreter | None = None
    made: int = 0

    def package(self, name: str) -> Package | None:
        """The package of this name."""
        for package in self.packages:
            if package.name == name:
                return package
        return None

    def entries_by_path(self) -> dict[str, Entry]:
        """The entries by their path."""
        return {entry.path: entry for entry in self.entries}


@dataclass(frozen=True)
class Difference:
    """A path of the inventory that is not as it was recorded."""

    path: str
    problem: Problem
    package: str = ""


class InventoryError(Stop):
    """An inventory is damaged; the message names the file and the remedy."""

    def __init__(self, path: Path, problem: str) -> None:
        again = post_create_command(find_name(path.parent), name_in_mark(path.parent))
        super().__init__(f"{path} is damaged: {problem}. Write it again: {again}")


# Taking it


def locked_packages(environment: Environment, backend: BackendName) -> list[Package]:
    """What the locks of an environment name for a backend."""
    packages = []
    if backend == BackendName.CONDA:
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

    What was added by people is not in it, whether it is a package, a file or a folder. What
    `earlier` says of files that no wheel brought stays, so that an edit of one is not taken for
    ours; but for the paths that the set-up has `written` since.
    """
    locked = tuple(packages)
    installed = read_prefix(prefix)
    found: dict[str, Entry] = {}
    for path in [*_written_paths(prefix), *_venv_paths(installed)]:
        found[path] = Entry(path, Kind.FILE)
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
    if with_interpreter and installed.backend == BackendName.PIP:
        interpreter = read_interpreter(prefix / "bin/python")
    entries.sort()
    return Inventory(locked, tuple(entries), interpreter, time.time_ns())


def _kept_entries(
    earlier: Inventory | None,
    locked: tuple[Package, ...],
    found: Mapping[str, Entry],
    rewritten: set[str],
) -> dict[str, Entry]:
    """What an earlier inventory says of the files that a repair of the wheels does not touch."""
    if earlier is None:
        return {}
    unchanged = {""}
    for package in locked:
        if package.layer is Layer.CONDA and package in earlier.packages:
            unchanged.add(package.name)
    kept = {}
    for entry in earlier.entries:
        if entry.kind is Kind.FOLDER or entry.package not in unchanged:
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
    if installed.backend == BackendName.CONDA:
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
) -> Iterator[Entry]:
    names = _names_in_layer(locked, Layer.CONDA)
    for record in installed.conda:
        if record.name not in names:
            continue
        meta = record_path(record.name, record.version, record.build)
        yield Entry(meta, Kind.FILE, sha256=record.sha256_here, package=record.name)
        for path, sha256 in record.hashes.items():
            if is_inside(path) and not is_bytecode(path):
                yield Entry(path, Kind.FILE, sha256=sha256, package=record.name)


def _wheel_entries(
    installed: Installed, locked: tuple[Package, ...]
) -> Iterator[Entry]:
    names = _names_in_layer(locked, Layer.PIP)
    for dist in installed.dists:
        if (
            dist.name in names
            and dist.manager == Layer.PIP
            and installed.prefix in dist.path.parents
        ):
            yield from record_entries(installed.prefix, dist)


def record_entries(prefix: Path, dist: Dist) -> Iterator[Entry]:
    """What the RECORD of a wheel lists, with its hashes and sizes; RECORD itself has none.

    Gives nothing for a RECORD that cannot be read: the checks name that package.
    """
    site = dist.path.parent.relative_to(prefix).as_posix()
    try:
        rows = read_record_rows(dist.path / "RECORD")
    except (OSError, ValueError):
        return
    for row in rows:
        path = f"{site}/{row.path}"
        if row.path[0] in "./" or "//" in path or "/." in path:
            path = os.path.normpath(os.path.join(site, row.path))
            if not is_inside(path):
                continue
        if path.endswith(".pyc") and is_bytecode(path):
            continue
        yield Entry(
            path, Kind.FILE, size=row.size, sha256=row.sha256, package=dist.name
        )


def is_inside(path: str) -> bool:
    """Whether a recorded path stays in the prefix."""
    return not path.startswith("/") and ".." not in path.split("/")


def is_bytecode(path: str) -> bool:
    """Whether a path is what Python compiles by itself: NAME.pyc in __pycache__, or
    NAME.pyc.NUMBER.
    """
    folder, _, name = path.rpartition("/")
    if folder != "__pycache__" and not folder.endswith("/__pycache__"):
        return False
    return name.endswith(".pyc") or name.rpartition(".")[0].endswith(".pyc")


def _with_status(prefix: Path, entry: Entry) -> Entry:
    """The entry with what lies there now. What its package recorded stays: the size of a file, its
    hash.
    """
    try:
        status = os.lstat(prefix / entry.path)
    except OSError:
        return entry
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(prefix / entry.path)
        return entry._replace(kind=Kind.LINK, size=-1, sha256="", target=target)
    size = entry.size if entry.size >= 0 else status.st_size
    executable = bool(status.st_mode & stat.S_IXUSR)
    return entry._replace(size=size, mtime_ns=status.st_mtime_ns, executable=executable)


def _with_hashes(prefix: Path, entries: list[Entry]) -> list[Entry]:
    unknown = []
    for entry in entries:
        if entry.kind is Kind.FILE and not entry.sha256:
            unknown.append(prefix / entry.path)
    found = hashes(unknown)
    completed = []
    for entry in entries:
        sha256 = found.get(prefix / entry.path, entry.sha256)
        completed.append(entry._replace(sha256=sha256))
    return completed


def _folders(entries: Iterable[Entry]) -> list[Entry]:
    """The folders that hold the entries: one that became a link would lead somewhere else."""
    return [Entry(folder, Kind.FOLDER) for folder in parent_folders(entries)]


def parent_folders(entries: Iterable[Entry]) -> set[str]:
    """The folders in which the entries lie, at every depth, relative to the prefix."""
    folders: set[str] = set()
    for entry in entries:
        folder = os.path.dirname(entry.path)
        while folder and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    return folders


# Its file


def write_inventory(prefix: Path, inventory: Inventory) -> None:
    """Writes PREFIX/maximalcai-inventory.json, one path a line.

    It replaces what version 2.0 noted.
    """
    numbers: dict[str, int] = {}
    packages = []
    for number, package in enumerate(inventory.packages):
        numbers.setdefault(package.name, number)
        packages.append(
            [package.name, package.version, package.sha256, package.layer.value]
        )
    rows = []
    for entry in inventory.entries:
        row = [
            entry.path,
            entry.kind.value,
            entry.size,
            entry.mtime_ns,
            int(entry.executable),
            entry.sha256,
            entry.target,
            numbers.get(entry.package, -1),
        ]
        rows.append(json.dumps(row, separators=(",", ":")))
    interpreter = None
    if inventory.interpreter:
        interpreter = inventory.interpreter.document()
    head = {
        "schema_version": SCHEMA,
        "made": inventory.made,
        "interpreter": interpreter,
        "packages": packages,
    }
    text = json.dumps(head, separators=(",", ":"))[:-1]
    text += ',"entries":[\n' + ",\n".join(rows) + "\n]}\n"
    write_atomically(prefix / INVENTORY, text)
    (prefix / NOTE_OF_VERSION_2).unlink(missing_ok=True)


def read_inventory(prefix: Path) -> Inventory | None:
    """The inventory of a prefix; None where there is none.

    Raises InventoryError for a damaged one.
    """
    path = prefix / INVENTORY
    try:
        document = json.loads(read_regular(path, LIMIT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InventoryError(path, error.strerror or str(error)) from None
    except FileRefused as error:
        raise InventoryError(path, str(error)) from None
    except (ValueError, RecursionError):
        raise InventoryError(path, "it is not JSON") from None
    try:
        return _parse(document)
    except (KeyError, TypeError, ValueError) as error:
        raise InventoryError(path, f"it is of another shape ({error})") from None


def _parse(document: Any) -> Inventory:
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA:
        raise ValueError(f"its schema_version is not {SCHEMA}")
    packages = []
    for name, version, sha256, layer in document["packages"]:
        packages.append(Package(str(name), str(version), str(sha256), Layer(layer)))
    names = [package.name for package in packages]
    names.append("")  # -1: of no package
    kinds = {kind.value: kind for kind in Kind}
    entries = []
    for path, kind, size, mtime_ns, executable, sha256, target, number in document[
        "entries"
    ]:
        texts = type(path) is type(sha256) is type(target) is str
        numbers = type(size) is type(mtime_ns) is int
        if not texts or not numbers:
            raise TypeError(f"the entry {str(path)[:80]!r}")
        if not path or path[0] == "/" or (".." in path and not is_inside(path)):
            raise ValueError(f"the path {path[:80]!r} leads out of the prefix")
        entries.append(
            Entry(
                path,
                kinds[kind],
                size,
                mtime_ns,
                bool(executable),
                sha256,
                target,
                names[number],
            )
        )
    interpreter = document["interpreter"]
    if interpreter is not None:
        interpreter = Interpreter.parse(interpreter)
    made = document["made"]
    if type(made) is not int:
        raise TypeError("`made`")
    return Inventory(tuple(packages), tuple(entries), interpreter, made)


# Comparing it


def compare_quick(prefix: Path, inventory: Inventory) -> list[Difference]:
    """Every path whose type, size, modification time, link target or executable bit is not as
    recorded.
    """
    differences = []
    root = f"{prefix}/"
    for entry in inventory.entries:
        problem = _compare_status(root, entry, times=True)
        if problem:
            differences.append(Difference(entry.path, problem, entry.package))
    return differences


def compare_full(prefix: Path, inventory: Inventory) -> list[Difference]:
    """Every path whose type, size, content, link target or executable bit is not as recorded.

    The modification time does not count: the content was read.
    """
    differences = []
    to_read = []
    root = f"{prefix}/"
    for entry in inventory.entries:
        problem = _compare_status(root, entry, times=False)
        if problem:
            differences.append(Difference(entry.path, problem, entry.package))
        elif entry.kind is Kind.FILE and entry.sha256:
            to_read.append(entry)
    found = hashes(prefix / entry.path for entry in to_read)
    for entry in to_read:
        sha256 = found[prefix / entry.path]
        if not sha256:
            differences.append(
                Difference(entry.path, Problem.UNREADABLE, entry.package)
            )
        elif sha256 != entry.sha256:
            differences.append(Difference(entry.path, Problem.CONTENT, entry.package))
    return differences


def keeps_content(prefix: Path, entry: Entry) -> bool:
    """Whether what was recorded of a text is still in it, with lines that people put before or
    after it.
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
    inventory: Inventory, differences: Iterable[Difference]
) -> bool:
    """Whether most files have another modification time, as after a copy or in the layer of an
    image.
    """
    problems = Counter(difference.problem for difference in differences)
    if not problems[Problem.TIME]:
        return False
    kinds = Counter(entry.kind for entry in inventory.entries)
    return problems[Problem.TIME] * 2 > kinds[Kind.FILE]


def _compare_status(root: str, entry: Entry, times: bool) -> Problem | None:
    path = root + entry.path
    try:
        status = os.lstat(path)
    except OSError:
        return Problem.MISSING
    mode = status.st_mode
    if entry.kind is Kind.FILE:
        if not stat.S_ISREG(mode):
            return Problem.KIND
        if status.st_size != entry.size and entry.size >= 0:
            return Problem.SIZE
        if not mode & READABLE:
            return Problem.UNREADABLE
        if times and status.st_mtime_ns != entry.mtime_ns:
            return Problem.TIME
        if entry.executable and not mode & stat.S_IXUSR:
            return Problem.EXECUTABLE
    elif entry.kind is Kind.LINK:
        if not stat.S_ISLNK(mode):
            return Problem.KIND
        if os.readlink(path) != entry.target:
            return Problem.TARGET
    elif not stat.S_ISDIR(mode):
        return Problem.KIND
    return None


def unlisted_paths(prefix: Path, inventory: Inventory) -> list[str]:
    """What lies in the prefix and is not in the inventory: files, links and empty folders,
    relative, sorted.

    Without bytecode in __pycache__ and our own notes. What added packages brought is among them.
    """
    listed = {entry.path for entry in inventory.entries}
    listed.update(NOTES)
    return sorted(path for path in walk(prefix) if path not in listed)


def walk(prefix: Path) -> Iterator[str]:
    """Every file, link and empty folder below a folder, relative to it, without bytecode in
    __pycache__.

    A folder that cannot be looked into is given as an empty one: without permission, or deeper than
    a path can be long.
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


def inventory_or_none(prefix: Path) -> Inventory | None:
    """The inventory of a prefix; None where there is none, or a damaged one."""
    try:
        return read_inventory(prefix)
    except InventoryError:
        return None


def earlier_inventory(prefix: Path) -> Inventory | None:
    """The inventory of a prefix; where version 2.0 made it, what that noted of its files; else
    None.

    Of a folder that people made, version 2.0 noted their files too: there its note says nothing.
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
        entry = Entry(path, Kind.FILE, sha256=sha256)
        if found[prefix / path] == sha256:
            entry = _with_status(prefix, entry)
        entries.append(entry)
    for path, target in note.links.items():
        entries.append(Entry(path, Kind.LINK, target=target))
    inside = []
    for entry in entries:
        if is_inside(entry.path) and entry.path not in NOTES:
            inside.append(entry)
    return Inventory((), tuple(inside))


def without_reinstalled(inventory: Inventory, prefix: Path) -> Inventory:
    """The inventory without the conda packages whose record is another one now: they were installed
    again.
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
    """Brings the inventory up to what the set-up has `written` since it was taken; nothing else is
    looked at.

    An inventory that is missing or damaged is taken anew.
    """
    inventory = inventory_or_none(prefix)
    if inventory is None:
        write_inventory(
            prefix, take_inventory(prefix, locked, earlier=earlier_inventory(prefix))
        )
        return
    changed = [Entry(path, Kind.FILE) for path in written]
    if changed:
        write_inventory(
            prefix, _renewed(inventory, prefix, inventory.packages, changed)
        )


def with_package(inventory: Inventory, package: Package, prefix: Path) -> Inventory:
    """The inventory with one more wheel, which was just installed, in place of an earlier one of
    its name.
    """
    packages = [known for known in inventory.packages if known.name != package.name]
    packages.append(package)
    changed: list[Entry] = []
    for dist in read_prefix(prefix).dists:
        if dist.name == package.name and dist.manager == Layer.PIP:
            changed += record_entries(prefix, dist)
    # Which wheel it is.
    for path in WRITTEN:
        if path.endswith(package.name) and os.path.lexists(prefix / path):
            changed.append(Entry(path, Kind.FILE))
    others = [entry for entry in inventory.entries if entry.package != package.name]
    return _renewed(
        replace(inventory, entries=tuple(others)), prefix, packages, changed
    )


def _renewed(
    inventory: Inventory,
    prefix: Path,
    packages: Iterable[Package],
    changed: Iterable[Entry],
) -> Inventory:
    """The inventory with some entries taken anew, as they lie there now."""
    found: dict[str, Entry] = {}
    for entry in inventory.entries:
        if entry.kind is not Kind.FOLDER:
            found[entry.path] = entry
    taken = [_with_status(prefix, entry) for entry in changed]
    for entry in _with_hashes(prefix, taken):
        found[entry.path] = entry
    entries = [*found.values(), *_folders(found.values())]
    entries.sort()
    return replace(inventory, packages=tuple(packages), entries=tuple(entries))
