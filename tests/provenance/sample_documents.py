"""Manifests and certificates for the tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

from fixtures.commands import ROOT
from lockedenv.prefix.interpreter import Interpreter
from lockedenv.provenance.certificate.document import (
    Certificate,
    Row,
    certificate_from,
    parse_row_name,
)
from lockedenv.provenance.documents import read_document
from lockedenv.provenance.manifest import SCHEMA_VERSION, Manifest
from lockedenv.provenance.packages import InstalledPackage, fingerprint_of
from lockedenv.spec.layers import BackendName

RELEASED = ROOT / "certificates/default-cpu.json"
OF_DEBIAN = Interpreter(
    "3.11.2", "(main, Apr 28 2025) [GCC 12.2.0]", "/usr/lib/python3.11", "a" * 64
)
OF_PYENV = Interpreter(
    "3.11.7", "(main, May 9 2026) [GCC 12.2.0]", "/opt/lib/python3.11", "b" * 64
)


def make_package(name: str, version: str = "3.1", build: str = "") -> InstalledPackage:
    return InstalledPackage(name, version, build, "pypi", "pip", "c" * 64)


def make_manifest(
    packages: "tuple[InstalledPackage, ...]" = (make_package("idna"),),
    interpreter: "Interpreter | None" = OF_PYENV,
    **changes: Any,
) -> Manifest:
    """A manifest of the PyPI backend without a GPU."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        made="2026-11-28T12:00:00Z",
        fingerprint=fingerprint_of(packages, interpreter),
        commit="d" * 40,
        modified=False,
        environment="default",
        locks={"requirements.txt": "e" * 64, "conda-lock.yml": None},
        backend=BackendName.PIP,
        prefix="/root/maximalcai",
        interpreter=interpreter,
        packages=packages,
        machine={"python": "3.11.7", "cpus": 2.0},
        gpus=(),
        cuda={"torch": "2.5.1+cu124", "cuda": "12.4", "cudnn": "90100", "nccl": None},
        variables={"CUDA_VISIBLE_DEVICES": "0"},
        vulnerabilities=(),
        results=(),
        pod=(),
    )
    return replace(manifest, **changes)


def write_manifest(path: Path, manifest: Manifest) -> Path:
    path.write_text(json.dumps(manifest.document()))
    return path


def version_1(manifest: Manifest) -> "dict[str, Any]":
    """The JSON of a manifest as version 2.0 of the project wrote it: without the machine's Python."""
    document = manifest.document()
    del document["interpreter"]
    return {
        **document,
        "schema_version": 1,
        "fingerprint": fingerprint_of(manifest.packages),
    }


def released_certificate() -> Certificate:
    return certificate_from(str(RELEASED), read_document(RELEASED))


def change_row(certificate: Certificate, name: str, **changes: Any) -> Certificate:
    """The certificate with other values in one row."""
    row_name = parse_row_name(name)
    rows = {
        **certificate.rows,
        row_name: replace(certificate.rows[row_name], **changes),
    }
    return replace(certificate, rows=rows)


def row_of(certificate: Certificate, name: str) -> Row:
    return certificate.rows[parse_row_name(name)]


def with_loss(row: Row, step: int, factor: float) -> "tuple[float, ...]":
    """The losses of a row, one of them changed."""
    losses = list(row.loss)
    losses[step] *= factor
    return tuple(losses)


def places_in(
    document: Any, place: "tuple[Any, ...]" = ()
) -> "Iterator[tuple[Any, ...]]":
    """Every place in a JSON document, as the keys that lead there; of a list, the first item alone."""
    yield place
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places_in(value, (*place, key))
    elif isinstance(document, list) and document:
        yield from places_in(document[0], (*place, 0))


def replaced(document: Any, place: "tuple[Any, ...]", value: Any) -> Any:
    """A copy of a JSON document with another value at a place."""
    if not place:
        return value
    copied = json.loads(json.dumps(document))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copied
