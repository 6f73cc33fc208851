"""Which libraries an ELF file needs, and where it looks for them: the dynamic section,
read with the standard library.

https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.dynamic.html
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PT_LOAD = 1
PT_DYNAMIC = 2
DT_NEEDED = 1
DT_STRTAB = 5
DT_RPATH = 15
DT_RUNPATH = 29
LONGEST_DYNAMIC = 1 << 20  # bytes; torch's has 1,000
LONGEST_NAME = 4096


@dataclass(frozen=True)
class Dynamic:
    """`needed`: names of libraries.

    `rpath` and `runpath`: the folders as they are written, with $ORIGIN.

    The loader looks into `rpath` before LD_LIBRARY_PATH, and into `runpath` after it (ld.so(8)).
    """

    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


def read_dynamic(path: Path) -> Dynamic | None:
    """The dynamic section of a 64-bit little-endian ELF file; None if it is no such file."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with path.open("rb") as file:
            return _read(file)
    except (OSError, struct.error, ValueError):
        return None


def _read(file: IO[bytes]) -> Dynamic | None:
    header = file.read(64)
    if header[:6] != b"\x7fELF\x02\x01":
        return None
    (table,) = struct.unpack_from("<Q", header, 32)
    entry_size, count = struct.unpack_from("<HH", header, 54)
    file.seek(table)
    segments = file.read(entry_size * count)
    loads: list[tuple[int, int, int]] = []
    dynamic = b""
    for number in range(count):
        kind, _, offset, address, _, size = struct.unpack_from(
            "<IIQQQQ", segments, number * entry_size
        )
        if kind == PT_LOAD:
            loads.append((address, offset, size))
        elif kind == PT_DYNAMIC:
            file.seek(offset)
            dynamic = file.read(min(size, LONGEST_DYNAMIC))
    rows = list(struct.iter_unpack("<qQ", dynamic[: len(dynamic) // 16 * 16]))
    strings = 0
    for tag, value in rows:
        if tag == DT_STRTAB:
            strings = _file_offset(value, loads)
    needed: list[str] = []
    folders: dict[int, tuple[str, ...]] = {}
    for tag, value in rows:
        if tag == DT_NEEDED:
            needed.append(_text(file, strings + value))
        elif tag in (DT_RPATH, DT_RUNPATH):
            folders[tag] = tuple(_text(file, strings + value).split(":"))
    return Dynamic(
        tuple(needed), folders.get(DT_RPATH, ()), folders.get(DT_RUNPATH, ())
    )


def resolve_origin(folder: str, origin: str) -> str:
    """A folder of an RPATH. `origin`: the folder of the library that has it."""
    return folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)


def _file_offset(address: int, loads: list[tuple[int, int, int]]) -> int:
    for start, offset, size in loads:
        if start <= address < start + size:
            return address - start + offset
    raise ValueError("an address outside of the file")


def _text(file: IO[bytes], offset: int) -> str:
    file.seek(offset)
    return file.read(LONGEST_NAME).split(b"\0", 1)[0].decode("utf-8", "replace")
