"""What lies in a prefix and is of no locked package: which of it Python,
the loader or a shell would take first, or run.

A stray is a file that no package has, or a file of a package that was added. Most are harmless:
results, scripts, modules of other names. The dangerous kinds are listed in Danger.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lockedenv.errors import printable
from lockedenv.prefix.inventory import PathKind
from lockedenv.verify.contents import PrefixContents
from lockedenv.verify.library_folders import LibraryFolders
from lockedenv.verify.python_paths import START_MODULES, PythonPaths
from lockedenv.verify.start_files import (
    find_editable_finder,
    find_known_text,
    read_mapped_modules,
)


class Danger(Enum):
    """Why a stray is a failure; the value is what people read."""

    AT_START = "it runs at every start of Python, or may"
    MAPS = "its editable install gives Python its own module for the locked"
    SHADOWS = "Python takes it in place of"
    LIBRARY = "the loader may take it in place of a locked library"
    PROGRAM = "it is started in place of the machine's or the locked program"
    HOOK = "a shell runs it when the environment is entered or left"
    DISCOVERED = "a locked package imports whatever lies in this folder"
    BYTECODE = "Python takes bytecode from where it leads, which is not verified"
    HEADER = "a compiler takes it before the machine's headers, for torch.compile too"
    CLOSED = "Python, the loader or a shell may look there"
    PLUGIN = "what it names runs whenever a locked package is imported"


@dataclass(frozen=True)
class Stray:
    """`package`: the added package that it is of, or empty. `danger`: None if it is harmless.

    `instead_of`: the locked path that Python would have taken. `closed`: why a folder could not be
    looked into. `known`: what a start-up file is, whose text is known and harmless.
    """

    path: str
    package: str = ""
    danger: Danger | None = None
    instead_of: str = ""
    closed: str = ""
    known: str = ""

    def __str__(self) -> str:
        if self.known:
            return printable(f"{self.path}: {self.known}")
        owner = f"is of {self.package}" if self.package else "no package has it"
        if self.closed:
            owner += f", it cannot be looked into ({self.closed})"
        if not self.danger:
            return printable(f"{self.path}: {owner}")
        text = f"{self.path}: {owner}, and {self.danger.value} {self.instead_of}"
        return printable(text.rstrip())


HOOK_FOLDERS = ("etc/conda/activate.d/", "etc/conda/deactivate.d/")
# What torch.compile, triton and torch.utils.cpp_extension start by name.
COMPILERS = frozenset(
    "ar as c++ cc cicc clang clang++ cuobjdump fatbinary g++ gcc hipcc icpx icx ld ld.bfd ld.gold "
    "ld.lld ldconfig lld make ninja nm nvcc nvdisasm nvlink objcopy ptxas ptxas-blackwell "
    "strip".split()
)
# What the verifier and the locked packages ask for the machine's state, whether the machine has it
# or not.
ASKED = frozenset({"nvidia-smi", "git"})
COMPILER = re.compile(
    r"(.+-)?(gcc|g\+\+|cc|c\+\+|cpp|clang|clang\+\+|ld|as|ar)(-\d+(\.\d+)*)?"
)
INTERPRETER = re.compile(r"python(3(\.\d+)?)?|pip(3(\.\d+)?)?|uv|uvx")
LINKED_HOOKS = ("etc", "etc/conda", "etc/conda/activate.d", "etc/conda/deactivate.d")


def find_strays(contents: PrefixContents) -> list[Stray]:
    """Every path that nothing locked has, with its danger, sorted by path."""
    if not contents.unlisted:
        return []
    index = _Index(contents)
    # A folder that is too deep may stand for several.
    return list(dict.fromkeys(index.classify(path) for path in contents.unlisted))


class _Index:
    """What the locked paths are, so that each stray is a few look-ups."""

    def __init__(self, contents: PrefixContents) -> None:
        self.prefix = contents.prefix
        self.contents = contents
        entries = contents.expected.entries
        files = {entry.path for entry in entries if entry.kind is not PathKind.FOLDER}
        self.folders = {
            entry.path for entry in entries if entry.kind is PathKind.FOLDER
        }
        self.python = PythonPaths(contents, files, self.folders)
        self.libraries = LibraryFolders(contents.prefix, files)

    def classify(self, path: str) -> Stray:
        """The stray at a path, with its danger."""
        package = self.contents.owner(path)
        error = _closed(self.prefix / path)
        if error:
            return self._classify_closed(path, package, error)
        linked_folder = self._is_linked_folder(path)
        if self.python.runs_at_start(path, package, linked_folder):
            return self._classify_start_file(path, package)
        instead_of = self.python.find_shadowed(path, package, linked_folder)
        if instead_of:
            return Stray(path, package, Danger.SHADOWS, instead_of)
        if path.startswith(HOOK_FOLDERS) or (linked_folder and path in LINKED_HOOKS):
            return Stray(path, package, Danger.HOOK)
        if self._is_first_program(path, package):
            return Stray(path, package, Danger.PROGRAM)
        if self.libraries.is_first(path, linked_folder):
            return Stray(path, package, Danger.LIBRARY)
        if self.python.names_plugin(path, linked_folder):
            return Stray(path, package, Danger.PLUGIN)
        if self.python.is_discovered(path, linked_folder):
            return Stray(path, package, Danger.DISCOVERED)
        is_bytecode = path.endswith("/__pycache__") and self.python.find_site(path)
        if linked_folder and is_bytecode:
            return Stray(path, package, Danger.BYTECODE)
        if not package and self._is_header(path):
            return Stray(path, package, Danger.HEADER)
        return Stray(path, package)

    def _classify_start_file(self, path: str, package: str) -> Stray:
        """A path that runs at every start, which is harmless if its text is a known one."""
        stray = Stray(path, package, Danger.AT_START)
        if not package or not path.endswith(".pth"):
            return stray
        place = self.prefix / path
        known = find_known_text(place, package)
        if known:
            return Stray(path, package, known=known)
        finder = find_editable_finder(place)
        if not finder:
            return stray
        module = f"{os.path.dirname(path)}/{finder}.py"
        if self.contents.owner(module) != package:
            return stray
        mapped = read_mapped_modules(self.prefix / module)
        if mapped is None:
            return stray
        for name in mapped:
            if name.partition(".")[0] in START_MODULES:
                return stray
            locked = self.python.find_locked(path, name)
            if locked:
                return Stray(path, package, Danger.MAPS, locked)
        return Stray(path, package, known=f"editable install of {package}")

    def _classify_closed(self, path: str, package: str, error: OSError) -> Stray:
        """A folder that could not be looked into; of one that is too deep,
        the outermost that is not locked."""
        danger = None
        if path.startswith(("bin/", "lib/", *HOOK_FOLDERS)):
            danger = Danger.CLOSED
        elif self.python.find_site(path):
            danger = Danger.CLOSED
        if error.errno == errno.ENAMETOOLONG:
            path = self._outermost(path)
        return Stray(path, package, danger, closed=error.strerror or str(error))

    def _outermost(self, path: str) -> str:
        """The first of the folders of a path that is not locked, or the path."""
        for match in re.finditer("/", path):
            if path[: match.start()] not in self.folders:
                return path[: match.start()]
        return path

    def _is_linked_folder(self, path: str) -> bool:
        place = self.prefix / path
        return os.path.islink(place) and os.path.isdir(place)

    def _is_header(self, path: str) -> bool:
        """Whether it lies in a folder of locked headers, which compilers are told to search."""
        parts = path.split("/")
        for index, part in enumerate(parts[:-1]):
            if part == "include" and "/".join(parts[: index + 1]) in self.folders:
                return True
        return False

    def _is_first_program(self, path: str, package: str) -> bool:
        if os.path.dirname(path) != "bin":
            return False
        name = os.path.basename(path)
        place = self.prefix / path
        if not place.is_file() or not os.access(place, os.X_OK):
            return False
        if name in COMPILERS or COMPILER.fullmatch(name) or INTERPRETER.fullmatch(name):
            return True
        if name in ASKED:
            return True
        if package:
            return False
        return shutil.which(name, path=_search_path_without(self.prefix)) is not None


def _closed(place: Path) -> OSError | None:
    """Why a folder cannot be looked into; None for one that can, and for what is no folder."""
    if os.path.islink(place):
        return None
    try:
        os.scandir(place).close()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error
    return None


def _search_path_without(prefix: Path) -> str:
    """PATH without the prefix's own programs."""
    own = {str(prefix / "bin"), os.path.realpath(prefix / "bin")}
    folders = os.environ.get("PATH", os.defpath).split(":")
    return ":".join(folder for folder in folders if folder not in own)
