"""What is installed, as rows that can be compared, and the fingerprint over them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Iterable

from lockedenv.prefix.interpreter import Interpreter
from lockedenv.prefix.records import Installed, hash_record
from lockedenv.provenance.documents import Fields
from lockedenv.spec.layers import Layer

FLASH_ATTN = "flash-attn"  # built on the spot: two builds of one source differ in bytes


@dataclass(frozen=True)
class InstalledPackage:
    """One package. `manager` is "conda" or "pip"; `hash` is a sha256 in hex.

    A conda package's hash is its archive's. A wheel's is over its RECORD, without what depends on
    the place or the installer: the digest that the lock has beside the wheel's own hash.
    """

    name: str
    version: str
    build: str
    channel: str
    manager: str
    hash: str

    def document(self) -> dict[str, str]:
        """Its JSON."""
        return asdict(self)


def parse_package(fields: Fields) -> InstalledPackage:
    """A package from its JSON. Raises ShapeError."""
    return InstalledPackage(
        name=fields.text("name"),
        version=fields.text("version"),
        build=fields.text("build"),
        channel=fields.text("channel"),
        manager=fields.text("manager"),
        hash=fields.text("hash"),
    )


def list_packages(installed: Installed) -> tuple[InstalledPackage, ...]:
    """Every installed package, sorted."""
    found = []
    for record in installed.conda:
        found.append(
            InstalledPackage(
                record.name,
                record.version,
                record.build,
                record.channel,
                Layer.CONDA.value,
                record.sha256,
            )
        )
    for dist in installed.dists:
        if dist.manager == Layer.PIP:
            found.append(
                InstalledPackage(
                    dist.name,
                    dist.version,
                    "",
                    "pypi",
                    Layer.PIP.value,
                    hash_record(dist),
                )
            )
    return tuple(sorted(found, key=lambda p: (p.manager, p.name, p.version, p.hash)))


def fingerprint_of(
    packages: Iterable[InstalledPackage], interpreter: Interpreter | None = None
) -> str:
    """One sha256 over all packages and the machine's Python: equal where the environment is.

    `interpreter` is None where Python is one of the packages. flash-attn counts by version.
    """
    lines = []
    for package in packages:
        if package.name == FLASH_ATTN:
            package = replace(package, hash="")
        words = (
            package.manager,
            package.name,
            package.version,
            package.build,
            package.hash,
        )
        lines.append(" ".join(words))
    if interpreter is not None:
        words = (
            "machine",
            "python",
            interpreter.version,
            interpreter.build,
            interpreter.sha256,
        )
        lines.append(" ".join(words))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
