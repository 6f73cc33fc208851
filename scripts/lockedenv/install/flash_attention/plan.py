"""flash-attn, decided: what to compile for, with which compilers, how many at a time, and whether a wheel fits."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from lockedenv.errors import Stop
from lockedenv.host.machine import Gpu, size_text, version_tuple
from lockedenv.host.process import ask, clean
from lockedenv.spec import facts, locks
from lockedenv.spec.environment import Environment

# One compile job's peak over a whole build, measured: 7.07 GB (cicc; the default environment's nvcc, sm_90, one thread).
JOB_MEMORY = 7.5e9
CPU_HOURS = 3.6  # of a whole build for one architecture, measured with it
GET_NVCC = (
    "install nvcc {0} (conda backend: it is in the lock; Ubuntu: NVIDIA's package cuda-nvcc-{1})"
)
GET_GCC = f"apt-get install g++-{facts.COMMON_GCC}"


@dataclass
class Torch:
    """The torch that flash-attn is built against."""

    version: str
    cuda: str
    cxx11abi: bool
    python: str
    platform: str


@dataclass
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


def locked_torch(of: Environment, backend: str) -> Torch:
    """The torch of the lock, for a plan before there is a prefix."""
    version, python = of.torch(backend), of.python.replace(".", "")
    return Torch(version, of.cuda(backend), of.cxx11abi(backend), f"cp{python}", "linux_x86_64")


def probe_torch(prefix: Path) -> Torch:
    """The torch of a prefix, as its own interpreter reports it. Raises Stop if it cannot be imported there."""
    program = (
        "import json, sys, sysconfig, torch; print(json.dumps([torch.__version__.split('+')[0], torch.version.cuda or '',"
        "torch._C._GLIBCXX_USE_CXX11_ABI, 'cp%d%d' % sys.version_info[:2], sysconfig.get_platform().replace('-', '_')]))"
    )
    status, said, why = ask(
        [prefix / "bin/python", "-c", program], 120, env=clean(dict(os.environ))
    )
    if status != 0:
        raise Stop(
            f"torch cannot be imported in {prefix} ({''.join(why.strip().splitlines()[-1:])}); "
            "scripts/verify_environment.py says what is wrong"
        )
    return Torch(*json.loads(said.strip().splitlines()[-1]))


def architectures(gpus: List[Gpu], cuda: str, asked: str = "") -> List[str]:
    """What to compile for: `asked` ("90" or "80,90"), otherwise what the GPUs are. Raises Stop for what cannot be."""
    # Code for 8.0 runs on 8.6 and 8.9.
    found = (
        [a.replace(".", "") for a in re.split(r"[,;]", asked)]
        if asked
        else [gpu.arch[:-1] + "0" for gpu in gpus]
    )
    can = facts.of(cuda).archs
    if found and not cuda:
        raise Stop(
            "flash-attn needs a torch that is built for CUDA, and this environment's is not; use --flash-attn none"
        )
    for arch in [arch for arch in found if arch not in can]:
        raise Stop(
            f"flash-attn cannot be built for compute capability {arch[:-1]}.{arch[-1:]} with CUDA {cuda} "
            f"(it can for {', '.join(can)}); use --flash-attn none"
        )
    return sorted(set(found))


def prebuilt_misfit(
    wheel: locks.PrebuiltWheel, torch: Torch, archs: List[str], glibc: str
) -> Optional[str]:
    """Why a prebuilt wheel does not fit this environment and machine, or None."""
    if version_tuple(glibc) < version_tuple(wheel.glibc):
        return f"it needs glibc {wheel.glibc}, this machine has {glibc}"
    if missing := [arch for arch in archs if arch not in wheel.archs]:
        return f"it has no code for sm_{missing[0]}"
    return wheel_misfit(wheel.filename, torch)


def build_time(archs: List[str], jobs: int) -> str:
    """How long a build takes, from the CPU-hours of a whole one, and what would avoid it."""
    minutes = CPU_HOURS * 60 * len(archs) / jobs
    return f"about {minutes:.0f} minutes; a cache that is kept (--cache), or --wheel, avoids it the next time"


def job_count(cpus: float, free: int, threads: int = 1) -> Tuple[int, str]:
    """How many compile jobs to run, and why: CPUs and free memory in bytes, over what one job with its threads needs."""
    need = JOB_MEMORY * threads
    why = f"{cpus:g} CPUs, {size_text(free)} free at {size_text(need)} a job of {threads} thread{'s' * (threads > 1)}"
    return max(1, int(min(cpus / threads, free / need))), why


def key(pin: locks.PipPackage, torch: Torch, archs: List[str]) -> str:
    """What a wheel must have been built from and for to be the one that is wanted."""
    python = f"torch{torch.version}-cu{torch.cuda}-abi{int(torch.cxx11abi)}-{torch.python}"
    return (
        f"flash_attn-{pin.version}-{pin.sha256[:12]}-{python}-sm{'+'.join(archs)}-{torch.platform}"
    )


def full_key(base: str, tools: Toolchain, glibc: str) -> str:
    """The name of a built wheel's folder in the cache: its key, and what compiled it."""
    return f"{base}-nvcc{tools.nvcc}-gcc{tools.gcc}-glibc{glibc}"


