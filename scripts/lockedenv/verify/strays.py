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
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lockedenv.errors import printable
from lockedenv.host.files import FileRefused, read_regular
from lockedenv.prefix.inventory import Kind
from lockedenv.verify.contents import Contents
from lockedenv.verify.elf import read_dynamic
from lockedenv.verify.search_path import find_searched_folder


class Danger(Enum):
    """Why a stray is a failure; the value is what people read."""

    AT_START = "it runs at every start of Python, or may"
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
    looked into.
    """

    path: str
    package: str = ""
    danger: Danger | None = None
    instead_of: str = ""
    closed: str = ""

    def __str__(self) -> str:
        owner = f"is of {self.package}" if self.package else "no package has it"
        if self.closed:
            owner += f", it cannot be looked into ({self.closed})"
        if not self.danger:
            return printable(f"{self.path}: {owner}")
        text = f"{self.path}: {owner}, and {self.danger.value} {self.instead_of}"
        return printable(text.rstrip())


START_MODULES = ("sitecustomize", "usercustomize")
# Python's start-up looks for these beside its program, or one folder above it: Modules/getpath.py
START_FILES = ("pyvenv.cfg", "bin/pyvenv.cfg", "bin/pybuilddir.txt")
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
# `import` in a line of a .pth file runs it: https://docs.python.org/3/library/site.html
PTH_CODE = re.compile(rb"^import[ \t]", re.M)
TEXT_LIMIT = 1_000_000  # bytes; a longer .pth file counts as code
# The groups of entry points that torch, bitsandbytes, triton and networkx load when they are
# imported. Other groups are only read, or loaded by name when somebody asks for it.
PLUGINS = re.compile(
    rb"^\s*\[+(torch\.backends|bitsandbytes\.backends|triton\.backends"
    rb"|networkx\.backend_info)\]+\s*$",
    re.M,
)
# Python finds these folders in capitals too: `Lookup` in importlib.metadata.
ENTRY_POINTS = re.compile(r"(?i:[^/]*\.(dist|egg)-info)/entry_points\.txt")
# The folders whose modules are imported because they lie there, relative to site-packages:
# triton/backends/__init__.py; `import_submodule` in torch/_dynamo/backends/registry.py and
# torch/_inductor/lowering.py; torch/_inductor/autoheuristic/learned_heuristic_controller.py.
DISCOVERED = re.compile(
    r"(triton/backends/[^/]+|torch/_dynamo/backends|torch/_inductor/kernel"
    r"|torch/_inductor/autoheuristic/artifacts)/[^/]+\.(py|pyc|so)"
)
LIBRARY = re.compile(r".+\.so(\.\d+)*")
# The suffixes of a module's file, in the order in which Python looks for them: importlib.machinery.
MODULE = re.compile(r"([^./]+)(\.cpython-[^.]+\.so|\.abi3\.so|\.so|\.py|\.pyc)")
SUFFIXES = (".so", ".abi3.so", ".so", ".py", ".pyc")
LINKED_HOOKS = ("etc", "etc/conda", "etc/conda/activate.d", "etc/conda/deactivate.d")


def find_strays(contents: Contents) -> list[Stray]:
    """Every path that nothing locked has, with its danger, sorted by path."""
    if not contents.unlisted:
        return []
    index = _Index(contents)
    # A folder that is too deep may stand for several.
    return list(dict.fromkeys(index.classify(path) for path in contents.unlisted))


def is_start_file(contents: Contents, path: str) -> bool:
    """Whether a locked file runs at every start of Python,
    or lies where Python looks before its packages."""
    folder, slash, name = path.rpartition("/")
    if folder + slash in contents.sites:
        return name.endswith(".pth") or name.partition(".")[0] in START_MODULES
    if contents.installed.backend != "conda":
        return False
    return bool(
        re.fullmatch(r"lib/python3\.\d+(/lib-dynload)?/[^/]+\.(py|so|pyc|pth)", path)
    )


class _Index:
    """What the locked paths are, so that each stray is a few look-ups."""

    def __init__(self, contents: Contents) -> None:
        self.prefix = contents.prefix
        self.contents = contents
        self.conda = contents.installed.backend == "conda"
        self.sites = contents.sites
        entries = contents.expected.entries
        self.files = {entry.path for entry in entries if entry.kind is not Kind.FOLDER}
        self.folders = {entry.path for entry in entries if entry.kind is Kind.FOLDER}
        self.modules = _locked_modules(self.files)
        self.library_folders = _library_folders(self.files)
        self.run_folders: set[str] | None = None

    def classify(self, path: str) -> Stray:
        """The stray at a path, with its danger."""
        package = self.contents.owner(path)
        error = _closed(self.prefix / path)
        if error:
            return self._classify_closed(path, package, error)
        linked_folder = self._is_linked_folder(path)
        if self._runs_at_start(path, package, linked_folder):
            return Stray(path, package, Danger.AT_START)
        instead_of = self._shadowed(path, package, linked_folder)
        if instead_of:
            return Stray(path, package, Danger.SHADOWS, instead_of)
        if path.startswith(HOOK_FOLDERS) or (linked_folder and path in LINKED_HOOKS):
            return Stray(path, package, Danger.HOOK)
        if self._is_first_program(path, package):
            return Stray(path, package, Danger.PROGRAM)
        if self._is_first_library(path, linked_folder):
            return Stray(path, package, Danger.LIBRARY)
        if self._is_plugin(path, linked_folder):
            return Stray(path, package, Danger.PLUGIN)
        if self._is_discovered(path, linked_folder):
            return Stray(path, package, Danger.DISCOVERED)
        if linked_folder and self._site_of(path) and path.endswith("/__pycache__"):
            return Stray(path, package, Danger.BYTECODE)
        if not package and self._is_header(path):
            return Stray(path, package, Danger.HEADER)
        return Stray(path, package)

    def _classify_closed(self, path: str, package: str, error: OSError) -> Stray:
        """A folder that could not be looked into; of one that is too deep,
        the outermost that is not locked."""
        searched = path.startswith(("bin/", "lib/", *HOOK_FOLDERS)) or self._site_of(
            path
        )
        danger = Danger.CLOSED if searched else None
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

    def _site_of(self, path: str) -> str:
        """The site-packages folder that a path lies in; empty if it lies in none."""
        for site in self.sites:
            if path.startswith(site):
                return site
        return ""

    # Python

    def _runs_at_start(self, path: str, package: str, linked_folder: bool) -> bool:
        if path in START_FILES:
            return True
        site = self._site_of(path)
        if site:
            inner = path[len(site) :]
            if "/" not in inner and inner.endswith(".pth"):
                return not package or self._pth_runs(path)
            return inner.partition("/")[0].partition(".")[0] in START_MODULES
        if linked_folder and os.path.basename(path).isidentifier():
            path = f"{path}/__init__.py"
        return self.conda and _in_standard_library(path)

    def _pth_runs(self, path: str) -> bool:
        """Whether a .pth file has code, or adds a folder with a module
        that Python imports at its start."""
        if self._may_contain(path, PTH_CODE):
            return True
        place = self.prefix / path
        for line in place.read_text(errors="replace").splitlines():
            folder = os.path.join(place.parent, line.strip())
            if not os.path.isdir(folder):
                continue
            for name in START_MODULES:
                if any(Path(folder).glob(f"{name}*")):
                    return True
        return False

    def _is_plugin(self, path: str, linked_folder: bool) -> bool:
        """Whether it names code that a locked package loads by itself."""
        site = self._site_of(path)
        if linked_folder:
            path = f"{path}/entry_points.txt"
            if not os.path.lexists(self.prefix / path):
                return False
        if not site or not ENTRY_POINTS.fullmatch(path[len(site) :]):
            return False
        return self._may_contain(path, PLUGINS)

    def _is_discovered(self, path: str, linked_folder: bool) -> bool:
        site = self._site_of(path)
        inner = path[len(site) :]
        if linked_folder:
            inner = f"{inner}/__init__.py"
        return bool(site) and bool(DISCOVERED.fullmatch(inner))

    def _may_contain(self, path: str, pattern: re.Pattern[bytes]) -> bool:
        """Whether a file has the pattern; so has one that cannot be read."""
        try:
            content = read_regular(self.prefix / path, TEXT_LIMIT)
        except (OSError, FileRefused):
            return True
        return bool(pattern.search(content))

    def _shadowed(self, path: str, package: str, linked_folder: bool) -> str:
        """The locked file or folder that Python would have imported; empty if there is none.

        In a folder Python takes the first of: a folder NAME with __init__, an extension module,
        NAME.py, NAME.pyc, a folder NAME without __init__ (importlib.machinery.FileFinder).
        """
        folder, _, name = path.rpartition("/")
        if path.startswith("bin/"):
            return self._shadowed_in_programs(path, linked_folder)
        if not self._site_of(path):
            return ""
        if linked_folder:
            return self.modules.get(path, "")
        match = MODULE.fullmatch(name)
        if not match:
            return ""
        module = f"{folder}/{match[1]}"
        if match[1] != "__init__":
            return self._shadowed_module(path, module)
        for locked in (self.modules.get(folder), self.modules.get(module)):
            if locked and _rank(path) < _rank(locked):
                return locked
        namespace = folder in self.folders and module not in self.modules
        if (
            namespace and not package
        ):  # packages may share one, each with the same __init__.py
            return f"{folder}/"
        return ""

    def _shadowed_module(self, path: str, module: str) -> str:
        locked = self.modules.get(module)
        if locked:
            return locked if _rank(path) < _rank(locked) else ""
        is_package = f"{module}/__init__" in self.modules
        if module in self.folders and not is_package:
            return f"{module}/"
        return ""

    def _shadowed_in_programs(self, path: str, linked_folder: bool) -> str:
        """Python puts the folder of a script, such as bin/torchrun, before all others."""
        name = path.split("/")[1].partition(".")[0]
        if not linked_folder and not path.endswith((".py", ".pyc", ".so")):
            return ""
        if name in getattr(sys, "stdlib_module_names", ()):
            return f"the standard library's {name}"
        for site in self.sites:
            for module in (f"{site}{name}", f"{site}{name}/__init__"):
                if module in self.modules:
                    return self.modules[module]
        return ""

    # Programs, headers and libraries

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

    def _is_first_library(self, path: str, linked_folder: bool) -> bool:
        folder, _, name = path.rpartition("/")
        if linked_folder:
            searched = find_searched_folder(path)
            if searched != path and self._is_searched(searched):
                return True
            for found in self._run_folders():
                if f"{found}/".startswith(f"{path}/"):
                    return True
            return False
        return bool(LIBRARY.fullmatch(name)) and self._is_searched(
            find_searched_folder(folder)
        )

    def _is_searched(self, folder: str) -> bool:
        """Whether the loader looks into a folder for the libraries of locked ones."""
        return folder in self.library_folders or folder in self._run_folders()

    def _run_folders(self) -> set[str]:
        """The folders that the locked libraries name in their RPATH and RUNPATH,
        whether they exist or not."""
        if self.run_folders is None:
            self.run_folders = set()
            for path in self.files:
                if ".so" not in path:
                    continue
                dynamic = read_dynamic(self.prefix / path)
                if dynamic:
                    for folder in dynamic.rpath + dynamic.runpath:
                        self.run_folders.add(_resolve_origin(folder, path))
        return self.run_folders


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


def _resolve_origin(folder: str, path: str) -> str:
    """A folder of an RPATH as a path in the prefix;
    what leads out of it keeps its absolute form."""
    origin = os.path.dirname(path)
    for name in ("$ORIGIN", "${ORIGIN}"):
        folder = folder.replace(name, origin)
    return os.path.normpath(folder)


def _search_path_without(prefix: Path) -> str:
    """PATH without the prefix's own programs."""
    own = {str(prefix / "bin"), os.path.realpath(prefix / "bin")}
    folders = os.environ.get("PATH", os.defpath).split(":")
    return ":".join(folder for folder in folders if folder not in own)


