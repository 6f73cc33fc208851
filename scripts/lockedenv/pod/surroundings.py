"""What stands around the GPUs: CPUs, memory, /dev/shm, power limits."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lockedenv.host.disks import GIB, size_text
from lockedenv.host.finding import Finding, passed, skipped, warned
from lockedenv.host.gpus import Gpu
from lockedenv.host.limits import cpu_limit, read_memory
from lockedenv.pod.words import BACK

# Data loaders of torch pass batches through /dev/shm; docker's default of 64 MB kills them.
SHM = GIB
CPUS = 4  # for each GPU: data loaders and compilers
MEMORY = 1.0  # host memory over GPU memory: a checkpoint is read through it
POWER = 0.95  # of the usual limit, under which a GPU counts as limited
LIMIT = "power.limit"
USUAL_LIMIT = "power.default_limit"
POWER_FIELDS = (LIMIT, USUAL_LIMIT)


@dataclass(frozen=True)
class Want:
    problem: str
    remedy: str


def measure_shm(folder: Path = Path("/dev/shm")) -> int:
    """The size of /dev/shm in bytes; 0 where there is none."""
    if not folder.is_dir():
        return 0
    return shutil.disk_usage(folder).total


def judge_host(gpus: Sequence[Gpu], shm: int, root: Path = Path("/")) -> Finding:
    """CPUs, memory and /dev/shm beside what the GPUs need. `shm` in bytes."""
    cpus = cpu_limit(root)
    memory = read_memory(root).total
    gpu_memory = sum(gpu.memory for gpu in gpus)
    wants = []
    if shm < SHM:
        remedy = (
            "use DataLoader(num_workers=0), or a pod with --shm-size: workers die here"
        )
        wants.append(Want(f"/dev/shm has {size_text(shm)}", remedy))
    if gpus and cpus < CPUS * len(gpus):
        remedy = f"loading data will be slow: {CPUS} for each GPU are usual"
        wants.append(Want(f"{cpus:g} CPUs for {len(gpus)} GPUs", remedy))
    if gpus and memory < MEMORY * gpu_memory:
        problem = (
            f"{size_text(memory)} of memory for {size_text(gpu_memory)} of GPU memory"
        )
        wants.append(Want(problem, "load checkpoints with low_cpu_mem_usage=True"))
    if wants:
        problems = []
        remedies = []
        for want in wants:
            problems.append(want.problem)
            remedies.append(want.remedy)
        return warned(problems, "; ".join(remedies))
    return passed(
        f"{cpus:g} CPUs, {size_text(memory)} of memory, {size_text(shm)} of /dev/shm"
    )


def judge_power(rows: Sequence[Mapping[str, str]]) -> Finding:
    """The power limits of each GPU, in W: one under the maker's makes a GPU slow."""
    known = 0
    low = []
    for index, row in enumerate(rows):
        now = _read_watts(row.get(LIMIT, ""))
        usual = _read_watts(row.get(USUAL_LIMIT, ""))
        if now is None or usual is None:
            continue
        known += 1
        if now < POWER * usual:
            low.append(f"GPU {index}: limited to {now:.0f} W of {usual:.0f} W")
    if low:
        return warned(
            low,
            f"slower under load than others of its kind; if you pay for a whole one, {BACK}",
        )
    if not known:
        return skipped("nvidia-smi does not tell the power limits")
    return passed("no GPU is limited under its usual power")


def _read_watts(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
