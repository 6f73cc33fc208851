"""A request and the facts make a Plan: pure, so that what --dry-run shows is what is done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Mapping, Sequence

from lockedenv.backends.base import Obstacle
from lockedenv.backends.registry import BACKENDS
from lockedenv.errors import Stop
from lockedenv.host.disks import size_text
from lockedenv.host.gpus import Gpu
from lockedenv.host.versions import version_tuple
from lockedenv.install.facts import (
    Disk,
    Facts,
    PrefixFacts,
    asked_sources,
    choose_backend,
    make_job,
)
from lockedenv.install.flash_attention.decide import FlashAction, FlashPlan
from lockedenv.install.request import Installation, SetupRequest
from lockedenv.prefix.status import PrefixStatus
from lockedenv.spec import environment, gpu_support
from lockedenv.spec.commands import setup_command
from lockedenv.spec.cuda import find_cuda
from lockedenv.spec.drivers import find_old_driver
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import USUAL, Level

# Installed bytes per downloaded byte of a wheel: 6.0 GB of 3.2 GB, measured.
UNPACKED_PER_WHEEL = 1.9
# Of a rebuild's unpacked bytes, those that are not links into the cache. Measured where no wheel
# has changed: 2 % (bytecode and scripts). The rest is an allowance for wheels of a changed lock.
NOT_LINKED = 0.25


class PlanAction(Enum):
    """What is done at the prefix."""

    INSTALL = "install"
    REBUILD = "rebuild"
    VERIFY = "verify"


class Purpose(Enum):
    """What room on a disk is for; `value` is its name for people, `option`
    what chooses another disk.
    """

    ENVIRONMENT = "the environment"
    CACHE = "the cache"
    BOTH = "the environment and the cache"
    UNPACKED = "what is unpacked"

    @property
    def option(self) -> str:
        return _OPTIONS[self]


_OPTIONS = {
    Purpose.ENVIRONMENT: "--prefix",
    Purpose.CACHE: "--cache",
    Purpose.BOTH: "--prefix or --cache",
    Purpose.UNPACKED: "TMPDIR",
}


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a disk must have room for."""

    disk: Disk
    purpose: Purpose
    needed: int


@dataclass(frozen=True)
class Plan:
    """What is going to be done. With the action VERIFY, nothing after `level` is used.

    `early_problems` and `problems` are in the way of it; the early ones are shown without the plan.
    """

    request: SetupRequest
    job: Installation
    state: PrefixStatus
    action: PlanAction
    backend: BackendName
    level: Level
    backend_reason: str = ""
    disks: Sequence[DiskNeed] = ()
    links_and_locks: bool = True
    flash_attention: FlashPlan = FlashPlan(FlashAction.LEAVE_OUT)
    gpus: Sequence[Gpu] = ()
    packages_added: Sequence[str] = ()
    files_added: Sequence[str] = ()
    notes: Sequence[str] = ()
    pod: Sequence[Mapping[str, Any]] = ()
    early_problems: Sequence[Obstacle] = ()
    problems: Sequence[Obstacle] = ()


def plan_verification(request: SetupRequest, prefix: PrefixFacts) -> Plan:
    """The plan for a finished environment. Raises Stop where nothing may be done at the prefix."""
    refuse_prefix(request, prefix)
    usual_level = USUAL
    if prefix.fully_verified:
        usual_level = Level.QUICK
    return Plan(
        request=request,
        job=make_job(request, prefix.place, asked_sources(request)),
        state=prefix.state,
        action=PlanAction.VERIFY,
        backend=prefix.backend,
        level=request.level or usual_level,
    )


def plan_installation(request: SetupRequest, facts: Facts) -> Plan:
    """The plan for an environment that is made. `problems` has what is in the way.

    Raises Stop where nothing may be done at the prefix.
    """
    refuse_prefix(request, facts.prefix)
    backend = choose_backend(facts.offers)
    action = PlanAction.REBUILD
    if facts.prefix.state in (PrefixStatus.ABSENT, PrefixStatus.MAKING):
        action = PlanAction.INSTALL
    disks = needed_disks(request, facts, backend)
    return Plan(
        request=request,
        job=make_job(request, facts.prefix.place, facts.sources),
        state=facts.prefix.state,
        action=action,
        backend=backend,
        level=request.level or USUAL,
        backend_reason=backend_reason(facts, backend),
        disks=disks,
        links_and_locks=facts.links_and_locks,
        flash_attention=facts.flash_attention,
        gpus=facts.gpus,
        packages_added=facts.prefix.added,
        files_added=facts.prefix.own,
        notes=facts.surroundings.notes,
        pod=facts.surroundings.pod,
        early_problems=find_early_problems(facts),
        problems=find_problems(request, facts, backend, disks),
    )


