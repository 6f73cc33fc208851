"""The kernel's log: errors of our GPUs and of the host's NVSwitches, by NVIDIA's catalogue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from lockedenv.host import nvidia_smi
from lockedenv.host.finding import Finding, failed, passed, skipped, warned
from lockedenv.host.process import ask
from lockedenv.pod.words import BACK
from lockedenv.spec.xids import (
    RECOVERED,
    RECOVERY_CHANGED,
    SwitchLine,
    SwitchSeverity,
    XidAction,
    XidFault,
    XidLine,
    read_switch_errors,
    read_xids,
)

ADDRESS = re.compile(r"([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2})\.\d", re.IGNORECASE)
BUS_ID = "pci.bus_id"
RECOVERY_ACTION = "gpu_recovery_action"  # from the 570 series on


class XidSeverity(Enum):
    """What an error means for who rents the pod, the worst first; the value is the remedy."""

    HOST = f"only the host can mend it: {BACK}"
    WATCH = "if it comes again, take another pod"
    PROGRAM = "a program's own fault, as a rule; if another program has it too, take another pod"


@dataclass(frozen=True)
class LoggedGpu:
    """A GPU by its PCI address. `recovery`: what the driver wants now; empty if unknown."""

    place: str
    recovery: str = ""


@dataclass(frozen=True)
class LogProblem:
    severity: XidSeverity
    text: str


def read_logged_gpus() -> list[LoggedGpu]:
    """The PCI addresses of our GPUs, such as "0000:01:00"; empty if nvidia-smi does not tell."""
    gpus = []
    for row in nvidia_smi.query("gpu", [BUS_ID, RECOVERY_ACTION]).rows:
        address = ADDRESS.search(row.get(BUS_ID, ""))
        if address:
            gpus.append(LoggedGpu(address[1].lower(), row.get(RECOVERY_ACTION, "")))
    return gpus


def check_kernel_log() -> Finding:
    """Reads the kernel's log, which is the host's, and judges it."""
    log = ask(["dmesg"])
    if log.status != 0:
        return skipped("the kernel's log may not be read here")
    gpus = read_logged_gpus()
    if not gpus:
        return skipped("nvidia-smi does not tell the GPUs' addresses")
    return judge_log(log.output, gpus)


def judge_log(log: str, gpus: Sequence[LoggedGpu]) -> Finding:
    """The verdict on a kernel's log. Errors of other GPUs, another tenant's, do not count."""
    problems = []
    for switch_line in read_switch_errors(log):
        if switch_line.severity is SwitchSeverity.FATAL:
            problems.append(_judge_switch(switch_line))
    lines_of: dict[str, list[XidLine]] = {gpu.place: [] for gpu in gpus}
    for line in read_xids(log):
        if line.place in lines_of:
            lines_of[line.place].append(line)
    for gpu in gpus:
        problems += _judge_gpu(gpu, lines_of[gpu.place])
    if not problems:
        return passed("no error of these GPUs in the kernel's log")
    ranks = list(XidSeverity)
    problems.sort(key=lambda problem: ranks.index(problem.severity))
    worst = problems[0].severity
    texts = _count_lines(problems)
    if worst is XidSeverity.HOST:
        return failed(texts, worst.value)
    return warned(texts, worst.value)


def _count_lines(problems: Sequence[LogProblem]) -> list[str]:
    counts: dict[str, int] = {}
    for problem in problems:
        counts[problem.text] = counts.get(problem.text, 0) + 1
    lines = []
    for text, count in counts.items():
        lines.append(text if count == 1 else f"{text} ({count} times)")
    return lines


def _judge_switch(line: SwitchLine) -> LogProblem:
    text = f"SXid {line.code} of the NVSwitch at {line.place}: {line.text}"
    return LogProblem(XidSeverity.HOST, text)


def _judge_gpu(gpu: LoggedGpu, lines: Sequence[XidLine]) -> list[LogProblem]:
    """The problems of one GPU. What came before a recovery, or is recovered by now, is history."""
    last_recovery = -1
    for number, line in enumerate(lines):
        if line.code == RECOVERY_CHANGED and line.recovery == RECOVERED:
            last_recovery = number
    is_recovered_now = gpu.recovery.lower() == RECOVERED.lower()
    problems = []
    followers = []
    for number, line in enumerate(lines):
        problem = _judge_line(line, is_recovered_now or number <= last_recovery)
        if problem is None:
            continue
        if line.row is not None and line.row.action is XidAction.FOLLOW_OTHER:
            followers.append(problem)
        else:
            problems.append(problem)
    return problems if problems else followers


def _judge_line(line: XidLine, recovered: bool) -> LogProblem | None:
    row = line.row
    where = f"Xid {line.code} of the GPU at {line.place}"
    if row is None:
        return LogProblem(
            XidSeverity.WATCH, f"{where}, which is not in the catalogue: {line.text}"
        )
    text = f"{where}: {row.name} (fault of {row.fault.value}; {row.action.value})"
    if row.action is XidAction.IGNORE:
        return None
    if row.action is XidAction.AS_IT_SAYS:
        return _judge_by_its_words(line, where, recovered)
    if row.action is XidAction.RESTART_HOST:
        return LogProblem(XidSeverity.HOST, text)
    if row.action is XidAction.RESET_GPU and not recovered:
        return LogProblem(XidSeverity.HOST, text)
    if row.action is XidAction.RESET_GPU:
        return LogProblem(XidSeverity.WATCH, f"{text}, since recovered")
    if row.fault is XidFault.PROGRAM:
        return LogProblem(XidSeverity.PROGRAM, text)
    return LogProblem(XidSeverity.WATCH, text)


def _judge_by_its_words(
    line: XidLine, where: str, recovered: bool
) -> LogProblem | None:
    """An Xid whose line says how bad it is: 154 names a recovery, 144 to 150 are fatal or not."""
    if line.code == RECOVERY_CHANGED:
        if line.recovery == RECOVERED or recovered:
            return None
        asked = line.recovery if line.recovery else "a recovery"
        return LogProblem(XidSeverity.HOST, f"{where}: the driver asks for: {asked}")
    name = line.row.name if line.row is not None else ""
    unit = line.text.partition("(")[0].strip()
    text = f"{where}: {name}: {unit}"
    if line.is_fatal and not recovered:
        return LogProblem(XidSeverity.HOST, text)
    if line.is_fatal:
        text += ", since recovered"
    return LogProblem(XidSeverity.WATCH, text)
