"""What differs between two session manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

from lockedenv.console import Stop
from lockedenv.provenance.manifest import SCHEMA_VERSION


class ManifestError(Stop):
    """A manifest cannot be read; the message names the file and what is wrong with it."""


def read(path: Path) -> Dict[str, Any]:
    """A manifest from a file. Raises ManifestError."""
    try:
        document: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["schema_version"] != SCHEMA_VERSION:
            raise ManifestError(f"{path}: is of schema version {document['schema_version']}, this reads {SCHEMA_VERSION}")
        for key in ("fingerprint", "packages", "gpus", "variables", "machine", "cuda", "locks"):
            document[key]
        return document
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: is not a session manifest ({error}); make one with --manifest {path}") from None


def _flat(document: Dict[str, Any]) -> Dict[str, Dict[str, str]]:
    """A manifest as groups of name -> value, for comparing."""
    by_name: Dict[str, str] = {}
    for p in document["packages"]:
        text = " ".join(filter(None, (p["version"], p["build"], p["channel"])))
        by_name[f"{p['name']} ({p['manager']})"] = f"{text} {p['hash'][:12]}" if p["name"] != "flash-attn" else text
    return {
        "packages": by_name,
        "GPU": {f"GPU {i}": f"{g['name']}, {g['memory_bytes']} bytes, {g['capability']}" for i, g in enumerate(document["gpus"])},
        "driver": {
            **{f"GPU {i}": str(g["driver"]) for i, g in enumerate(document["gpus"])},
            **{k: str(v) for k, v in document["cuda"].items()},
        },
        **{group: {k: str(v) for k, v in document[group].items()} for group in ("variables", "machine")},
        "locks": {k: str(v)[:12] for k, v in document["locks"].items()},
    }


def differences(a: Dict[str, Any], b: Dict[str, Any]) -> List[Tuple[str, str, str, str]]:
    """(group, name, in a, in b) of all that differs between two manifests; '-' where one has nothing."""
    rows = []
    for (group, left), right in zip(_flat(a).items(), _flat(b).values()):
        for name in sorted({*left, *right}):
            if left.get(name) != right.get(name):
                rows.append((group, name, left.get(name, "-"), right.get(name, "-")))
    return rows


def comparison(a: Dict[str, Any], b: Dict[str, Any], names: Tuple[str, str]) -> str:
    """What differs, grouped, as text for people."""
    rows = differences(a, b)
    same = a["fingerprint"] == b["fingerprint"]
    verdict = "the same environment" if same else "NOT the same environment"
    lines = [f"{names[0]} and {names[1]}: {verdict} (fingerprints {a['fingerprint'][:12]}, {b['fingerprint'][:12]})"]
    for group in dict.fromkeys(row[0] for row in rows):
        lines.append(f"{group}:")
        lines += [f"  {name:<28} {left}  ->  {right}" for g, name, left, right in rows if g == group]
    return "\n".join(lines)
