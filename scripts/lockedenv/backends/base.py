"""What a backend is: one way to make the layers of a prefix. conda.py and pip.py are the two."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Protocol

from lockedenv.prefix.place import Prefix
from lockedenv.reporter import Reporter
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.locks import CondaPackage


@dataclass(frozen=True)
class Obstacle:
    """Something that is in the way, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


@dataclass(frozen=True)
class Sources:
    """Where files may come from, besides the origin that a lock or an index names.

    `offline`: the folder that everything must come from, made by --download-only.
    `address`: where such a folder is served; its files go to the cache, which is then `offline`.
    `mirrors`: channels' mirrors. `listings`: of each served folder, sha256 -> path.
    """

    offline: Path | None = None
    address: str = ""
    mirrors: tuple[str, ...] = ()
    listings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def has(self, sha256: str) -> bool:
        """Whether a served folder lists a file of this hash."""
        return any(sha256 in listing for listing in self.listings.values())


@dataclass(frozen=True)
class Job:
    """What a backend works on. `fresh`: what the cache holds unpacked is compared file by file."""

    environment: Environment
    prefix: Prefix
    cache: Path
    sources: Sources = Sources()
    fresh: bool = False


@dataclass(frozen=True)
class Offer:
    """Whether a backend can be used here, and why, or why not."""

    usable: bool
    reason: str


@dataclass(frozen=True)
class Space:
    """Bytes that a backend writes: `fetched` archives that the cache lacks, `archives` in all,
    `unpacked` in the prefix.

    `unpacked_beside`: what is unpacked a second time where the cache is on another disk than the
    prefix.
    """

    fetched: int
    archives: int
    unpacked: int
    unpacked_beside: int = 0


@dataclass(frozen=True)
class FileOrigin:
    """Where files come from: a channel, a package index, a mirror.

    `address` is that of its largest file, which has `size` bytes; `needed` bytes come from there in
    all.
    """

    name: str
    address: str
    size: int
    needed: int


class Backend(Protocol):
    """One way to make an environment."""

    @property
    def name(self) -> BackendName:
        """What --backend, a prefix's mark and the locks call it."""

    @property
    def fetch_title(self) -> str:
        """The title of the step that fetches."""

    @property
    def brings_compiler(self) -> bool:
        """Whether its layers hold the g++ that torch.compile needs."""

    @property
    def brings_python(self) -> bool:
        """Whether its layers hold Python; otherwise it is the machine's, or one that uv fetches."""

    def offer(self, job: Job) -> Offer:
        """Whether it can be used here. It may ask the network."""

    def prefix_problem(self, path: Path) -> Obstacle | None:
        """Why no environment of this backend can work at a path, or None."""

    def tool_problem(self, job: Job) -> Obstacle | None:
        """What is missing on this machine before anything can be fetched, or None."""

    def space(self, job: Job) -> Space:
        """The bytes that it needs."""

    def archives(self, environment: Environment) -> list[CondaPackage]:
        """The files that `create` takes, besides wheels."""

    def origins(self, job: Job) -> list[FileOrigin]:
        """Each origin of its own, such as a channel, to measure its rate."""

    def fetch(self, job: Job, reporter: Reporter) -> Path:
        """Brings what `create` needs into the cache; gives the program that creates.

        Raises Stop.
        """

    def create(self, job: Job, program: Path, reporter: Reporter) -> None:
        """Makes the first layer in the prefix, where our mark lies already. Raises Stop."""

    def lock(self, environment: Environment) -> Path:
        """The lock of the wheels that come on top of what `create` makes."""
