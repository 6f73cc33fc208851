"""What a command is about: the prefix and this machine's GPUs, read once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lockedenv.host.gpus import Gpu, GpuError, find_gpus
from lockedenv.prefix.records import Installed, read_prefix


@dataclass(frozen=True)
class Subject:
    """`gpu_error`: why the GPUs that should be here could not be asked; empty where they could."""

    installed: Installed
    gpus: tuple[Gpu, ...]
    gpu_error: str

    @property
    def device(self) -> str:
        """What is computed on: "cuda" or "cpu"."""
        if self.gpus or self.gpu_error:
            return "cuda"
        return "cpu"


def read_subject(prefix: Path, gpu_mode: str) -> Subject:
    """The prefix and the GPUs; none are looked for where `gpu_mode` is "off"."""
    installed = read_prefix(prefix)
    if gpu_mode == "off":
        return Subject(installed, (), "")
    try:
        return Subject(installed, tuple(find_gpus()), "")
    except GpuError as error:
        return Subject(installed, (), str(error))
