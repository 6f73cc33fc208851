"""What the user asks for, as data. cli/options.py makes it of the words on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lockedenv.backends.base import Job
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level


@dataclass(frozen=True)
class FlashRequest:
    """How flash-attn is to be had.

    `mode`: auto, build, wheel or none. `wheel`: a file or an address, whose hash is `sha256`.
    `arch`: what to build for, such as "90" or "80,90"; empty for the GPUs that are here.
    `jobs`: compile jobs at a time, None for as many as CPUs and memory allow.
    """

    mode: str = "auto"
    wheel: str = ""
    sha256: str = ""
    arch: str = ""
    jobs: int | None = None


@dataclass(frozen=True)
class SetupRequest:
    """One call of setup_runpod_environment.sh or post_create.sh, checked; its paths are absolute.

    `backend`: None for the first that can be used here. `level`: None for what
    the prefix's past asks for.
    """

    prefix: Path
    environment: Environment
    cache: Path
    offline: Path | None = None
    address: str = ""
    mirrors: tuple[str, ...] = ()
    backend: BackendName | None = None
    flash: FlashRequest = field(default_factory=FlashRequest)
    level: Level | None = None
    force: bool = False
    keep_extras: bool = True
    any_pod: bool = False
    any_disk: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Installation(Job):
    """A job, and how flash-attn is to be had in it."""

    flash: FlashRequest = field(default_factory=FlashRequest)
