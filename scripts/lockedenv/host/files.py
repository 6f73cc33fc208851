"""Files from outside are read only if they are regular files and within a limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path


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
