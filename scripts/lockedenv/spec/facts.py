"""What follows from no lock, each with its source: the one module that knows a version of CUDA, gcc or glibc by heart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

# Wheels are chosen for this glibc or an older one: torch's own are made for it. Its name in a wheel's platform tag.
GLIBC = "2.28"
PLATFORM = "x86_64-manylinux_2_28"
# The wheels of torch have the new C++ ABI from this version on, conda-forge's builds always, the pytorch channel's never.
NEW_ABI = (2, 7)  # https://github.com/pytorch/pytorch/issues/149044
COMMON_GCC = 12  # every nvcc below takes it, and every distribution in use has it


@dataclass(frozen=True)
class Cuda:
    """`gcc`: the newest major version that nvcc takes; `archs`: of flash-attn's kernels, those that it compiles; `driver`: the
    oldest that runs it."""

    gcc: int
    archs: Tuple[str, ...]
    driver: str


# gcc: https://docs.nvidia.com/cuda/archive/12.4.1/cuda-installation-guide-linux/#host-compiler-support-policy, 12.8.1, 13.0
# archs: setup.py of flash-attn 2.8, which needs nvcc 12.8 for 100 and 120
# driver: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html; one for each major version
SINCE = {
    (12, 0): Cuda(12, ("80", "90"), "525.60.13"),
    (12, 4): Cuda(13, ("80", "90"), "525.60.13"),
    (12, 8): Cuda(14, ("80", "90", "100", "120"), "525.60.13"),
    (13, 0): Cuda(15, ("80", "90", "100", "120"), "580.65.06"),
}


def of(cuda: str) -> Cuda:
    """The facts of a CUDA version such as "12.4": those of the newest row that is not newer."""
    wanted = tuple(int(part) for part in cuda.split(".")) if cuda else max(SINCE)
    return SINCE[max((version for version in SINCE if version <= wanted), default=min(SINCE))]
