"""The former names of this room's modules, until every caller imports from them."""

from __future__ import annotations

from pathlib import Path

from lockedenv.host.disks import (
    GIB,
    existing_parent,
    free_bytes,
    has_links_and_locks,
    same_filesystem,
    size_text,
)
from lockedenv.host.files import read_json, write_atomically
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
