"""Files: read only if they are regular and within a limit, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
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


def write_document(path: Path, text: str) -> None:
    """Writes what people asked for under a name of theirs. A file keeps its permission bits.

    What this process prints to, as /dev/stdout, is written to through its open stream: what was
    printed before stays, and what is printed later follows.
    """
    descriptor = find_output(path)
    if descriptor is None:
        write_atomically(path, text, keep_mode=True)
        return
    sys.stdout.flush()
    with open(os.dup(descriptor), "w", encoding="utf-8") as file:
        file.write(text)


def find_output(path: Path) -> int | None:
    """The descriptor of standard output or standard error, where a path leads to that."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    for descriptor in (1, 2):
        if os.path.samestat(status, os.fstat(descriptor)):
            return descriptor
    return None


def write_atomically(path: Path, text: str, keep_mode: bool = False) -> None:
    """Writes a file whole or not at all: a reader never sees half of it.

    A device or a pipe is written to as it is. `keep_mode`: a file that is there keeps its
    permission bits.
    """
    mode = None
    # Before links are resolved: a pipe's link in /proc leads to no path.
    if path.exists():
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            path.write_text(text, encoding="utf-8")
            return
        if keep_mode:
            mode = stat.S_IMODE(status.st_mode)
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by the process id: two containers have equal ones.
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST_NAME])
    beside = path.with_name(f".{name}.{secrets.token_hex(8)}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(text)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
