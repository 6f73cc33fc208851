"""nvcc and g++ for a build of flash-attn: which ones, whether they fit torch's CUDA, and
how many jobs at a time.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from lockedenv.errors import Stop
from lockedenv.host.disks import size_text
from lockedenv.host.limits import cpu_limit, read_memory
from lockedenv.host.numbers import parse_whole
from lockedenv.host.process import ask
from lockedenv.host.versions import version_tuple
from lockedenv.spec.cuda import COMMON_GCC, find_cuda

# One compile job's peak over a whole build, measured: 7.07 GB (cicc; the default environment's
# nvcc, sm_90, one thread).
JOB_MEMORY = 7.5e9
CPU_HOURS = 3.6  # of a whole build for one architecture, measured with it
# Where NVIDIA's packages put CUDA on a machine.
CUDA_FOLDERS = ("/usr/local/cuda-{cuda}", "/usr/local/cuda")
GET_GCC = f"apt-get install g++-{COMMON_GCC}"


@dataclass(frozen=True)
class Toolchain:
    """`cuda_home` has bin/nvcc; `headers` is the folder of cuda_runtime.h; `cuda` is torch's."""

    cuda_home: Path
    nvcc: str
    cc: Path
    cxx: Path
    gcc: str
    headers: Path
    warning: str = ""
    cuda: str = ""


@dataclass(frozen=True)
class Jobs:
    """How many compile jobs run at a time, and why."""

    count: int
    reason: str

    def __str__(self) -> str:
        plural = "s" if self.count > 1 else ""
        return f"{self.count} job{plural} at a time: {self.reason}"


def how_to_get_nvcc(cuda: str) -> str:
    """The remedy where nvcc is missing or wrong."""
    package = f"cuda-nvcc-{cuda.replace('.', '-')}"
    return (
        f"install nvcc {cuda} (conda backend: it is in the lock; Ubuntu: "
        f"NVIDIA's package {package})"
    )


def find_problem(cuda: str, nvcc: str, gcc: str) -> str:
    """Why these versions of nvcc and g++ cannot build against torch's CUDA; empty if they can."""
    if not nvcc:
        return f"no nvcc found: {how_to_get_nvcc(cuda)}, or use --wheel or --flash-attn none"
    if version_tuple(nvcc)[0] != version_tuple(cuda)[0]:
        return f"nvcc is of CUDA {nvcc}, torch is built for {cuda}: {how_to_get_nvcc(cuda)}"
    if not gcc:
        return f"no g++ found: {GET_GCC}"
    newest = find_cuda(nvcc).gcc
    if version_tuple(gcc)[0] > newest:
        return f"g++ is {gcc}, nvcc {nvcc} takes up to {newest}: {GET_GCC}"
    return ""


def find_warning(cuda: str, nvcc: str) -> str:
    """What should be known of an nvcc that can build; empty if nothing."""
    if version_tuple(nvcc)[:2] == version_tuple(cuda)[:2]:
        return ""
    return (
        f"nvcc is of CUDA {nvcc}, torch is built for {cuda}: it should work within "
        "a major version"
    )


