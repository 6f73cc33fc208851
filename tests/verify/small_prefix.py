"""A small environment of the pip backend with real records and an inventory, made in milliseconds."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import sys
import types
from pathlib import Path
from typing import Any

from lockedenv.prefix.inventory import INVENTORY, Package, write_inventory
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.records import read_prefix
from lockedenv.spec.layers import Layer
from lockedenv.spec.locks import PipPackage
from lockedenv.spec.wheel_record import record_digest
from lockedenv.verify.checks import Context

SITE = "lib/python3.11/site-packages"
WHEEL_SHA = "a" * 64
# Tags of a dynamic section, of ELF.
RPATH = 15
RUNPATH = 29
FILES = {
    "demo/__init__.py": b"one\n",
    "demo/core.py": b"two\n",
    "demo/lib/libdemo.so.1": b"library",
    "demo/include/demo.h": b"header",
    "single.py": b"three\n",
    "ns/part.py": b"four\n",
    "../../../bin/demo": b"#!/bin/sh\n",
}


def hashed(content: bytes) -> str:
    return (
        base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    )


def add_package(prefix: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    """Puts a wheel's files into a prefix, as an installer does; gives its RECORD."""
    site = prefix / SITE
    rows = []
    for path, content in files.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        rows.append(f"{path},sha256={hashed(content)},{len(content)}")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    (info / "INSTALLER").write_text("uv\n")
    record = info / "RECORD"
    rows += [
        f"{info.name}/METADATA,,",
        f"{info.name}/INSTALLER,,",
        f"{info.name}/RECORD,,",
    ]
    record.write_text("\n".join(rows) + "\n")
    return record


class SmallPrefix:
    """The environment, and the lock that it was made from."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        self.path = folder / "env"
        (self.path / "bin").mkdir(parents=True)
        (self.path / "bin/python").symlink_to(sys.executable)
        (self.path / "pyvenv.cfg").write_text("home = /usr/bin\n")
        (self.path / "lib64").symlink_to("lib")
        (self.path / "activate").write_text("export A=1\n")
        (self.path / "maximalcai-constraints.txt").write_text("demo==1.0\n")
        self.record = add_package(self.path, "demo", "1.0", {**FILES, **files})
        (self.path / "bin/demo").chmod(0o755)
        digest = record_digest(self.record.read_text())
        self.lock = [PipPackage("demo", "1.0", WHEEL_SHA, 100, digest)]
        self.locks_folder = folder
        self.take_inventory()

    def take_inventory(self) -> None:
        """Notes what lies there as what the set-up left."""
        packages = [Package("demo", "1.0", WHEEL_SHA, Layer.PIP)]
        write_inventory(self.path, take_inventory(self.path, packages))

    def become_condas(self) -> None:
        """Makes it a prefix of the conda backend, without a record."""
        (self.path / "pyvenv.cfg").unlink()
        (self.path / "conda-meta").mkdir()
        (self.path / "conda-meta/history").touch()

    @property
    def site(self) -> Path:
        return self.path / SITE

    def context(self) -> Context:
        """What the checks are told of it, read anew."""
        environment: Any = types.SimpleNamespace(
            folder=self.locks_folder,
            flash_attn=lambda: None,
            python="{}.{}".format(*sys.version_info),
            name="small",
        )
        return Context(read_prefix(self.path), environment, pip_lock=self.lock)

    def write(self, path: str, content: bytes = b"", mode: int = 0o644) -> Path:
        """Puts a file there, in place of what is there."""
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_bytes(content)
        target.chmod(mode)
        return target

    def edit_in_place(self, path: str, content: bytes) -> None:
        """Changes a file, and keeps its modification time."""
        target = self.path / path
        times = target.stat()
        target.write_bytes(content)
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))

    def forge_inventory(self, path: str, **changes: Any) -> None:
        """Changes the inventory's entry of a path, or adds one, to what lies there now."""
        target = self.path / path
        status = target.stat()
        document = json.loads((self.path / INVENTORY).read_text())
        rows = [row for row in document["entries"] if row[0] != path]
        sha256 = hashlib.sha256(target.read_bytes()).hexdigest()
        rows.append([path, "f", status.st_size, status.st_mtime_ns, 0, sha256, "", 0])
        document["entries"] = rows
        (self.path / INVENTORY).write_text(json.dumps(document))


def elf(needed: str, rpath: str, tag: int) -> bytes:
    """A 64-bit ELF file that is nothing but a dynamic section. `tag`: RPATH or RUNPATH."""
    strings = b"\0" + needed.encode() + b"\0" + rpath.encode() + b"\0"
    rows = [
        (1, 1),
        (tag, 2 + len(needed)),
        (5, 64 + 2 * 56 + 5 * 16),
        (10, len(strings)),
        (0, 0),
    ]
    dynamic = b"".join(struct.pack("<qQ", *row) for row in rows)
    start = 64 + 2 * 56
    size = start + len(dynamic) + len(strings)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, size, size, 4096)
    section = struct.pack(
        "<IIQQQQQQ", 2, 4, start, start, start, len(dynamic), len(dynamic), 8
    )
    return header + load + section + dynamic + strings
