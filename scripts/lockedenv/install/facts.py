"""What is known of the machine and of the prefix before anything is done: read
once, then only looked at.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from lockedenv.backends import mirror
from lockedenv.backends.base import Job, Obstacle, Offer, Sources, Space
from lockedenv.backends.registry import BACKENDS
from lockedenv.host.disks import existing_parent, free_bytes, has_links_and_locks
from lockedenv.host.gpus import Gpu, read_gpu_facts
from lockedenv.host.places import POD_VOLUME
from lockedenv.install.flash_attention.decide import (
    FlashAction,
    FlashPlan,
    plan_flash_attention,
)
from lockedenv.install.request import Installation, SetupRequest
from lockedenv.prefix.extras import list_added
from lockedenv.prefix.lifecycle import list_mounts
from lockedenv.prefix.ownership import own_paths
from lockedenv.prefix.place import Prefix, find_backend, find_prefix, mark_or_none
from lockedenv.prefix.status import PrefixStatus, find_move, read_status
from lockedenv.spec import environment
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level


@dataclass(frozen=True)
class Surroundings:
    """What the checks and the verdict on the pod say of this machine before
    there is an environment.

    `pod`: each result as the mark keeps it. `notes`: lines about it for people.
    """

    misleading: Sequence[Obstacle] = ()
    compiler: Obstacle | None = None
    pod: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    pod_refusal: Obstacle | None = None


@dataclass(frozen=True)
class PrefixFacts:
    """What lies at the prefix.

    `added`: packages beyond the lock, as they are shown; `own`: files of the user's.
    """

    place: Prefix
    state: PrefixStatus
    backend: BackendName
    environment: str = ""
    moved_from: str = ""
    is_clone: bool = False
    fully_verified: bool = False
    added: Sequence[str] = ()
    own: Sequence[str] = ()
    mounts: Sequence[str] = ()


@dataclass(frozen=True)
class Disk:
    """The disk of a folder that may not exist yet.

    `device` is the same for folders on one file system.
    """

    folder: Path
    device: int
    free: int


@dataclass(frozen=True)
class Disks:
    """The disks that an installation writes to.

    `volume`: the pod's volume, None where there is none that may be written to.
    """

    prefix: Disk
    cache: Disk
    temporary: Disk
    volume: Disk | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that the plan of an installation is made from, beside the request."""

    prefix: PrefixFacts
    disks: Disks
    sources: Sources = Sources()
    offers: Mapping[BackendName, Offer] = field(default_factory=dict)
    space: Space = Space(0, 0, 0)
    tool_problem: Obstacle | None = None
    prefix_problem: Obstacle | None = None
    gpus: Sequence[Gpu] = ()
    surroundings: Surroundings = Surroundings()
    links_and_locks: bool = True
    flash_attention: FlashPlan = FlashPlan(FlashAction.LEAVE_OUT)


def asked_sources(request: SetupRequest) -> Sources:
    """Where a request wants files to come from; what is served there is not known yet."""
    return Sources(request.offline, request.address, request.mirrors)


def make_job(request: SetupRequest, prefix: Prefix, sources: Sources) -> Installation:
    """The job that a request makes for a prefix, with the sources as they were found."""
    return Installation(
        environment=request.environment,
        prefix=prefix,
        cache=request.cache,
        sources=sources,
        fresh=request.force,
        flash=request.flash,
    )


def read_prefix_facts(request: SetupRequest, clone: Path) -> PrefixFacts:
    """What lies at the prefix. `clone`: the folder of this repository."""
    prefix = find_prefix(request.prefix)
    mark = mark_or_none(prefix.path)
    backend = find_backend(prefix.path)
    state = read_status(prefix, request.environment.digest(backend))
    mounts = list_mounts(prefix)
    if mark is None or state in (
        PrefixStatus.ABSENT,
        PrefixStatus.MAKING,
        PrefixStatus.FOREIGN,
    ):
        is_clone = prefix.path == clone
        return PrefixFacts(
            prefix, state, backend=backend, is_clone=is_clone, mounts=mounts
        )
    added = list_added(prefix.path, shown=True)
    verdict = mark.passed_at(Level.FULL)
    # A verdict holds for what there was to be verified.
    fully_verified = verdict is not None and list(verdict.added) == added
    return PrefixFacts(
        place=prefix,
        state=state,
        backend=backend,
        environment=environment.name_in_mark(prefix.path),
        moved_from=find_move(prefix),
        fully_verified=fully_verified,
        added=added,
        own=own_paths(prefix.path),
        mounts=mounts,
    )


def read_facts(
    request: SetupRequest,
    prefix: PrefixFacts,
    read_surroundings: Callable[[Path, Environment, BackendName], Surroundings],
) -> Facts:
    """Everything else. It asks the network only where the answer can matter. Raises Stop."""
    sources = mirror.read_listings(asked_sources(request))
    job = make_job(request, prefix.place, sources)
    offers = read_offers(request, job)
    chosen = choose_backend(offers)
    mirror.refuse_incomplete(job, chosen)
    gpus = read_gpus(request)
    return Facts(
        prefix=prefix,
        disks=read_disks(request),
        sources=sources,
        offers=offers,
        space=BACKENDS[chosen].space(job),
        tool_problem=BACKENDS[chosen].tool_problem(job),
        prefix_problem=BACKENDS[chosen].prefix_problem(request.prefix),
        gpus=gpus,
        surroundings=read_surroundings(request.prefix, request.environment, chosen),
        links_and_locks=has_links_and_locks(request.prefix),
        flash_attention=plan_flash_attention(job, chosen, gpus),
    )


def read_gpus(request: SetupRequest) -> list[Gpu]:
    """The GPUs that the set-up is for. Raises GpuError where they are not known.

    With --any-pod it goes on without them: the verdict on the pod has told what is wrong.
    """
    facts = read_gpu_facts()
    if facts.error is not None and not request.any_pod:
        raise facts.error
    return list(facts.gpus)


def read_offers(request: SetupRequest, job: Job) -> dict[BackendName, Offer]:
    """What the backends offer, by name, up to the first that is usable; the
    one that was asked for is.
    """
    if request.backend is not None:
        return {request.backend: Offer(True, "as asked")}
    offers = {}
    for name, backend in BACKENDS.items():
        offers[name] = backend.offer(job)
        if offers[name].usable:
            break
    return offers


def choose_backend(offers: Mapping[BackendName, Offer]) -> BackendName:
    """The first backend that can be used here."""
    return next(name for name, offer in offers.items() if offer.usable)


def read_disks(request: SetupRequest) -> Disks:
    return Disks(
        prefix=read_disk(request.prefix),
        cache=read_disk(request.cache),
        temporary=read_disk(Path(tempfile.gettempdir())),
        volume=read_volume(),
    )


def read_disk(folder: Path) -> Disk:
    device = existing_parent(folder).stat().st_dev
    return Disk(folder, device, free_bytes(folder))


def read_volume() -> Disk | None:
    """The pod's volume, if there is one that may be written to."""
    if not os.access(POD_VOLUME, os.W_OK):
        return None
    return read_disk(POD_VOLUME)
