"""The texts of the lock files, and putting all of them in place or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterable, Sequence

import yaml
from lockedenv.spec.environment import (
    CONDA_LOCK,
    DEV,
    FLASH,
    REQUIREMENTS,
    WHEELS_OVER_CONDA,
)
from lockedenv.spec.locks import CONTENT, SPECIFICATION, PipPackage, content_digest
from lockedenv.spec.specification import FLASH_ASKED, SPEC

TOOLS = "locks/tools.txt"
# name of a lock -> what people edit in its place, and what it is
HEADERS = {
    CONDA_LOCK: (
        SPEC,
        "The conda layer; the pip layer is locks/pip.txt. "
        "micromamba create -n maximalcai -f conda-lock.yml",
    ),
    WHEELS_OVER_CONDA: (
        SPEC,
        "The pip layer, put on the conda layer by scripts/post_create.sh.",
    ),
    FLASH: (FLASH_ASKED, "The source that scripts/post_create.sh builds."),
    REQUIREMENTS: (
        SPEC,
        "Both layers as PyPI wheels, for a machine without conda (Python {python}, x86_64 Linux).",
    ),
    DEV: (
        "pyproject.toml",
        "requirements.txt, and the tools of people who write code (Python {python}, x86_64 Linux).",
    ),
    TOOLS: (
        "pyproject.toml",
        "The tools of the tests, and the uv that installs (Python {python}, x86_64 Linux).",
    ),
}


def seal(name: str, body: str, specification: str, python: str = "") -> str:
    """A lock: its header and its body.

    The header has the digests of what it is written for (`specification`) and of its own lines.
    """
    edited, title = HEADERS[name]
    header = f"# Written by scripts/lock.sh; edit {edited} and run it instead.\n"
    header += f"# {title.format(python=python)}\n"
    if specification:
        header += f"{SPECIFICATION}{specification}\n"
    header += f"{CONTENT}{content_digest(body)}\n"
    return header + body


def requirements_text(
    name: str,
    packages: Iterable[PipPackage],
    python: str,
    specification: str = "",
    more: Sequence[str] = (),
) -> str:
    """A lock of wheels: one line a package, by name; then the lines of `more`, and the count."""
    lines = []
    for package in sorted(packages, key=lambda package: package.name):
        requirement = (
            f"{package.name}=={package.version} --hash=sha256:{package.sha256}"
        )
        lines.append(f"{requirement}{_size_and_record(package)}\n")
    first = ["-r requirements.txt\n"] if name == DEV else []
    body = "".join([*first, *lines, *more, f"# {len(lines)} packages\n"])
    return seal(name, body, specification, python)


def _size_and_record(package: PipPackage) -> str:
    """The comment behind a package: its size and the digest of its RECORD, where known."""
    if package.record_sha256:
        return f"  # {package.size} bytes, RECORD {package.record_sha256}"
    return f"  # {package.size} bytes" if package.size else ""


def conda_lock_text(solved: dict[str, Any], specification: str = "") -> str:
    """conda-lock.yml, in which every package is a line of JSON, which is YAML too.

    The last line counts them.
    """
    metadata = {"version": 1, "metadata": {**solved["metadata"], "sources": [SPEC]}}
    body = yaml.safe_dump(metadata, sort_keys=False) + "package:\n"
    for package in solved["package"]:
        entry = dict(package)
        size = entry.pop("size")
        comment = f"  # {size} bytes" if size else ""
        body += f"- {json.dumps(entry)}{comment}\n"
    body += f"# {len(solved['package'])} packages\n"
    return seal(CONDA_LOCK, body, specification)


def write_locks(folder: Path, texts: dict[str, str]) -> None:
    """Writes all files before the first is renamed into place: a full disk changes nothing."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.new").write_text(text, encoding="utf-8")
    for name in texts:
        (folder / f"{name}.new").replace(folder / name)
