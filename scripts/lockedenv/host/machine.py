"""The former names of this room's modules, until every caller imports from them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from lockedenv.host.disks import (
    GIB,
    existing_parent,
    free_bytes,
    has_links_and_locks,
    same_filesystem,
    size_text,
)
from lockedenv.host.gpus import Gpu
from lockedenv.host.gpus import GpuError as MachineError
from lockedenv.host.gpus import find_gpu_nodes as gpu_nodes
from lockedenv.host.gpus import find_gpus as gpus
from lockedenv.host.limits import cpu_limit, read_memory
from lockedenv.host.places import POD_VOLUME, default_cache, home
from lockedenv.host.versions import version_tuple

__all__ = [
    "GIB",
    "Gpu",
    "MachineError",
    "POD_VOLUME",
    "cpu_limit",
    "default_cache",
    "existing_parent",
    "free_bytes",
    "gpu_nodes",
    "gpus",
    "has_links_and_locks",
    "home",
    "memory_limit",
    "read_json",
    "same_filesystem",
    "size_text",
    "version_tuple",
    "write_atomically",
]


def memory_limit(root: Path = Path("/")) -> tuple[int, int]:
    memory = read_memory(root)
    return memory.total, memory.free


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if it is not there, or is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        data = json.loads(path.read_text(encoding="utf-8") if path.is_file() else "")
        return data if isinstance(data, dict) else {}
    return {}


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
    beside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
