"""Which flash-attn wheel the set-up has installed in a prefix: PREFIX/maximalcai-flash-attn."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from lockedenv.host.files import read_json, write_atomically
from lockedenv.prefix.records import Dist, file_sha256, read_prefix

RECORD_FILE = "maximalcai-flash-attn"


class WheelOrigin(Enum):
    """Where a wheel came from; the value stands in the file."""

    GIVEN = "given"
    CACHED = "cached"
    PREBUILT = "prebuilt"
    BUILT = "built"


@dataclass(frozen=True)
class InstalledWheel:
    """A wheel that was installed.

    `key` says what a built one was built from and for, with which compilers; it is empty for the
    others. `record_sha256` is the hash of the RECORD that its installation left.
    """

    filename: str
    sha256: str
    origin: WheelOrigin
    key: str = ""
    record_sha256: str = ""

    @property
    def version(self) -> str:
        """Its public version: what flash_attn.__version__ says."""
        return self.filename.split("-")[1].partition("+")[0]


def read_installed_wheel(prefix: Path) -> InstalledWheel | None:
    """The wheel that the set-up noted; None if it noted none, or in the form of version 2.0."""
    fields = read_json(prefix / RECORD_FILE)
    names = ("filename", "sha256", "key", "record_sha256")
    if not all(isinstance(fields.get(name), str) for name in names):
        return None
    if not re.fullmatch(r"[A-Za-z0-9_.]+-[A-Za-z0-9_.+!-]+\.whl", fields["filename"]):
        return None
    try:
        origin = WheelOrigin(fields.get("origin"))
    except ValueError:
        return None
    return InstalledWheel(
        filename=fields["filename"],
        sha256=fields["sha256"],
        origin=origin,
        key=fields["key"],
        record_sha256=fields["record_sha256"],
    )


def write_installed_wheel(prefix: Path, wheel: InstalledWheel) -> None:
    document = {**asdict(wheel), "origin": wheel.origin.value}
    write_atomically(prefix / RECORD_FILE, json.dumps(document, indent=1) + "\n")


def find_dist(prefix: Path) -> Dist | None:
    """The dist-info of the flash-attn that lies in a prefix, whoever installed it."""
    for dist in read_prefix(prefix).dists:
        if dist.name == "flash-attn":
            return dist
    return None


def read_record_hash(prefix: Path) -> str:
    """The sha256 of the RECORD of the flash-attn that lies in a prefix; empty if none does."""
    dist = find_dist(prefix)
    if not dist:
        return ""
    return file_sha256(dist.path / "RECORD")


def is_as_installed(prefix: Path, wheel: InstalledWheel) -> bool:
    """Whether the flash-attn in a prefix is still the one that was noted, by its RECORD."""
    return bool(wheel.record_sha256) and read_record_hash(prefix) == wheel.record_sha256
