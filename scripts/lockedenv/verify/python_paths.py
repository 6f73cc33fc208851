"""Which paths of a prefix Python runs at its start, or takes for a module, and in which order."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Set
from pathlib import Path

from lockedenv.host.files import FileRefused, read_regular
from lockedenv.verify.contents import PrefixContents

START_MODULES = ("sitecustomize", "usercustomize")
# Python's start-up looks for these beside its program, or one folder above it: Modules/getpath.py
START_FILES = ("pyvenv.cfg", "bin/pyvenv.cfg", "bin/pybuilddir.txt")
# A line of a .pth file that begins so is run: https://docs.python.org/3/library/site.html
PTH_CODE = ("import ", "import\t")
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
# The suffixes of a module's file, in the order in which Python looks for them: importlib.machinery.
MODULE = re.compile(r"([^./]+)(\.cpython-[^.]+\.so|\.abi3\.so|\.so|\.py|\.pyc)")
SUFFIXES = (".so", ".abi3.so", ".so", ".py", ".pyc")


def is_start_file(contents: PrefixContents, path: str) -> bool:
    """Whether a locked file runs at every start of Python,
    or lies where Python looks before its packages."""
    folder, slash, name = path.rpartition("/")
    if folder + slash in contents.sites:
        return name.endswith(".pth") or name.partition(".")[0] in START_MODULES
    if contents.installed.backend.is_venv:
        return False
    return bool(
        re.fullmatch(r"lib/python3\.\d+(/lib-dynload)?/[^/]+\.(py|so|pyc|pth)", path)
    )


class PythonPaths:
    """The locked modules of a prefix, beside which a stray is judged.

    `files` and `folders`: the locked ones, as paths in the prefix. A `linked_folder` is a link to a
    folder: what lies in that is Python's to find too.
    """

    def __init__(
        self, contents: PrefixContents, files: Set[str], folders: Set[str]
    ) -> None:
        self.prefix = contents.prefix
        self.sites = contents.sites
        self.folders = folders
        self.modules = _find_locked_modules(files)
        # A virtual environment's standard library is the machine's.
        self.has_standard_library = not contents.installed.backend.is_venv

    def find_site(self, path: str) -> str:
        """The site-packages folder that a path lies in; empty if it lies in none."""
        for site in self.sites:
            if path.startswith(site):
                return site
        return ""

    def runs_at_start(self, path: str, package: str, linked_folder: bool) -> bool:
        if path in START_FILES:
            return True
        site = self.find_site(path)
        if site:
            inner = path[len(site) :]
            if "/" not in inner and inner.endswith(".pth"):
                return not package or self._pth_runs(path)
            return inner.partition("/")[0].partition(".")[0] in START_MODULES
        if linked_folder and os.path.basename(path).isidentifier():
            path = f"{path}/__init__.py"
        return self.has_standard_library and _in_standard_library(path)

    def _pth_runs(self, path: str) -> bool:
        """Whether a .pth file has code, or adds a folder with a module
        that Python imports at its start."""
        place = self.prefix / path
        try:
            text = read_regular(place, TEXT_LIMIT).decode("utf-8-sig", "replace")
        except (OSError, FileRefused):
            return True
        # At all that ends a line for some version of Python: site reads with universal newlines.
        for line in text.splitlines():
            if line.startswith(PTH_CODE):
                return True
            folder = os.path.join(place.parent, line.strip())
            if not line.strip() or not os.path.isdir(folder):
                continue
            for name in START_MODULES:
                if any(Path(folder).glob(f"{name}*")):
                    return True
        return False

    def find_locked(self, path: str, name: str) -> str:
        """The locked file or folder of a module in the site-packages folder of a path; else empty.

        `name`: as it is imported, with dots.
        """
        module = f"{self.find_site(path)}{name.replace('.', '/')}"
        for candidate in (f"{module}/__init__", module):
            if candidate in self.modules:
                return self.modules[candidate]
        if module in self.folders:
            return f"{module}/"
        return ""

    def names_plugin(self, path: str, linked_folder: bool) -> bool:
        """Whether it names code that a locked package loads by itself."""
        site = self.find_site(path)
        if linked_folder:
            path = f"{path}/entry_points.txt"
            if not os.path.lexists(self.prefix / path):
                return False
        if not site or not ENTRY_POINTS.fullmatch(path[len(site) :]):
            return False
        return self._may_contain(path, PLUGINS)

    def is_discovered(self, path: str, linked_folder: bool) -> bool:
        site = self.find_site(path)
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

    def find_shadowed(self, path: str, package: str, linked_folder: bool) -> str:
        """The locked file or folder that Python would have imported; empty if there is none.

        In a folder Python takes the first of: a folder NAME with __init__, an extension module,
        NAME.py, NAME.pyc, a folder NAME without __init__ (importlib.machinery.FileFinder).
        """
        folder, _, name = path.rpartition("/")
        if path.startswith("bin/"):
            return self._shadowed_in_programs(path, linked_folder)
        if not self.find_site(path):
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


def _find_locked_modules(paths: Iterable[str]) -> dict[str, str]:
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
