"""--compare: what differs between two manifests or certificates, or one and this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lockedenv.cli.subject import read_subject
from lockedenv.host.machine import write_atomically
from lockedenv.provenance import certificate, compare, manifest
from lockedenv.provenance.documents import DocumentError


def compare_documents(paths: list[Path], json_target: str | None, prefix: Path) -> int:
    """Says what differs, or writes it as JSON (schemas/comparison.schema.json); gives the exit status.

    One path is compared with this machine and `prefix`. Raises DocumentError.
    """
    if len(paths) > 2:
        raise DocumentError("--compare takes one manifest or two, or one certificate or two")
    documents = [compare.read(path) for path in paths]
    names = [str(path) for path in paths]
    if len(documents) == 1:
        subject = read_subject(prefix, "auto")
        gpus = list(subject.gpus)
        names.append("this machine")
        if "task" in documents[0]:
            documents.append(certificate.like(documents[0], names[0], subject.installed, gpus))
        else:
            documents.append(manifest.make(subject.installed, gpus))
    first, second = documents
    same = first["fingerprint"] == second["fingerprint"]
    rows = []
    more: dict[str, Any] = {}
    if "task" in first or "task" in second:
        said, status = compare.certificates(first, second, (names[0], names[1]))
        more = {"computes_the_same": status == 0, "lines": said.splitlines()}
    else:
        keys = ("group", "name", "first", "second")
        rows = [dict(zip(keys, row)) for row in compare.differences(first, second)]
        said = compare.comparison(first, second, (names[0], names[1]))
        status = 0 if same else 1
    if not json_target:
        print(said)
        return status
    document = {
        "schema_version": 1,
        "compared": names,
        "same_environment": same,
        "differences": rows,
        **more,
    }
    text = json.dumps(document, indent=2) + "\n"
    if json_target == "-":
        sys.stdout.write(text)
    else:
        write_atomically(Path(json_target), text)
    return status
