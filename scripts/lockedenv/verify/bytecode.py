"""Bytecode that does not belong to its source: Python would not use it,
or would use it without asking.

https://docs.python.org/3/reference/import.html#pyc-invalidation
"""

from __future__ import annotations

import importlib.util
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lockedenv.errors import printable
from lockedenv.prefix.records import file_sha256

HASH_BASED = 1
CHECKED = 2


class BytecodeFault(Enum):
    """What is wrong with a .pyc file; the value is what people read."""

    STALE = "was compiled from another source than the one beside it"
    UNCHECKED = "Python takes it whatever the source beside it says (an unchecked hash)"


@dataclass(frozen=True)
class Bytecode:
    """A .pyc file, relative to the prefix, with its fault."""

    path: str
    fault: BytecodeFault

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.fault.value}")


def find_bad_bytecode(
    prefix: Path, recorded: Mapping[str, str]
) -> tuple[list[Bytecode], int]:
    """The .pyc files with a fault, sorted, and how many .pyc files there are.

    `recorded`: path in the prefix -> sha256, of the bytecode that packages bring. conda's Python
    brings its own with unchecked hashes, which is as good as its hash says. Only .pyc files of the
    running Python's version are read: another's are never used.
    """
    found = []
    count = 0
    for folder, _, files in os.walk(prefix / "lib"):
        if os.path.basename(folder) != "__pycache__":
            continue
        for name in files:
            if not name.endswith(".pyc"):
                continue
            count += 1
            place = Path(folder, name)
            fault = read_fault(place)
            if not fault:
                continue
            path = place.relative_to(prefix).as_posix()
            if path not in recorded or file_sha256(place) != recorded[path]:
                found.append(Bytecode(path, fault))
    return sorted(found, key=lambda bytecode: bytecode.path), count


def read_fault(path: Path) -> BytecodeFault | None:
    """What is wrong with a .pyc in __pycache__; None if nothing is, or if Python ignores it."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        status = os.stat(importlib.util.source_from_cache(str(path)))
        with path.open("rb") as file:
            header = file.read(16)
    except (OSError, ValueError):
        return None  # without a source beside the folder Python does not look into __pycache__
    if len(header) < 16 or header[:4] != importlib.util.MAGIC_NUMBER:
        return None
    flags, time, size = struct.unpack("<III", header[4:])
    if flags & HASH_BASED:
        return None if flags & CHECKED else BytecodeFault.UNCHECKED
    if time != int(status.st_mtime) & 0xFFFFFFFF or size != status.st_size & 0xFFFFFFFF:
        return BytecodeFault.STALE
    return None