def is_finished(request: SetupRequest, prefix: PrefixFacts) -> bool:
    """Whether there is nothing to install: the environment is there, of these
    locks, and is verified again.
    """
    if (
        prefix.state not in (PrefixStatus.INSTALLED, PrefixStatus.VERIFIED)
        or request.force
    ):
        return False
    return request.backend in (None, prefix.backend)


def refuse_prefix(request: SetupRequest, prefix: PrefixFacts) -> None:
    """Raises Stop where the prefix is somebody's, was moved, or is of another environment."""
    if prefix.state is PrefixStatus.FOREIGN:
        remedy = "choose another --prefix, or move it away"
        if prefix.is_clone:
            remedy = "it is this clone: give the clone another name"
        raise Stop(
            f"{request.prefix} is there and was not made by this script; {remedy}"
        )
    if request.force:
        return
    rebuild = setup_command(request.prefix, request.environment.argument, "--force")
    if prefix.state is PrefixStatus.MOVED:
        raise Stop(
            f"{request.prefix} was made at {prefix.moved_from}, and its scripts name that place: "
            f"move it back, or rebuild it here with --force: {rebuild}"
        )
    known = prefix.state not in (PrefixStatus.ABSENT, PrefixStatus.MAKING)
    if known and prefix.environment != request.environment.argument:
        raise Stop(
            f"{request.prefix} is of the environment {prefix.environment}, not "
            f"{request.environment.argument}; choose another --prefix, or rebuild it with --force: "
            f"{rebuild}"
        )


def backend_reason(facts: Facts, chosen: BackendName) -> str:
    """Why a backend was chosen: its own reason, or why those before it cannot be used."""
    refused = []
    for name, offer in facts.offers.items():
        if name == chosen:
            break
        refused.append(offer.reason)
    if refused:
        return "; ".join(refused)
    return facts.offers[chosen].reason


def needed_disks(
    request: SetupRequest, facts: Facts, backend: BackendName
) -> list[DiskNeed]:
    """What each disk must have room for; what the cache already has is not counted."""
    space = facts.space
    disks = facts.disks
    wheels = sum(pin.size for pin in request.environment.wheels(backend))
    unpacked_wheels = int(wheels * UNPACKED_PER_WHEEL)
    together = disks.prefix.device == disks.cache.device
    # Wheels are kept as archives too where uv cannot install from where it
    # unpacks, or a mirror has them.
    archives = wheels
    if together and facts.links_and_locks and not facts.sources.listings:
        archives = 0
    archives += space.fetched
    unpacked = unpacked_wheels + space.unpacked
    same_wheels = space.archives == 0 and facts.prefix.backend == backend
    if (
        same_wheels
        and together
        and facts.links_and_locks
        and facts.prefix.state is not PrefixStatus.ABSENT
    ):
        # The cache holds what the old prefix links to, and the new one will link to it too.
        unpacked = int(unpacked * NOT_LINKED)
    needs = []
    if together:
        needs.append(DiskNeed(disks.prefix, Purpose.BOTH, unpacked + archives))
    else:
        beside = space.unpacked_beside
        needs.append(DiskNeed(disks.prefix, Purpose.ENVIRONMENT, unpacked + beside))
        needs.append(DiskNeed(disks.cache, Purpose.CACHE, archives))
    if not facts.links_and_locks:
        needs.append(DiskNeed(disks.temporary, Purpose.UNPACKED, unpacked_wheels))
    return needs


def find_early_problems(facts: Facts) -> list[Obstacle]:
    """What is in the way and needs no look at the rest of the plan to be understood."""
    problems = []
    for problem in (facts.prefix_problem, facts.tool_problem):
        if problem:
            problems.append(problem)
    return problems


def find_problems(
    request: SetupRequest, facts: Facts, backend: BackendName, disks: Sequence[DiskNeed]
) -> list[Obstacle]:
    """What is in the way, the most telling first."""
    problems: list[Obstacle] = []
    for mounted in facts.prefix.mounts:
        problems.append(
            Obstacle(
                f"{mounted} is mounted in the environment, which is to be removed",
                f"unmount it first: umount {mounted}",
            )
        )
    problems += facts.surroundings.misleading
    problems += gpu_problems(request, facts.gpus, backend)
    if (
        facts.gpus
        and facts.surroundings.compiler
        and not BACKENDS[backend].brings_compiler
    ):
        problems.append(facts.surroundings.compiler)
    if facts.surroundings.pod_refusal and not request.any_pod:
        problems.append(facts.surroundings.pod_refusal)
    if not request.any_disk:
        problems += disk_problems(request, backend, disks, facts.disks.volume)
    return problems


