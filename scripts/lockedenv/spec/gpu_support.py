"""Which GPUs the binaries of a torch have kernels for: known before anything is fetched."""

from __future__ import annotations

from dataclasses import dataclass

from lockedenv.host.versions import version_tuple


@dataclass(frozen=True)
class Build:
    """The compute capabilities, as (major, minor), that torch's binaries for
    a CUDA are compiled for.
    """

    torch: tuple[int, int]
    cuda: tuple[int, int]
    capabilities: tuple[tuple[int, int], ...]


# torch._C._cuda_getArchFlags() of the wheels. Each row holds for later versions up to the next row.
# The pytorch channel's torch 2.5.1 is compiled for the same, and for 6.1, which runs code for 6.0:
# https://github.com/pytorch/builder/blob/main/conda/pytorch-nightly/build.sh
BUILDS = (
    # 2.5.1+cu124
    Build((2, 5), (12, 4), ((5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0))),
    # 2.10.0+cu128
    Build((2, 7), (12, 8), ((7, 0), (7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0))),
    # 2.15.0+cu132
    Build((2, 9), (13, 0), ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0))),
)


def build_of(torch: str, cuda: str) -> Build | None:
    """The row of a locked torch and the CUDA that it is built for, such as "2.5.1" and
    "12.4"; None for a CPU build.
    """
    found = None
    if not torch or not cuda:
        return None
    for build in BUILDS:
        if (
            build.torch <= version_tuple(torch)[:2]
            and build.cuda <= version_tuple(cuda)[:2]
        ):
            found = build
    return found


def has_kernels(build: Build, capability: str) -> bool:
    """Whether a GPU of a compute capability, such as "9.0", runs what was compiled.

    Code for a capability runs on the same major version with the same or a later minor one:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#binary-compatibility
    """
    major, minor = version_tuple(capability)[:2]
    for compiled_major, compiled_minor in build.capabilities:
        if compiled_major == major and compiled_minor <= minor:
            return True
    return False


def support_text(build: Build) -> str:
    """The capabilities for people: "5.0, 6.0 ... 9.0"."""
    return ", ".join(f"{major}.{minor}" for major, minor in build.capabilities)