def find_toolchain(prefix: Path, cuda: str, environ: Mapping[str, str]) -> Toolchain:
    """nvcc and g++ from the prefix, else the machine's that fit best.

    Raises Stop naming what to install.
    """
    nvcc = _find_nvcc(prefix, cuda, environ)
    cxx = _find_cxx(prefix, find_cuda(nvcc.version or cuda).gcc, environ)
    gcc = ""
    if cxx:
        gcc = _ask_version(cxx, "-dumpfullversion", r"(\d[\d.]*)")
    problem = find_problem(cuda, nvcc.version, gcc)
    headers = _find_headers(nvcc.home)
    if not problem and not headers:
        problem = (
            f"{nvcc.home} has no cuda_runtime.h: install cuda-cudart-dev of CUDA {cuda}"
        )
    if problem or not headers or not cxx:
        raise Stop(f"flash-attn cannot be built: {problem}")
    return Toolchain(
        cuda_home=nvcc.home,
        nvcc=nvcc.version,
        cc=cxx.with_name(cxx.name.replace("g++", "gcc")),
        cxx=cxx,
        gcc=gcc,
        headers=headers,
        warning=find_warning(cuda, nvcc.version),
        cuda=cuda,
    )


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler.

    `home`: CUDA's folder. `version`: such as "12.4", empty where there is none.
    """

    home: Path
    version: str


def _find_nvcc(prefix: Path, cuda: str, environ: Mapping[str, str]) -> Nvcc:
    """That of torch's own CUDA if there is one, else of the same major version, else any."""
    homes = [prefix]
    named = Path(environ.get("CUDA_HOME", ""))
    if named.is_absolute():
        homes.append(named)
    for folder in CUDA_FOLDERS:
        homes.append(Path(folder.format(cuda=cuda)))
    on_path = _find_program("nvcc", environ)
    if on_path:
        homes.append(Path(os.path.realpath(on_path)).parent.parent)
    found = []
    for home in homes:
        version = _ask_version(home / "bin/nvcc", "--version", r"release (\d+\.\d+)")
        if version:
            found.append(Nvcc(home, version))
    major = cuda.split(".")[0]
    for nvcc in found:
        if nvcc.version == cuda:
            return nvcc
    for nvcc in found:
        if nvcc.version.split(".")[0] == major:
            return nvcc
    if found:
        return found[0]
    return Nvcc(prefix, "")


def _find_cxx(prefix: Path, newest: int, environ: Mapping[str, str]) -> Path | None:
    """The first g++ that is there: the prefix's, $CXX, then the newest that nvcc takes."""
    names = [str(prefix / "bin/g++"), environ.get("CXX", "")]
    names += [f"g++-{number}" for number in range(newest, newest - 4, -1)]
    names.append("g++")
    for name in names:
        program = _find_program(name, environ)
        if program:
            return program
    return None


def _find_program(name: str, environ: Mapping[str, str]) -> Path | None:
    """A program on PATH.

    One that PATH finds in the current folder is none: whoever made that folder chose it.
    """
    if not name:
        return None
    found = shutil.which(name, path=environ.get("PATH", os.defpath))
    if not found or not os.path.isabs(found):
        return None
    return Path(found)


def _find_headers(home: Path) -> Path | None:
    for folder in ("include", "targets/x86_64-linux/include"):
        if (home / folder / "cuda_runtime.h").exists():
            return home / folder
    return None


def _ask_version(program: Path, option: str, pattern: str) -> str:
    """The version that a program gives, by the group of the pattern; empty if it gives none."""
    match = re.search(pattern, ask([program, option], 60).output)
    if not match:
        return ""
    return match[1]


def count_jobs(cpus: float, free: int, threads: int = 1) -> Jobs:
    """How many jobs CPUs and free memory (bytes) allow, at what one job with its threads needs."""
    need = JOB_MEMORY * threads
    plural = "s" if threads > 1 else ""
    reason = (
        f"{cpus:g} CPUs, {size_text(free)} free at {size_text(need)} a job of {threads} "
        f"thread{plural}"
    )
    return Jobs(max(1, int(min(cpus / threads, free / need))), reason)


def choose_jobs(asked: int | None, environ: Mapping[str, str]) -> Jobs:
    """The jobs for this machine, or as many as were asked for.

    Raises Stop for NVCC_THREADS that is no number.
    """
    text = environ.get("NVCC_THREADS", "1")
    threads = parse_whole(text)
    if not threads:
        raise Stop(f"NVCC_THREADS={text}: give a positive number, or unset it")
    jobs = count_jobs(cpu_limit(), read_memory().free, threads)
    if asked:
        return Jobs(
            asked, f"as asked; {jobs.count} would be the choice for {jobs.reason}"
        )
    return jobs


def build_time_text(archs: list[str], jobs: Jobs) -> str:
    """How long a build takes, from the CPU-hours of a whole one, and what would avoid it."""
    minutes = CPU_HOURS * 60 * len(archs) / jobs.count
    return (
        f"about {minutes:.0f} minutes; a cache that is kept (--cache), or --wheel, avoids it the "
        "next time"
    )