def gpu_problems(
    request: SetupRequest, gpus: Sequence[Gpu], backend: BackendName
) -> list[Obstacle]:
    """A driver too old for the locked CUDA, and GPUs for which the locked torch has no kernels."""
    if not request.environment.cuda(backend):
        return []  # a torch for the CPU runs beside any GPU
    problems = []
    for gpu in gpus:
        problem = _driver_problem(request, gpu, backend) or _kernel_problem(
            request, gpu, backend
        )
        if problem:
            problems.append(problem)
    return problems


def _driver_problem(
    request: SetupRequest, gpu: Gpu, backend: BackendName
) -> Obstacle | None:
    old = find_old_driver([gpu], request.environment.cuda(backend))
    if old is None:
        return None
    remedy = old.remedy
    for other in _find_alternatives(request, gpu, backend):
        if other.fits:
            remedy += (
                f"; or use --environment {other.name}, which runs on the driver "
                f"{other.driver} and newer"
            )
    return Obstacle(old.problem, remedy)


@dataclass(frozen=True)
class _Alternative:
    """Another environment whose torch has kernels for a GPU.

    `driver`: the oldest that runs it. `fits`: whether the GPU's driver is that new.
    """

    name: str
    driver: str
    fits: bool


def _find_alternatives(
    request: SetupRequest, gpu: Gpu, backend: BackendName
) -> list[_Alternative]:
    """The other environments that a GPU can run: first those for which its driver is new enough.

    None whose torch is for the CPU: it leaves the GPU idle.
    """
    found = []
    for other in environment.list_environments():
        cuda = other.cuda(backend)
        if other == request.environment or not cuda:
            continue
        if not _has_kernels(other, backend, gpu):
            continue
        driver = find_cuda(cuda).driver
        fits = version_tuple(gpu.driver) >= version_tuple(driver)
        found.append(_Alternative(other.name, driver, fits))
    found.sort(key=lambda other: not other.fits)
    return found


def _has_kernels(candidate: Environment, backend: BackendName, gpu: Gpu) -> bool:
    """Whether the locked torch of an environment has kernels for a GPU;
    True where no table says.
    """
    build = gpu_support.build_of(candidate.torch(backend), candidate.cuda(backend))
    return build is None or gpu_support.has_kernels(build, gpu.capability)


def _kernel_problem(
    request: SetupRequest, gpu: Gpu, backend: BackendName
) -> Obstacle | None:
    wanted = request.environment
    if _has_kernels(wanted, backend, gpu):
        return None
    build = gpu_support.build_of(wanted.torch(backend), wanted.cuda(backend))
    assert build is not None
    remedy = "take another pod"
    alternatives = _find_alternatives(request, gpu, backend)
    if alternatives:
        best = alternatives[0]
        remedy = f"use --environment {best.name}, which has them"
        if not best.fits:
            remedy += f", on a pod whose driver is {best.driver} or newer"
    return Obstacle(
        f"{gpu.name} has compute capability {gpu.capability}, and torch {wanted.torch(backend)} of "
        f"the environment {wanted.name} has kernels for {gpu_support.support_text(build)} alone",
        remedy,
    )


def disk_problems(
    request: SetupRequest,
    backend: BackendName,
    disks: Sequence[DiskNeed],
    volume: Disk | None,
) -> list[Obstacle]:
    """The disks with too little room; names what helps, with the pod's
    volume where that has room.
    """
    problems = []
    for need in disks:
        disk = need.disk
        needed = sum(
            other.needed for other in disks if other.disk.device == disk.device
        )
        if disk.free >= needed:
            continue
        option = need.purpose.option
        holds_environment = need.purpose in (Purpose.ENVIRONMENT, Purpose.BOTH)
        if holds_environment and volume and volume.free >= needed:
            option = f"--prefix {volume.folder / request.prefix.name}"
        problems.append(
            Obstacle(
                f"too little disk for the {backend} backend: room for {need.purpose.value} is "
                f"about {size_text(needed)} at {disk.folder}, {size_text(disk.free)} are free",
                f"free {size_text(needed - disk.free)}, or choose another disk with {option}",
            )
        )
    return problems
