"""The session manifest: what produced a result, so exactly that it can be compared months later.

schemas/manifest.schema.json describes the file. Version 2 has the machine's Python in it, and in
its fingerprint; version 1 had not. Both are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockedenv.host.gpus import Gpu
from lockedenv.prefix.interpreter import Interpreter
from lockedenv.provenance.documents import (
    DocumentError,
    Fields,
    ShapeError,
    parse_document,
    read_document,
)
from lockedenv.provenance.packages import (
    InstalledPackage,
    fingerprint_of,
    parse_package,
)
from lockedenv.spec.layers import BackendName

SCHEMA_VERSION = 2
WITHOUT_PYTHON = 1  # the schema version whose fingerprint is over the packages alone
MANY_VERSIONS = 10**6
LARGEST = 10**18


@dataclass(frozen=True)
class Manifest:
    """A session manifest.

    `schema_version`: of the file that it was read from. `interpreter`: the machine's Python, None
    where Python is a conda package, and in version 1. `locks`: file -> sha256 in hex. `results` and
    `pod`: what the checks and the look at the machine found, as they stand in the verifier's
    --json.
    """

    schema_version: int
    made: str
    fingerprint: str
    commit: str | None
    modified: bool | None
    environment: str
    locks: dict[str, str | None]
    backend: BackendName
    prefix: str
    interpreter: Interpreter | None
    packages: tuple[InstalledPackage, ...]
    machine: dict[str, Any]
    gpus: tuple[Gpu, ...]
    cuda: dict[str, Any]
    variables: dict[str, str]
    vulnerabilities: tuple[Any, ...]
    results: tuple[Any, ...]
    pod: tuple[Any, ...]

    @property
    def lacks_python(self) -> bool:
        """Whether nothing in it says which Python was used: version 1, on the PyPI backend."""
        return self.interpreter is None and self.backend.is_venv

    def document(self, with_uuids: bool = False) -> dict[str, Any]:
        """Its JSON; the GPUs' UUIDs only where they were asked for."""
        interpreter = None
        if self.interpreter is not None:
            interpreter = self.interpreter.document()
        return {
            "schema_version": self.schema_version,
            "made": self.made,
            "fingerprint": self.fingerprint,
            "repository": {"commit": self.commit, "modified": self.modified},
            "environment": self.environment,
            "locks": self.locks,
            "backend": self.backend,
            "prefix": self.prefix,
            "interpreter": interpreter,
            "packages": [package.document() for package in self.packages],
            "machine": self.machine,
            "gpus": [gpu_document(gpu, with_uuids) for gpu in self.gpus],
            "cuda": self.cuda,
            "variables": self.variables,
            "vulnerabilities": list(self.vulnerabilities),
            "results": list(self.results),
            "pod": list(self.pod),
        }


def gpu_document(gpu: Gpu, with_uuid: bool) -> dict[str, Any]:
    """The JSON of one GPU."""
    document = {
        "name": gpu.name,
        "driver": gpu.driver,
        "memory_bytes": gpu.memory,
        "capability": gpu.capability,
        "mig": gpu.mig,
    }
    if with_uuid:
        document["uuid"] = gpu.uuid
    return document


def read_manifest(path: Path) -> Manifest:
    """A manifest from a file. Raises DocumentError."""
    return manifest_from(str(path), read_document(path))


def manifest_from(name: str, fields: Fields) -> Manifest:
    """A manifest from the JSON of a document of this name. Raises DocumentError."""
    return parse_document(
        name,
        "session manifest",
        "--manifest",
        fields,
        lambda f: _parse_manifest(name, f),
    )


def _parse_manifest(name: str, fields: Fields) -> Manifest:
    version = fields.whole("schema_version", 0, MANY_VERSIONS)
    if version not in (SCHEMA_VERSION, WITHOUT_PYTHON):
        raise DocumentError(
            f"{name}: is of schema version {version}, this reads {WITHOUT_PYTHON} and "
            f"{SCHEMA_VERSION}; compare it with the clone that made it"
        )
    backend = BackendName(fields.choice("backend", tuple(BackendName)))
    interpreter = None
    if version != WITHOUT_PYTHON and backend.is_venv:
        interpreter = _parse_interpreter(fields.object("interpreter"))
    packages = []
    for package in fields.objects("packages"):
        packages.append(parse_package(package))
    gpus = []
    for gpu in fields.objects("gpus"):
        gpus.append(_parse_gpu(gpu))
    repository = fields.object("repository")
    manifest = Manifest(
        schema_version=version,
        made=fields.text("made"),
        fingerprint=fields.text("fingerprint"),
        commit=repository.optional_text("commit"),
        modified=_parse_modified(repository),
        environment=fields.text("environment"),
        locks=_parse_optional_texts(fields.object("locks")),
        backend=backend,
        prefix=fields.text("prefix"),
        interpreter=interpreter,
        packages=tuple(packages),
        machine=fields.shown("machine"),
        gpus=tuple(gpus),
        cuda=fields.shown("cuda"),
        variables=fields.texts("variables"),
        vulnerabilities=fields.list_of_any("vulnerabilities"),
        results=fields.list_of_any("results"),
        pod=fields.list_of_any("pod"),
    )
    if fingerprint_of(manifest.packages, manifest.interpreter) != manifest.fingerprint:
        raise ShapeError("its fingerprint is not that of its packages and its Python")
    return manifest


def packages_fingerprint(manifest: Manifest) -> str:
    """The fingerprint over the packages alone, as schema version 1 had it."""
    return fingerprint_of(manifest.packages)


def _parse_interpreter(fields: Fields) -> Interpreter:
    return Interpreter(
        version=fields.text("version"),
        build=fields.text("build"),
        folder=fields.text("folder"),
        sha256=fields.text("sha256"),
    )


def _parse_modified(repository: Fields) -> bool | None:
    if not repository.has("modified"):
        raise ShapeError("`repository.modified` is missing")
    modified = repository.values["modified"]
    if modified is None or isinstance(modified, bool):
        return modified
    raise ShapeError("`repository.modified` is not true, false or null")


def _parse_optional_texts(fields: Fields) -> dict[str, str | None]:
    found = {}
    for name in fields.values:
        found[name] = fields.optional_text(name)
    return found


def _parse_gpu(fields: Fields) -> Gpu:
    uuid = ""
    if fields.has("uuid"):
        uuid = fields.text("uuid")
    mig = fields.values.get("mig")
    if not isinstance(mig, bool):
        raise ShapeError(f"`{fields.place}.mig` is not true or false")
    return Gpu(
        name=fields.text("name"),
        driver=fields.text("driver"),
        memory=fields.whole("memory_bytes", 0, LARGEST),
        capability=fields.text("capability"),
        uuid=uuid,
        mig=mig,
    )
