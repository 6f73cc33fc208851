"""Which paths of a prefix the loader takes in place of a locked library."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Set
from pathlib import Path

from lockedenv.verify.elf import read_dynamic, resolve_origin
from lockedenv.verify.search_path import find_searched_folder

LIBRARY = re.compile(r".+\.so(\.\d+)*")


class LibraryFolders:
    """The folders that the loader searches for locked libraries. `files`: the locked ones."""

    def __init__(self, prefix: Path, files: Set[str]) -> None:
        self.prefix = prefix
        self.files = files
        self.library_folders = _find_library_folders(files)
        self.run_folders: set[str] | None = None

    def is_first(self, path: str, linked_folder: bool) -> bool:
        """Whether the loader finds what lies at a path before a locked library."""
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
                        self.run_folders.add(self._find_run_folder(folder, path))
        return self.run_folders

    def _find_run_folder(self, folder: str, path: str) -> str:
        """A folder of an RPATH as a path in the prefix; what leads out of it stays absolute."""
        origin = str(self.prefix / os.path.dirname(path))
        found = os.path.normpath(resolve_origin(folder, origin))
        return found.removeprefix(f"{self.prefix}/")


def _find_library_folders(paths: Iterable[str]) -> set[str]:
    """The folders with locked libraries that are found by name; extension modules are not."""
    folders = set()
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name.startswith("lib") and LIBRARY.fullmatch(name):
            folders.add(folder)
    return folders
