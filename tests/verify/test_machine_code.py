"""Which GPUs a file holds machine code for: cubins of both forms, and a library's fat binaries."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from lockedenv.verify.machine_code import (
    EM_CUDA,
    find_cubin_architectures,
    find_fat_binary_architectures,
    read_cubin_architecture,
)

X86_64 = 62
PTX = 1
CODE = 2


def make_elf(machine: int, abi_version: int, flags: int) -> bytes:
    header = bytearray(64)
    header[:4] = b"\x7fELF"
    header[8] = abi_version
    struct.pack_into("<H", header, 18, machine)
    struct.pack_into("<I", header, 48, flags)
    return bytes(header)


def make_entry(kind: int, architecture: int, code: bytes) -> bytes:
    header = bytearray(64)
    struct.pack_into("<HHIQ", header, 0, kind, 0x101, 64, len(code))
    struct.pack_into("<I", header, 28, architecture)
    return bytes(header) + code


def make_fat_binary(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


# The flags: of triton 3.1 with CUDA 12.4, and of CuTe DSL 4.8 with CUDA 13.
OLD = make_elf(EM_CUDA, 7, 0x5A0D5A)
NEW = make_elf(EM_CUDA, 8, 0x6005A04)


@pytest.mark.parametrize("cubin", [OLD, NEW])
def test_the_architecture_of_a_cubin(cubin: bytes) -> None:
    assert read_cubin_architecture(cubin) == 90


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", make_elf(X86_64, 0, 0), b"text" * 20]
)
def test_what_is_no_cubin_has_no_architecture(data: bytes) -> None:
    assert read_cubin_architecture(data) is None


def test_cubins_within_an_object_file() -> None:
    data = make_elf(X86_64, 0, 0) + b"host code" + NEW + b"\x7fELF"
    assert find_cubin_architectures(data) == [90]


def test_the_architectures_of_a_library(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    first = make_fat_binary(
        make_entry(CODE, 80, b"x" * 24), make_entry(PTX, 120, b"ptx" * 8)
    )
    second = make_fat_binary(make_entry(CODE, 90, b"y" * 8))
    library.write_bytes(b"\x7fELF" + b"host" * 20 + first + b"pad" + second)
    assert find_fat_binary_architectures(library) == {80, 90}, "PTX is no machine code"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 100,
        b"\x50\xed\x55\xba",  # the magic number alone, as in the code that looks for it
        b"\x50\xed\x55\xba" * 30,
        make_fat_binary(make_entry(CODE, 90, b"x" * 8))[:-40],  # cut off
        make_fat_binary(bytes(200)),  # an entry that would have no size
    ],
)
def test_what_is_no_fat_binary_holds_nothing(data: bytes, tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(data)
    assert find_fat_binary_architectures(library) == set()
