"""What each GPU reports of itself: memory errors, slowdowns, its PCIe link, a recovery."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from lockedenv.host import nvidia_smi
from lockedenv.host.finding import Finding, failed, passed, warned
from lockedenv.host.numbers import parse_whole
from lockedenv.host.nvidia_smi import SmiAnswer, SmiStatus

BY_HAND = "run nvidia-smi -q by hand; take another pod"
SLOW = "slower than it should be; if it stays so under load, take another pod"
WARNED = "the GPU works; if it fails later, tell the provider what nvidia-smi warns of"


class About(Enum):
    """What a field of nvidia-smi speaks of, and so what a bad value of it means."""

    MEMORY = "memory"
    RECOVERY = "recovery"
    SPEED = "speed"
    LANES = "lanes"


@dataclass(frozen=True)
class Field:
    name: str
    about: About
    meaning: str


# clocks_event_reasons were called clocks_throttle_reasons before driver 535. Remapped rows are from
# Ampere on what retired pages were. https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/
REASONS = (
    ("hw_slowdown", "hardware slowdown"),
    ("hw_thermal_slowdown", "thermal slowdown"),
    ("sw_thermal_slowdown", "thermal slowdown"),
)
UNCORRECTED = Field(
    "ecc.errors.uncorrected.volatile.total", About.MEMORY, "uncorrected memory errors"
)
# What the driver wants done, from the 570 series on (nvmlDeviceGpuRecoveryAction_t).
RECOVERY = Field(
    "gpu_recovery_action", About.RECOVERY, "the driver asks for a recovery of the GPU"
)
LANES_NOW = Field("pcie.link.width.current", About.LANES, "PCIe lanes")
LANES_MOST = Field("pcie.link.width.max", About.LANES, "PCIe lanes")
GPU_FIELDS = (
    UNCORRECTED,
    *(
        Field(f"clocks_event_reasons.{name}", About.SPEED, text)
        for name, text in REASONS
    ),
    *(
        Field(f"clocks_throttle_reasons.{name}", About.SPEED, text)
        for name, text in REASONS
    ),
    LANES_NOW,
    LANES_MOST,
    RECOVERY,
)
ROWS_PENDING = Field(
    "remapped_rows.pending", About.MEMORY, "memory rows wait for a reset to be remapped"
)
ROWS_FAILED = Field(
    "remapped_rows.failure", About.MEMORY, "memory rows cannot be remapped"
)
QUERIES: Mapping[str, Sequence[Field]] = {
    "gpu": GPU_FIELDS,
    "remapped-rows": (ROWS_PENDING, ROWS_FAILED),
}

GOOD = {"0", "no", "not active", "none", ""}
# This GPU, this driver or this container does not say: https://docs.nvidia.com/deploy/nvidia-smi/
SILENT = {
    "[n/a]",
    "[not supported]",
    "[not found]",
    "[insufficient permissions]",
    "[requested functionality has been deprecated]",
    "[not available in wsl]",
}
# These speak of the whole GPU, in whatever field they stand.
GPU_IS_GONE = ("[gpu is lost]", "[gpu requires reset]")


class GpuSeverity(Enum):
    """The worst first."""

    RESET = "the GPU must be reset, which a pod cannot do: take another pod"
    RECOVERY = "only the host can do that: take another pod"
    BROKEN = "the GPU or its memory is failing: take another pod"
    SLOW = SLOW
    UNREADABLE = BY_HAND
    WARNED = WARNED

    @property
    def fails(self) -> bool:
        return self in (GpuSeverity.RESET, GpuSeverity.RECOVERY, GpuSeverity.BROKEN)


@dataclass(frozen=True)
class GpuProblem:
    severity: GpuSeverity
    text: str


def read_state() -> dict[str, SmiAnswer]:
    """nvidia-smi's answers about the state of each GPU, by query."""
    answers = {}
    for selector, fields in QUERIES.items():
        answers[selector] = nvidia_smi.query(selector, [field.name for field in fields])
    return answers


def judge_state(answers: Mapping[str, SmiAnswer]) -> Finding:
    """The verdict on the answers of `read_state`."""
    problems: list[GpuProblem] = []
    for selector, answer in answers.items():
        if answer.status is SmiStatus.ANSWERED:
            problems += _list_problems(QUERIES[selector], answer)
        elif answer.status in (SmiStatus.ABSENT, SmiStatus.HANGS):
            return failed([f"nvidia-smi does not answer: {answer.problem}"], BY_HAND)
        else:
            return warned([f"nvidia-smi does not say: {answer.problem}"], BY_HAND)
    if not problems:
        return passed("no memory errors, no slowdown, full PCIe width")
    ranks = list(GpuSeverity)
    problems.sort(key=lambda problem: ranks.index(problem.severity))
    lines = list(dict.fromkeys(problem.text for problem in problems))
    worst = problems[0].severity
    if worst.fails:
        return failed(lines, worst.value)
    return warned(lines, worst.value)


def _list_problems(fields: Sequence[Field], answer: SmiAnswer) -> list[GpuProblem]:
    problems = []
    for index, row in enumerate(answer.rows):
        for field in fields:
            severity = judge_value(field, row.get(field.name, ""))
            if severity is not None:
                text = f"GPU {index}: {field.meaning}: {row[field.name]}"
                problems.append(GpuProblem(severity, text))
        now = parse_whole(row.get(LANES_NOW.name, ""))
        most = parse_whole(row.get(LANES_MOST.name, ""))
        if now is not None and most is not None and now < most:
            text = f"GPU {index}: PCIe link has {now} of {most} lanes"
            problems.append(GpuProblem(GpuSeverity.SLOW, text))
    for warning in answer.warnings:
        problems.append(GpuProblem(GpuSeverity.WARNED, f"nvidia-smi warns: {warning}"))
    return problems


def judge_value(field: Field, value: str) -> GpuSeverity | None:
    """What a field's value says, by what the field speaks of. None: nothing is wrong."""
    word = value.lower()
    if word in GOOD or word in SILENT:
        return None
    if word in GPU_IS_GONE:
        return GpuSeverity.RESET
    if field.about is About.LANES and parse_whole(value) is not None:
        return None
    unreadable = re.fullmatch(r"\[.*\]", value) is not None
    if field.about is About.MEMORY:
        waits = field is ROWS_PENDING and not unreadable
        return GpuSeverity.RESET if waits else GpuSeverity.BROKEN
    if unreadable or field.about is About.LANES:
        return GpuSeverity.UNREADABLE
    if field.about is About.RECOVERY:
        return GpuSeverity.RECOVERY
    return GpuSeverity.SLOW
