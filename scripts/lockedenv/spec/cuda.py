"""What follows from a CUDA version and stands in no lock: driver, compiler, architectures."""

from __future__ import annotations

from dataclasses import dataclass

COMMON_GCC = 12  # every nvcc below takes it, and every distribution in use has it


@dataclass(frozen=True)
class Cuda:
    """Facts of a CUDA version.

    `gcc`: the newest major version that its nvcc takes. `archs`: the architectures of
    flash-attn 2's kernels that its nvcc compiles. `driver`: the oldest driver that runs it.
    `oldest_gpu`: the lowest compute capability that it has code for.
    """

    gcc: int
    archs: tuple[str, ...]
    driver: str
    oldest_gpu: str


# gcc: the installation guides of 12.4.1, 12.8.1 and 13.0, "Host Compiler Support Policy", such as
#   https://docs.nvidia.com/cuda/archive/12.4.1/cuda-installation-guide-linux/
#   15 is the newest of every CUDA 13 up to 13.3: https://github.com/spack/spack-packages
#   (cuda-samples)
# archs: setup.py of flash-attn 2.8, which needs nvcc 12.8 for 100 and 120
# driver: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html; one
#   for each major version
# oldest_gpu: https://docs.nvidia.com/cuda/archive/13.0.0/cuda-toolkit-release-notes/, which drops
#   Maxwell, Pascal and Volta
VERSIONS = {
    (12, 0): Cuda(gcc=12, archs=("80", "90"), driver="525.60.13", oldest_gpu="5.0"),
    (12, 4): Cuda(gcc=13, archs=("80", "90"), driver="525.60.13", oldest_gpu="5.0"),
    (12, 8): Cuda(
        gcc=14, archs=("80", "90", "100", "120"), driver="525.60.13", oldest_gpu="5.0"
    ),
    (13, 0): Cuda(
        gcc=15, archs=("80", "90", "100", "120"), driver="580.65.06", oldest_gpu="7.5"
    ),
}


def find_cuda(version: str) -> Cuda:
    """The facts of a CUDA version such as "12.4": those of the newest row that is not newer.

    An empty version means the newest CUDA; one that is older than the table has the facts of
    the oldest row.
    """
    if not version:
        return VERSIONS[max(VERSIONS)]
    wanted = tuple(int(part) for part in version.split("."))
    found = min(VERSIONS)
    for row in sorted(VERSIONS):
        if row <= wanted:
            found = row
    return VERSIONS[found]