def _in_standard_library(path: str) -> bool:
    """In a conda prefix the standard library lies beside site-packages, and comes before it."""
    if re.fullmatch(r"lib/python3\d+\.zip", path):
        return True
    if not re.match(r"lib/python3\.\d+/(?!site-packages/)", path):
        return False
    return path.endswith((".py", ".pyc", ".so", ".pth"))


def _rank(path: str) -> int:
    """The order in which Python takes the files of one module's name:
    __init__ in a folder first."""
    match = MODULE.fullmatch(os.path.basename(path))
    if not match:
        return 100
    suffix = match[2]
    rank = 0 if suffix.startswith(".cpython-") else SUFFIXES.index(suffix, 1)
    return rank if match[1] == "__init__" else 10 + rank


def _locked_modules(paths: Iterable[str]) -> dict[str, str]:
    """Module, as its path without suffixes -> the locked file that Python takes for it."""
    modules: dict[str, str] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        match = MODULE.fullmatch(name)
        if not match:
            continue
        module = f"{folder}/{match[1]}"
        known = modules.get(module)
        if known is None or _rank(path) < _rank(known):
            modules[module] = path
    return modules


def _library_folders(paths: Iterable[str]) -> set[str]:
    """The folders with locked libraries that are found by name; extension modules are not."""
    folders = set()
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name.startswith("lib") and LIBRARY.fullmatch(name):
            folders.add(folder)
    return folders
