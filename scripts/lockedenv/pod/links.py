"""The NVLinks of each GPU, held against those of the other GPUs of the pod."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lockedenv.host.finding import Finding, passed, skipped, warned
from lockedenv.host.gpus import Gpu
from lockedenv.host.nvidia_smi import PATIENCE
from lockedenv.host.process import ask
from lockedenv.pod.words import BACK

SLOW = "GPUs exchange data slowly: for a job on several,"
# On these every link leads to an NVSwitch or to another GPU of the board, so all are to be active.
# A PCIe card has as many as its bridges join: 12 of 18 on a healthy H100 NVL
# (https://github.com/Azure/azurehpc-health-checks/issues/162), none without a bridge.
ON_A_BOARD = re.compile(r"SXM|HBM3\b|H200(?! NVL)|\bG?B[23]00\b|GH200")
# The output of `nvidia-smi nvlink --status`. Where all links of a GPU are down, one line stands in
# their place: "NVML: Unable to retrieve NVLink information as all links are inActive".
HEADER = re.compile(r"GPU (\d+): ")
LINK = re.compile(r"\s*Link (\d+): (.*)")


@dataclass(frozen=True)
class GpuLinks:
    """The links of one GPU that nvidia-smi names. None are named where all are inactive."""

    index: int
    active: int
    inactive: int


def read_links() -> list[GpuLinks]:
    """The links of the GPUs, by nvidia-smi; empty where it cannot tell."""
    answer = ask(["nvidia-smi", "nvlink", "--status"], PATIENCE)
    if answer.status is None:
        return []
    return parse_links(answer.output)


def parse_links(text: str) -> list[GpuLinks]:
    """The entries of `nvidia-smi nvlink --status`, one for each GPU that it names."""
    entries = []
    index = None
    active = 0
    inactive = 0
    for line in text.splitlines():
        header = HEADER.match(line)
        link = LINK.match(line)
        if header:
            if index is not None:
                entries.append(GpuLinks(index, active, inactive))
            index = int(header[1])
            active = 0
            inactive = 0
        elif link and "inactive" in link[2].lower():
            inactive += 1
        elif link:
            active += 1
    if index is not None:
        entries.append(GpuLinks(index, active, inactive))
    return entries


def judge_links(gpus: Sequence[Gpu], entries: Sequence[GpuLinks]) -> Finding:
    """Compares the GPUs with each other, and requires an entry for each."""
    if len(gpus) < 2:
        return skipped("not two GPUs")
    by_index = {}
    counts = set()
    for entry in entries:
        by_index[entry.index] = entry
        if entry.active:
            counts.add(entry.active)
    if not counts and not _has_one_on_a_board(gpus):
        return skipped("no NVLink joins these GPUs")
    problems = []
    for index, gpu in enumerate(gpus):
        most = _most_active_of_its_kind(gpu, gpus, entries)
        problem = _find_problem(index, gpu, by_index.get(index), most)
        if problem:
            problems.append(problem)
    if problems:
        return warned(problems, f"{SLOW} {BACK}")
    each = " or ".join(str(count) for count in sorted(counts))
    return passed(f"{each} NVLinks are active on each of {len(gpus)} GPUs")


def _has_one_on_a_board(gpus: Sequence[Gpu]) -> bool:
    for gpu in gpus:
        if ON_A_BOARD.search(gpu.name):
            return True
    return False


def _most_active_of_its_kind(
    gpu: Gpu, gpus: Sequence[Gpu], entries: Sequence[GpuLinks]
) -> int:
    most = 0
    for entry in entries:
        if entry.index < len(gpus) and gpus[entry.index].name == gpu.name:
            most = max(most, entry.active)
    return most


def _find_problem(index: int, gpu: Gpu, entry: GpuLinks | None, most: int) -> str:
    """What is wrong with the links of one GPU; empty if nothing is."""
    if entry is None:
        return f"GPU {index}: nvidia-smi says nothing of its NVLinks"
    on_a_board = ON_A_BOARD.search(gpu.name) is not None
    if entry.active < most:
        how_many = (
            "no NVLink is" if entry.active == 0 else f"{entry.active} NVLinks are"
        )
        return f"GPU {index}: {how_many} active, {most} are on others of its kind"
    if on_a_board and entry.active == 0:
        return f"GPU {index}: no NVLink is active"
    if on_a_board and entry.inactive:
        total = entry.active + entry.inactive
        return f"GPU {index}: {entry.inactive} of {total} NVLinks are inactive"
    return ""
