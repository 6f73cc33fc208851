"""Makes the session manifest of this machine and a prefix."""

from __future__ import annotations

import json
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Mapping, Sequence

from lockedenv import ROOT
from lockedenv.host.gpus import Gpu
from lockedenv.host.limits import cpu_limit, read_memory
from lockedenv.host.process import ask
from lockedenv.host.repository import git
from lockedenv.prefix.interpreter import Interpreter, read_interpreter
from lockedenv.prefix.mark import read_mark
from lockedenv.prefix.records import Installed, file_sha256
from lockedenv.provenance.manifest import SCHEMA_VERSION, Manifest
from lockedenv.provenance.packages import fingerprint_of, list_packages
from lockedenv.spec import environment
from lockedenv.spec.vulnerabilities import find_vulnerabilities

# The variables that change what a run computes or how fast. By name, never by pattern: a pattern
# would let a key through.
VARIABLES = (
    "ACCELERATE_MIXED_PRECISION",
    "BNB_CUDA_VERSION",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_ORDER",
    "CUDA_HOME",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "CUTE_DSL_ARCH",
    "DISABLE_KERNEL_MAPPING",
    "FLASH_ATTENTION_ARCH",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED",
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_ENABLE_HF_TRANSFER",
    "HF_HUB_OFFLINE",
    "HF_XET_HIGH_PERFORMANCE",
    "HUGGINGFACE_HUB_CACHE",
    "KERNELS_CACHE",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "MAX_JOBS",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_DEBUG",
    "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_PROTO",
    "NCCL_SOCKET_IFNAME",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTHONNOUSERSITE",
    "PYTHONPATH",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "TORCHDYNAMO_DISABLE",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_COMPILE_DISABLE",
    "TORCH_CUDA_ARCH_LIST",
    "TRANSFORMERS_CACHE",
    "TRANSFORMERS_OFFLINE",
    "TRITON_PTXAS_BLACKWELL_PATH",
    "TRITON_PTXAS_PATH",
    "USE_HUB_KERNELS",
)
TORCH_SECONDS = 120  # to import torch on a slow disk
TORCH_VERSIONS = ("torch", "cuda", "cudnn", "nccl")


def make_manifest(
    installed: Installed, gpus: Sequence[Gpu], results: Sequence[Mapping[str, Any]] = ()
) -> Manifest:
    """The manifest of this machine.

    `results`: the checks', as they stand in --json. Raises Stop.
    """
    with ThreadPoolExecutor() as pool:  # what starts a process goes on beside the rest
        asked_python = pool.submit(machine_python, installed)
        asked_torch = pool.submit(torch_versions, installed.python, bool(gpus))
        asked_commit = pool.submit(git, "rev-parse", "HEAD")
        asked_status = pool.submit(is_modified)
        packages = list_packages(installed)
        interpreter = asked_python.result()
    wanted = environment.find_compared(installed.prefix)
    vulnerabilities = []
    for vulnerability in find_vulnerabilities(installed.version):
        vulnerabilities.append(asdict(vulnerability))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        fingerprint=fingerprint_of(packages, interpreter),
        commit=asked_commit.result(),
        modified=asked_status.result(),
        environment=wanted.name,
        locks=_hash_locks(wanted.folder),
        backend=installed.backend,
        prefix=str(installed.prefix),
        interpreter=interpreter,
        packages=packages,
        machine=describe_machine(),
        gpus=tuple(gpus),
        cuda=asked_torch.result(),
        variables=_read_variables(),
        vulnerabilities=tuple(vulnerabilities),
        results=tuple(results),
        pod=read_pod_findings(installed.prefix),
    )


def _hash_locks(folder: Path) -> dict[str, str | None]:
    """The sha256 of each file of an environment, by name; None of one that is not there."""
    hashes = {}
    for name in environment.LOCKED:
        hashes[name] = file_sha256(folder / name) or None
    return hashes


def _read_variables() -> dict[str, str]:
    """Those of VARIABLES that are set."""
    found = {}
    for name in VARIABLES:
        if name in os.environ:
            found[name] = os.environ[name]
    return found


def machine_python(installed: Installed) -> Interpreter | None:
    """The machine's Python that the prefix runs; None where Python is a package of the prefix."""
    if not installed.backend.is_venv:
        return None
    return read_interpreter(installed.python)


def is_modified() -> bool | None:
    """Whether the clone has changes that are not committed; None where git cannot say."""
    status = git("status", "--porcelain")
    if status is None:
        return None
    return bool(status)


def describe_machine() -> dict[str, Any]:
    """What a run can depend on beside the GPUs."""
    return {
        "python": platform.python_version(),
        "glibc": platform.libc_ver()[1],
        "kernel": platform.release(),
        "cpu": cpu_name(),
        "cpus": cpu_limit(),
        "memory_bytes": read_memory().total,
    }


def cpu_name() -> str:
    """The CPU's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def torch_versions(python: Path, gpu: bool) -> dict[str, str | None]:
    """torch's version and those of its CUDA, cuDNN and NCCL; None where it cannot say."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    device = "cuda" if gpu else "cpu"
    command = [python, "-m", "lockedenv.provenance.torch_versions", device]
    answer = ask(command, TORCH_SECONDS, env=environ).output
    try:
        found: dict[str, str | None] = json.loads(answer.splitlines()[-1])
    except (ValueError, IndexError):
        return dict.fromkeys(TORCH_VERSIONS)
    return found


def read_pod_findings(prefix: Path) -> tuple[Any, ...]:
    """What the set-up found of the machine; empty where it has not looked. Raises MarkError."""
    mark = read_mark(prefix)
    if mark is None:
        return ()
    return tuple(mark.pod)
