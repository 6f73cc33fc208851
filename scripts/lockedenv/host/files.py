"""Files: read only if they are regular and within a limit, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

# The largest JSON that is read here, a conda package's paths.json, has some megabytes.
LARGEST_JSON = 64 << 20  # bytes
LONGEST_NAME = 200  # bytes of a file's name, which may have 255


class FileRefused(ValueError):
    """A path is not a regular file, or the file is larger than its kind can be."""


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Never waits for a pipe or a device.

    Raises FileNotFoundError and other OSErrors, and FileRefused.
    """
    # O_NONBLOCK: opening a pipe without a writer would wait for one.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileRefused("it is not a regular file")
        # A file of /proc has no size: the read is what the limit holds for.
        content = file.read(limit + 1)
    if len(content) > limit:
        raise FileRefused(f"it has more than {limit:,} bytes")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if there is no such file, or if it holds no object."""
    try:
        document = json.loads(read_regular(path, LARGEST_JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a reader never sees half of it.

    A device or a pipe is written to as it is.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by the process id: two containers have equal ones.
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST_NAME])
    beside = path.with_name(f".{name}.{secrets.token_hex(8)}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
