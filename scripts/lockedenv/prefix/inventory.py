"""The inventory of a prefix: one record of every path that the set-up installed,
PREFIX/maximalcai-inventory.json.

A path is in it because a locked package recorded it, because it is part of a virtual environment,
or because the set-up writes it. Every other path in a prefix was made by a user, or by something
that a user added.

This module has the record and its file, which is validated once, when it is read.
`make_inventory.py` makes one from a prefix, and `compare_inventory.py` compares a prefix with one.

The file is compact, because every quick verification reads it: an environment has about 25,000
paths.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Iterable, NamedTuple

from lockedenv.errors import Stop
from lockedenv.host.files import FileRefused, read_regular, write_atomically
from lockedenv.prefix.conda_files import HISTORY
from lockedenv.prefix.interpreter import Interpreter
from lockedenv.prefix.place import find_name
from lockedenv.prefix.records import COMMAND, CONSTRAINTS
from lockedenv.prefix.version_2 import NOTE as NOTE_OF_VERSION_2
from lockedenv.spec.commands import post_create_command
from lockedenv.spec.environment import MARK, name_in_mark
from lockedenv.spec.layers import Layer

INVENTORY = "maximalcai-inventory.json"
MANIFEST = "maximalcai-manifest.json"
LIMIT = 64_000_000  # bytes; 25,000 paths take about 4,000,000
SCHEMA = 1

# These change in normal use: the notes of the set-up, uv's lock, conda's list of its commands.
NOTES = (
    MARK,
    INVENTORY,
    MANIFEST,
    NOTE_OF_VERSION_2,
    ".lock",
    "CACHEDIR.TAG",  # uv's and rattler's, which keeps a folder out of backups
    HISTORY,
)
# The files that the set-up writes itself.
WRITTEN = (
    "activate",
    "pip.conf",
    CONSTRAINTS,
    "maximalcai-flash-attn",
    COMMAND,
    "etc/conda/activate.d/maximalcai.sh",
    "etc/conda/deactivate.d/maximalcai.sh",
)
# The files that `uv venv` and `python -m venv` make. {python} is such as "python3.11", {site} its
# site-packages.
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


class PathKind(Enum):
    """The type of a path; the value is written into the file."""

    FILE = "f"
    LINK = "l"
    FOLDER = "d"


class InventoryEntry(NamedTuple):
    """One path. A named tuple, because 25,000 of them are read at each start.

    `path` is relative to the prefix, `size` in bytes (-1: not known), `target` of a link, `sha256`
    in hex of a file (empty: none was recorded), `package` the name of the package that brought it
    or empty.
    """

    path: str
    kind: PathKind
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
    """What the set-up installed. `interpreter`: the machine's in an environment from PyPI, None in
    one from conda. `made`: the time in ns.
    """

    packages: tuple[Package, ...]
    entries: tuple[InventoryEntry, ...]
    interpreter: Interpreter | None = None
    made: int = 0

    def package(self, name: str) -> Package | None:
        """The package of this name."""
        for package in self.packages:
            if package.name == name:
                return package
        return None

    def entries_by_path(self) -> dict[str, InventoryEntry]:
        """The entries by their path."""
        return {entry.path: entry for entry in self.entries}


class InventoryError(Stop):
    """An inventory is damaged; the message names the file and the remedy."""

    def __init__(self, path: Path, problem: str) -> None:
        again = post_create_command(find_name(path.parent), name_in_mark(path.parent))
        super().__init__(f"{path} is damaged: {problem}. Write it again: {again}")


# Its paths


def is_inside(path: str) -> bool:
    """Whether a recorded path stays in the prefix."""
    return not path.startswith("/") and ".." not in path.split("/")


def is_bytecode(path: str) -> bool:
    """Whether a path is bytecode that Python makes by itself: NAME.pyc in __pycache__, or
    NAME.pyc.NUMBER, which is one that was not written to the end.
    """
    if ".pyc" not in path:  # so are most of 25,000 paths
        return False
    folder, _, name = path.rpartition("/")
    if folder != "__pycache__" and not folder.endswith("/__pycache__"):
        return False
    return name.endswith(".pyc") or name.rpartition(".")[0].endswith(".pyc")


def parent_folders(entries: Iterable[InventoryEntry]) -> set[str]:
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

    Removes the note of version 2.0, which it replaces.
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


def inventory_or_none(prefix: Path) -> Inventory | None:
    """The inventory of a prefix; None where there is none, or a damaged one."""
    try:
        return read_inventory(prefix)
    except InventoryError:
        return None


def _parse(document: Any) -> Inventory:
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA:
        raise ValueError(f"its schema_version is not {SCHEMA}")
    packages = []
    for name, version, sha256, layer in document["packages"]:
        packages.append(Package(str(name), str(version), str(sha256), Layer(layer)))
    names = [package.name for package in packages]
    names.append("")  # -1: of no package
    kinds = {kind.value: kind for kind in PathKind}
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
            InventoryEntry(
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
