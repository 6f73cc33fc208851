"""--compare: what differs between two manifests or certificates, or one and this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockedenv.cli.subject import read_subject
from lockedenv.cli.targets import write_json
from lockedenv.provenance import difference
from lockedenv.provenance.certificate import words
from lockedenv.provenance.certificate.document import (
    Certificate,
    certificate_from,
    is_certificate,
)
from lockedenv.provenance.certificate.judge import compare_certificates
from lockedenv.provenance.certificate.make import make_like
from lockedenv.provenance.documents import DocumentError, Fields, read_document
from lockedenv.provenance.gather import make_manifest
from lockedenv.provenance.manifest import Manifest, manifest_from

SCHEMA_VERSION = 2  # of the JSON, schemas/comparison.schema.json
THIS_MACHINE = "this machine"


@dataclass(frozen=True)
class ComparisonResult:
    """The lines that are printed, the document of --json, and whether the exit status is 0."""

    lines: list[str]
    document: dict[str, Any]
    same: bool


def compare_documents(paths: list[Path], json_target: str | None, prefix: Path) -> int:
    """Says what differs, or writes it as JSON; gives the exit status, 0 only if all was compared.

    One path is compared with this machine and `prefix`. Raises DocumentError, Stop.
    """
    if len(paths) > 2:
        raise DocumentError(
            "--compare takes one manifest or two, or one certificate or two"
        )
    names = [str(path) for path in paths]
    documents = [read_document(path) for path in paths]
    if len(documents) == 1:
        names.append(THIS_MACHINE)
    if is_certificate(documents[0]):
        comparison = _compare_certificates(names, documents, prefix)
    else:
        comparison = _compare_manifests(names, documents, prefix)
    if json_target:
        document = {"schema_version": SCHEMA_VERSION, **comparison.document}
        write_json(json_target, document)
    else:
        print("\n".join(comparison.lines))
    return 0 if comparison.same else 1


def _compare_manifests(
    names: list[str], documents: list[Fields], prefix: Path
) -> ComparisonResult:
    first = _read_first_manifest(names, documents)
    if len(documents) == 2:
        second = manifest_from(names[1], documents[1])
    else:
        subject = read_subject(prefix, "auto")
        second = make_manifest(subject.installed, subject.gpus)
    pair = (names[0], names[1])
    agreement = difference.judge(first, second)
    not_compared = []
    if agreement is difference.Agreement.PYTHON_NOT_COMPARED:
        not_compared.append("Python")
    differences = difference.find_differences(first, second)
    document = {
        "compared": names,
        "same_environment": agreement is difference.Agreement.SAME,
        "not_compared": not_compared,
        "differences": [found.document() for found in differences],
    }
    lines = difference.describe_comparison(first, second, pair)
    return ComparisonResult(lines, document, agreement is difference.Agreement.SAME)


def _read_first_manifest(names: list[str], documents: list[Fields]) -> Manifest:
    if len(documents) == 2 and is_certificate(documents[1]):
        raise _of_two_kinds(names, "manifest", "certificate")
    return manifest_from(names[0], documents[0])


def _compare_certificates(
    names: list[str], documents: list[Fields], prefix: Path
) -> ComparisonResult:
    if len(documents) == 2 and not is_certificate(documents[1]):
        raise _of_two_kinds(names, "certificate", "manifest")
    first = certificate_from(names[0], documents[0])
    if len(documents) == 2:
        second: Certificate = certificate_from(names[1], documents[1])
    else:
        subject = read_subject(prefix, "auto")
        second = make_like(first, names[0], subject.installed, subject.gpus)
    judgement = compare_certificates(first, second, (names[0], names[1]))
    lines = words.describe_judgement(judgement)
    not_compared = []
    for row in judgement.rows:
        if row in judgement.not_compared:
            not_compared.append(str(row.name))
        for tensor in row.missing:
            not_compared.append(f"{row.name}: {tensor}")
    document = {
        "compared": names,
        "same_environment": first.fingerprint == second.fingerprint,
        "computes_the_same": judgement.computes_the_same,
        "not_compared": not_compared,
        "lines": lines,
        "differences": [],
    }
    return ComparisonResult(lines, document, judgement.computes_the_same)


def _of_two_kinds(names: list[str], first: str, second: str) -> DocumentError:
    return DocumentError(
        f"{names[0]} is a {first}, {names[1]} a {second}: --compare takes two of one kind"
    )
