"""The machine's Python, which a virtual environment runs: which build it is, and the hash of its
standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockedenv.errors import Stop
from lockedenv.host.process import ask
from lockedenv.prefix.records import hashes
from lockedenv.spec.variables import clean

QUESTION = Path(__file__).with_name("describe_python.py")
# Folders that are not of the standard library, or that programs never import: other packages,
# tests, and what extensions are linked with.
LEFT_OUT = (
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "turtledemo",
)


@dataclass(frozen=True)
class Interpreter:
    """`version` such as "3.11.7", `build` as sys.version has it, `folder` of the standard library,
    `sha256` over it.
    """

    version: str
    build: str
    folder: str
    sha256: str

    def document(self) -> dict[str, str]:
        """Its JSON."""
        return {
            "version": self.version,
            "build": self.build,
            "folder": self.folder,
            "sha256": self.sha256,
        }

    @staticmethod
    def parse(document: Any) -> "Interpreter":
        """An interpreter from its JSON. Raises KeyError or TypeError."""
        names = ("version", "build", "folder", "sha256")
        values = [document[name] for name in names]
        if not all(isinstance(value, str) for value in values):
            raise TypeError("`interpreter`")
        return Interpreter(*values)


def read_interpreter(python: Path) -> Interpreter:
    """The interpreter that a program such as PREFIX/bin/python runs. Raises Stop if it does not
    start.
    """
    answer = ask([python, "-I", "-S", QUESTION], env=clean(dict(os.environ)))
    try:
        found = json.loads(answer.output)
        folders = sorted({os.path.realpath(folder) for folder in found["folders"]})
        version = str(found["version"])
        build = str(found["build"])
        archive = Path(found["archive"])
    except (ValueError, KeyError, TypeError):
        last = "".join(answer.error.strip().splitlines()[-1:])
        raise Stop(f"{python} does not start (exit {answer.status}: {last})") from None
    sha256 = hash_library([Path(folder) for folder in folders], archive)
    return Interpreter(version, build, "".join(folders[:1]), sha256)


def hash_library(folders: list[Path], archive: Path) -> str:
    """One sha256 over the names and contents of a standard library, whatever folder it lies in."""
    names: dict[Path, str] = {}
    for folder in folders:
        for path in library_files(folder):
            names[path] = path.relative_to(folder).as_posix()
    if archive.is_file():  # Python looks there first
        names[archive] = archive.name
    rows = []
    for path, sha256 in hashes(names).items():
        rows.append(f"{names[path]} {sha256}\n")
    return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()


def library_files(folder: Path) -> list[Path]:
    """The files of a standard library that a program may import."""
    found = []
    for place, folders, files in os.walk(folder):
        for name in list(folders):
            if name in LEFT_OUT or name.startswith("config-"):
                folders.remove(name)  # os.walk does not enter it
        for name in files:
            found.append(Path(place, name))
    return found
