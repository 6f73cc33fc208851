"""What is decided on flash-attn before anything is fetched.

The plan shows the decision, and provide.py carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from lockedenv.errors import Stop
from lockedenv.host.gpus import Gpu
from lockedenv.install.flash_attention.installed import (
    WheelOrigin,
    read_installed_wheel,
)
from lockedenv.install.flash_attention.precompile import (
    choose_targets,
    describe_targets,
)
from lockedenv.install.flash_attention.sources import SOURCES, Wanted, find_successor
from lockedenv.install.flash_attention.target import choose_architectures, locked_torch
from lockedenv.install.request import Installation
from lockedenv.spec.gpu_target import GpuTarget
from lockedenv.spec.layers import BackendName

AS_ASKED = "left out, as asked"
NO_SOURCE = "not part of this environment: it has no locks/flash-attn.txt"
NO_GPU = "skipped: no GPU. Use --arch 90 to build for an H100 anyway"


class FlashAction(Enum):
    """What is done about flash-attn."""

    LEAVE_OUT = "leave out"
    COMPILE_KERNELS = "compile kernels"  # FlashAttention 4, whose wheel the lock has
    INSTALL_WHEEL = "install wheel"  # flash-attn 2, of the first source that has one
    REFUSE = "refuse"


@dataclass(frozen=True)
class FlashPlan:
    """The decision on flash-attn.

    `text`: the decision in a line, for people; of a wheel, where it is expected from, which is only
    known where the plan is shown. `archs`: what a wheel must run on, such as ("80", "90").
    `kernel_targets`: what FlashAttention 4's kernels are compiled for. `has_gpu`: whether a GPU is
    here, on which a wheel is proven.
    """

    action: FlashAction
    text: str = ""
    archs: tuple[str, ...] = ()
    kernel_targets: tuple[GpuTarget, ...] = ()
    has_gpu: bool = False


def plan_flash_attention(
    job: Installation, backend: BackendName, gpus: Sequence[Gpu]
) -> FlashPlan:
    """The decision, with the source that a wheel is expected from.

    It fetches and changes nothing.
    """
    plan = decide(job, backend, gpus)
    if plan.action is not FlashAction.INSTALL_WHEEL:
        return plan
    torch = locked_torch(job.environment, backend)
    text = describe_expected_source(Wanted(job, torch, plan.archs, backend))
    return replace(plan, text=text)


def decide(job: Installation, backend: BackendName, gpus: Sequence[Gpu]) -> FlashPlan:
    """What is to be done for a request on a machine with these GPUs."""
    try:
        return _decide(job, backend, gpus)
    except Stop as error:
        return FlashPlan(FlashAction.REFUSE, str(error))


def _decide(job: Installation, backend: BackendName, gpus: Sequence[Gpu]) -> FlashPlan:
    flash = job.flash
    has_gpu = bool(gpus)
    if flash.mode == "none":
        return FlashPlan(FlashAction.LEAVE_OUT, AS_ASKED)
    if flash.wheel:
        return FlashPlan(FlashAction.INSTALL_WHEEL, has_gpu=has_gpu)
    successor = find_successor(job)
    if successor and flash.mode == "auto":
        targets = choose_targets(gpus, flash.arch)
        text = (
            f"{successor.name} {successor.version}, a wheel of the lock: no wheel is built, "
            f"{describe_targets(targets)}"
        )
        return FlashPlan(
            FlashAction.COMPILE_KERNELS, text, kernel_targets=tuple(targets)
        )
    reason = _find_reason_to_leave_out(job, has_gpu or bool(flash.arch))
    if reason:
        return FlashPlan(FlashAction.LEAVE_OUT, reason)
    archs = choose_architectures(gpus, job.environment.cuda(backend), flash.arch)
    return FlashPlan(FlashAction.INSTALL_WHEEL, archs=tuple(archs), has_gpu=has_gpu)


def _find_reason_to_leave_out(job: Installation, has_target: bool) -> str:
    """Why nothing is installed, or an empty string.

    `has_target`: there is a GPU, or --arch names one.
    """
    if not job.environment.flash_attn():
        return NO_SOURCE
    if has_target or job.flash.mode == "wheel":
        return ""
    # A prebuilt wheel of an earlier lock is replaced by this lock's, where it names one.
    noted = read_installed_wheel(job.prefix.path)
    if not noted or noted.origin is not WheelOrigin.PREBUILT:
        return NO_GPU
    if not job.environment.flash_wheel():
        return NO_GPU
    return ""


def describe_expected_source(wanted: Wanted) -> str:
    """The first source that will be asked, or why none can give a wheel."""
    reasons = []
    for source in SOURCES:
        try:
            prospect = source.prospect(wanted)
        except Stop as error:
            return str(error)
        if prospect.usable:
            return prospect.text
        if prospect.text:
            reasons.append(prospect.text)
    return "; ".join(reasons)