def runs_here(folder: str, base: str, glibc: str) -> bool:
    """Whether the wheel of a cache folder is the wanted one, and built on a glibc no newer than this machine's."""
    built = re.fullmatch(re.escape(base) + r"-nvcc[\d.]+-gcc[\d.]+-glibc([\d.]+)", folder)
    return built is not None and version_tuple(built[1]) <= version_tuple(glibc)


def wheel_misfit(filename: str, torch: Torch) -> Optional[str]:
    """Which part of a prebuilt wheel's name does not fit the environment, or None."""
    if not (match := re.match(r"flash_attn-[^-+]+(?:\+([^-]+))?-(cp\d+)-\w+-(.+)\.whl$", filename)):
        return f"{filename} is not the name of a flash-attn wheel"
    local, python, platform = match.groups("")
    wants = [
        ("Python", [python], torch.python),
        ("platform", [platform.split("_")[0]], "linux"),
        ("CUDA", re.findall(r"cu(\d\d)", local), torch.cuda.split(".")[0]),
        ("torch", re.findall(r"torch(\d+\.\d+)", local), ".".join(torch.version.split(".")[:2])),
        ("C++ ABI", re.findall(r"cxx11abi(TRUE|FALSE)", local), str(torch.cxx11abi).upper()),
    ]
    wrong = [
        f"{what} {named[0]}, the environment has {has}"
        for what, named, has in wants
        if named and named[0] != has
    ]
    return f"{filename} is for {'; for '.join(wrong)}" if wrong else None


def toolchain_problem(cuda: str, nvcc: str, gcc: str) -> Tuple[str, str]:
    """(refusal, warning) for torch's CUDA, nvcc's version and gcc's; empty where all is well."""
    get_nvcc = GET_NVCC.format(cuda, cuda.replace(".", "-"))
    if not nvcc:
        return f"no nvcc found: {get_nvcc}, or use --wheel or --flash-attn none", ""
    newest = facts.of(nvcc).gcc
    if version_tuple(nvcc)[0] != version_tuple(cuda)[0]:
        return f"nvcc is of CUDA {nvcc}, torch is built for {cuda}: {get_nvcc}", ""
    if not gcc:
        return f"no g++ found: {GET_GCC}", ""
    if version_tuple(gcc)[0] > newest:
        return f"g++ is {gcc}, nvcc {nvcc} takes up to {newest}: {GET_GCC}", ""
    differs = version_tuple(nvcc)[:2] != version_tuple(cuda)[:2]
    return (
        "",
        f"nvcc is of CUDA {nvcc}, torch is built for {cuda}: it should work within a major version"
        * differs,
    )


def _version_of(program: Path, option: str, pattern: str) -> str:
    return "".join(re.findall(pattern, ask([program, option], 60)[1])[:1])


def find_toolchain(prefix: Path, cuda: str, environ: Dict[str, str]) -> Toolchain:
    """nvcc and gcc from the prefix, else the machine's that fit best. Raises Stop naming what to install."""
    homes = [
        str(prefix),
        environ.get("CUDA_HOME", ""),
        f"/usr/local/cuda-{cuda}",
        "/usr/local/cuda",
    ]
    homes.append(
        os.path.realpath(shutil.which("nvcc", path=environ.get("PATH")) or "")[: -len("/bin/nvcc")]
    )
    found = [
        (home, _version_of(Path(home, "bin/nvcc"), "--version", r"release (\d+\.\d+)"))
        for home in filter(None, homes)
    ]
    fit = sorted(
        filter(lambda f: f[1], found),
        key=lambda f: (f[1] != cuda, f[1].split(".")[0] != cuda.split(".")[0]),
    )
    home, nvcc = (Path(fit[0][0]), fit[0][1]) if fit else (prefix, "")
    newest = facts.of(nvcc or cuda).gcc
    names = [
        str(prefix / "bin/g++"),
        environ.get("CXX", ""),
        *(f"g++-{n}" for n in range(newest, newest - 4, -1)),
        "g++",
    ]
    cxx = Path(
        next(
            filter(
                None, (shutil.which(name, path=environ.get("PATH")) for name in filter(None, names))
            ),
            "g++",
        )
    )
    gcc = _version_of(cxx, "-dumpfullversion", r"(\d+[\d.]*)")
    refusal, warning = toolchain_problem(cuda, nvcc, gcc)
    headers = [
        *home.glob("include/cuda_runtime.h"),
        *home.glob("targets/x86_64-linux/include/cuda_runtime.h"),
    ]
    if refusal or not headers:
        refusal = refusal or f"{home} has no cuda_runtime.h: install cuda-cudart-dev of CUDA {cuda}"
        raise Stop(f"flash-attn cannot be built: {refusal}")
    return Toolchain(
        home,
        nvcc,
        cxx.with_name(cxx.name.replace("g++", "gcc")),
        cxx,
        gcc,
        headers[0].parent,
        warning,
        cuda,
    )
