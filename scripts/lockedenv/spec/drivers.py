"""Which driver a CUDA version needs, held against the driver of this machine's GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lockedenv.host.gpus import Gpu
from lockedenv.host.versions import version_tuple
from lockedenv.spec.cuda import find_cuda


@dataclass(frozen=True)
class OldDriver:
    """A GPU whose driver is older than `oldest`, the oldest for the locked CUDA."""

    gpu: str
    driver: str
    oldest: str
    cuda: str

    @property
    def problem(self) -> str:
        return (
            f"the driver {self.driver} of {self.gpu} is older than {self.oldest}, "
            f"the oldest for CUDA {self.cuda}"
        )

    @property
    def remedy(self) -> str:
        return (
            "a pod cannot upgrade it: take another pod, "
            f"filtering for CUDA {self.cuda} or newer"
        )


def find_old_driver(gpus: Sequence[Gpu], cuda: str) -> OldDriver | None:
    """The first GPU whose driver is too old for a CUDA version such as "12.4"."""
    oldest = find_cuda(cuda).driver
    for gpu in gpus:
        if version_tuple(gpu.driver) < version_tuple(oldest):
            return OldDriver(gpu.name, gpu.driver, oldest, cuda)
    return None
