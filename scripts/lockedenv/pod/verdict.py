"""Is this pod worth its price? What a machine is, before anything is fetched.

The standard library, nvidia-smi, the driver's library and curl. Each finding is good (pass), usable
with a setting or slower than it could be (warn), or a reason to give the pod back (fail).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lockedenv.host import nvidia_smi
from lockedenv.host.finding import (
    Finding,
    FindingOutcome,
    failed,
    passed,
    select,
    skipped,
    warned,
)
from lockedenv.host.gpu_state import judge_state, read_state
from lockedenv.host.gpus import RENTED, Gpu, find_count_problem, read_gpu_facts
from lockedenv.pod.cuda import ask_cuda, judge_cuda, judge_peers
from lockedenv.pod.kernel_log import check_kernel_log
from lockedenv.pod.links import judge_links, read_links
from lockedenv.pod.surroundings import (
    POWER_FIELDS,
    judge_host,
    judge_power,
    measure_shm,
)
from lockedenv.pod.words import BACK


@dataclass(frozen=True)
class Conclusion:
    """The verdict on all findings, in one line."""

    verdict: FindingOutcome
    text: str


def inspect_machine() -> list[Finding]:
    """What costs no time: the GPUs and the container."""
    facts = read_gpu_facts()
    findings = []
    if facts.error is not None:
        findings.append(_name("pod-gpus", failed([facts.error.problem], BACK)))
    elif facts.gpus:
        findings += _inspect_gpus(facts.gpus, facts.warnings)
    else:
        findings.append(_name("pod-gpus", judge_no_gpu(os.environ)))
    findings.append(_name("pod-host", judge_host(facts.gpus, measure_shm())))
    return findings


def judge_no_gpu(environ: Mapping[str, str]) -> Finding:
    """The finding where nothing says that there is a GPU."""
    problem = find_count_problem(environ)
    if problem:
        remedy = f"unset {RENTED}, if this is no pod, or set it to the number of GPUs"
        return warned([f"no NVIDIA GPU on this machine, and {problem}"], remedy)
    return skipped("no NVIDIA GPU on this machine")


def _inspect_gpus(gpus: Sequence[Gpu], warnings: Sequence[str]) -> list[Finding]:
    cuda = ask_cuda()
    power = nvidia_smi.query("gpu", POWER_FIELDS)
    return [
        _name("pod-gpus", _judge_gpus(gpus, warnings)),
        _name("pod-cuda", judge_cuda(cuda, gpus)),
        _name("pod-state", judge_state(read_state())),
        _name("pod-power", judge_power(power.rows)),
        _name("pod-peers", judge_peers(cuda)),
        _name("pod-nvlink", judge_links(gpus, read_links())),
        _name("pod-xid", check_kernel_log()),
    ]


def _judge_gpus(gpus: Sequence[Gpu], warnings: Sequence[str]) -> Finding:
    text = f"{len(gpus)} x {gpus[0].name}, driver {gpus[0].driver}"
    if warnings:
        problems = [f"{text}; nvidia-smi warns: {warnings[0]}", *warnings[1:]]
        return warned(
            problems, "the GPU works; if it fails later, tell the provider of this"
        )
    return passed(text)


def _name(check: str, finding: Finding) -> Finding:
    return replace(finding, check=check)


def conclude(findings: Sequence[Finding]) -> Conclusion:
    """The verdict on all findings."""
    bad = select(findings, FindingOutcome.FAIL)
    odd = select(findings, FindingOutcome.WARN)
    if bad:
        return Conclusion(
            FindingOutcome.FAIL, f"give this pod back: {_list_checks(bad)}"
        )
    if odd:
        return Conclusion(
            FindingOutcome.WARN, f"usable, with what is said of {_list_checks(odd)}"
        )
    return Conclusion(FindingOutcome.PASS, "no problems found")


def _list_checks(findings: Sequence[Finding]) -> str:
    return ", ".join(finding.check for finding in findings)
