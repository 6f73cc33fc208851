"""Which GPUs a file holds machine code for, read from its bytes:
NVIDIA's own cuobjdump is not there.

Two forms are known. A cubin is an ELF file for the machine EM_CUDA, with the architecture in its
flags. A fat binary is what nvcc puts into a library: a header and one entry for each architecture,
readable where its code is compressed too. On bitsandbytes' libraries for CUDA 11.8 to 13.2 this
gives the architectures that their build lists.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Iterable, Union

EM_CUDA = 190  # https://github.com/llvm/llvm-project/blob/main/llvm/include/llvm/BinaryFormat/ELF.h
ELF_MAGIC = b"\x7fELF"
ELF_HEADER = 64  # bytes
ABI_VERSION_OFFSET = 8
MACHINE_OFFSET = 18
FLAGS_OFFSET = 48
NEW_ABI = (
    8  # the first ABI version with the architecture in the second byte of the flags
)
# https://github.com/n-eiling/cuda-fatbin-decompression describes the fat binary.
FAT_MAGIC = b"\x50\xed\x55\xba"
FAT_HEADER = struct.Struct(
    "<IHHQ"
)  # magic, version, size of this header, size of what follows
ENTRY_HEADER = struct.Struct(
    "<HHIQ"
)  # kind, unknown, size of this header, size of the code
ENTRY_ARCHITECTURE_OFFSET = 28
ENTRY_MINIMUM = 64  # bytes
MACHINE_CODE = 2  # the kind of an entry; 1 is PTX

Bytes = Union[bytes, mmap.mmap]


def read_cubin_architecture(data: Bytes, start: int = 0) -> int | None:
    """The architecture, 90 for sm_90, of the cubin that begins at `start`; None if none does."""
    if data[start : start + 4] != ELF_MAGIC or len(data) < start + ELF_HEADER:
        return None
    (machine,) = struct.unpack_from("<H", data, start + MACHINE_OFFSET)
    if machine != EM_CUDA:
        return None
    (flags,) = struct.unpack_from("<I", data, start + FLAGS_OFFSET)
    if data[start + ABI_VERSION_OFFSET] >= NEW_ABI:
        return int(flags >> 8 & 0xFF)
    return int(flags & 0xFF)


def find_cubin_architectures(data: Bytes) -> list[int]:
    """The architecture of each cubin within `data`, in their order."""
    found = []
    start = data.find(ELF_MAGIC)
    while start >= 0:
        architecture = read_cubin_architecture(data, start)
        if architecture is not None:
            found.append(architecture)
        start = data.find(ELF_MAGIC, start + 1)
    return found


def name_architectures(architectures: Iterable[int]) -> list[str]:
    """Architectures as nvcc calls them, each once and the oldest first: sm_80, sm_90."""
    return [f"sm_{number}" for number in sorted(set(architectures))]


def find_fat_binary_architectures(library: Path) -> set[int]:
    """The architectures for which a library's fat binaries hold machine code (PTX is not counted).

    Raises OSError if the library cannot be read.
    """
    found: set[int] = set()
    if library.stat().st_size < FAT_HEADER.size:
        return found
    with library.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(FAT_MAGIC)
            while start >= 0:
                end = _end_of_fat_binary(data, start)
                if end > start:
                    found |= _entry_architectures(data, start + FAT_HEADER.size, end)
                start = data.find(FAT_MAGIC, max(end, start + len(FAT_MAGIC)))
    return found


def _end_of_fat_binary(data: Bytes, start: int) -> int:
    """Where the fat binary at `start` ends; `start` itself if there is none,
    only its first bytes."""
    if start + FAT_HEADER.size > len(data):
        return start
    _, version, header_size, size = FAT_HEADER.unpack_from(data, start)
    end = start + FAT_HEADER.size + size
    if version != 1 or header_size != FAT_HEADER.size or end > len(data):
        return start
    return int(end)


def _entry_architectures(data: Bytes, start: int, end: int) -> set[int]:
    found = set()
    while start + ENTRY_MINIMUM <= end:
        kind, _, header_size, size = ENTRY_HEADER.unpack_from(data, start)
        if header_size < ENTRY_MINIMUM:
            break  # not an entry as we know it
        (architecture,) = struct.unpack_from(
            "<I", data, start + ENTRY_ARCHITECTURE_OFFSET
        )
        if kind == MACHINE_CODE:
            found.add(int(architecture))
        start += header_size + size
    return found
