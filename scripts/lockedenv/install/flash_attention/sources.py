"""Where a flash-attn wheel can come from: a short ordered list.

The first source that gives a wheel that works is it.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lockedenv.backends import private_folders, uv_program
from lockedenv.backends.cache import find_by_hash
from lockedenv.backends.download import Item, fetch
from lockedenv.backends.file_names import last_part
from lockedenv.errors import Stop
from lockedenv.host.orphans import end_orphans
from lockedenv.host.versions import version_tuple
from lockedenv.install.flash_attention import toolchain
from lockedenv.install.flash_attention.build import BuildJob, build_wheel, unpack_source
from lockedenv.install.flash_attention.built_wheels import (
    FOLDER,
    describe_build,
    find_built_wheel,
    keep_built_wheel,
    make_full_key,
    make_key,
)
from lockedenv.install.flash_attention.installed import InstalledWheel, WheelOrigin
from lockedenv.install.flash_attention.target import GLIBC, Torch
from lockedenv.install.flash_attention.wheel_name import find_misfit
from lockedenv.install.request import Installation
from lockedenv.prefix.records import file_sha256
from lockedenv.redaction import redact
from lockedenv.reporter import Reporter
from lockedenv.spec.layers import BackendName
from lockedenv.spec.locks import PipPackage, PrebuiltWheel

# The package whose folder, flash_attn, flash-attn 2 shares: flash_attn/cute is in both.
SUCCESSOR = "flash-attn-4"
SHARED_FOLDER = "flash_attn/cute"
NO_PREBUILT = "none is locked for this environment"


@dataclass(frozen=True)
class Wanted:
    """What flash-attn is wanted for: the job, and the torch and the GPU
    architectures that it must fit.

    `backend` is given where there is no prefix yet: the conda layer brings a compiler.
    """

    job: Installation
    torch: Torch
    archs: tuple[str, ...]
    backend: BackendName | None = None
    glibc: str = GLIBC

    @property
    def mode(self) -> str:
        return self.job.flash.mode

    @property
    def source(self) -> PipPackage | None:
        """The locked source."""
        return self.job.environment.flash_attn()

    @property
    def successor(self) -> PipPackage | None:
        """The FlashAttention 4 of the lock, an ordinary wheel."""
        return find_successor(self.job)

    @property
    def key(self) -> str:
        """What a built wheel must be for; empty where nothing can be built."""
        if not self.source or not self.archs:
            return ""
        return make_key(
            self.source, self.torch, self.archs, shared=bool(self.successor)
        )

    @property
    def cache(self) -> Path:
        """The folder of the built wheels."""
        return self.job.cache / FOLDER

    @property
    def architectures_text(self) -> str:
        return ", ".join(f"sm_{arch}" for arch in self.archs)


def find_successor(job: Installation) -> PipPackage | None:
    """The FlashAttention 4 of an environment's lock, if it has one."""
    for pin in job.environment.wheels(BackendName.PIP):
        if pin.name == SUCCESSOR:
            return pin
    return None


@dataclass(frozen=True)
class Prospect:
    """Whether a source will be asked, and what it would give, or why not.

    For people; empty if there is nothing to say.
    """

    usable: bool
    text: str = ""


@dataclass(frozen=True)
class BroughtWheel:
    """A wheel that is here, with its hash checked."""

    path: Path
    sha256: str
    origin: WheelOrigin
    key: str = ""


class WheelSource(Protocol):
    origin: WheelOrigin

    def prospect(self, wanted: Wanted) -> Prospect:
        """Whether this source will be asked. It fetches, builds and changes nothing."""

    def has_given(self, installed: InstalledWheel, job: Installation, key: str) -> bool:
        """Whether an installed wheel is the one that this source would give.

        `key`: of a built one; empty if unknown.
        """

    def bring(self, wanted: Wanted, reporter: Reporter) -> BroughtWheel | None:
        """The wheel; None if the source has none after all. Raises Stop."""


class GivenWheel:
    """The wheel of --wheel, by its --sha256."""

    origin = WheelOrigin.GIVEN

    def prospect(self, wanted: Wanted) -> Prospect:
        address = wanted.job.flash.wheel
        if not address:
            return Prospect(False)
        return Prospect(True, f"{redact(address)}, as given")

    def has_given(self, installed: InstalledWheel, job: Installation, key: str) -> bool:
        flash = job.flash
        if installed.origin is not WheelOrigin.GIVEN:
            return False
        if not flash.wheel:
            return flash.mode == "auto"
        same_name = installed.filename in (
            last_part(flash.wheel),
            Path(flash.wheel).name,
        )
        return same_name and installed.sha256 == flash.sha256

    def bring(self, wanted: Wanted, reporter: Reporter) -> BroughtWheel | None:
        flash = wanted.job.flash
        if not flash.wheel:
            return None
        shown = redact(flash.wheel)
        name = last_part(flash.wheel)
        misfit = find_misfit(name, wanted.torch, wanted.glibc)
        if misfit:
            raise Stop(misfit)
        if "://" in flash.wheel:
            folder = wanted.job.cache / "wheels"
            item = Item(name, flash.sha256, 0, [flash.wheel])
            fetch([item], folder, reporter)
            return BroughtWheel(folder / name, flash.sha256, self.origin)
        path = Path(flash.wheel).expanduser().resolve()
        if not path.is_file():
            raise Stop(f"{shown} is not a file")
        sha256 = file_sha256(path)
        if sha256 != flash.sha256:
            raise Stop(
                f"{shown} has sha256 {sha256}, not {flash.sha256}: it is not installed"
            )
        return BroughtWheel(path, sha256, self.origin)


class CachedWheel:
    """A wheel that this user has built before."""

    origin = WheelOrigin.CACHED

    def prospect(self, wanted: Wanted) -> Prospect:
        if wanted.mode not in ("auto", "build") or not wanted.key:
            return Prospect(False)
        if not find_built_wheel(wanted.cache, wanted.key, wanted.glibc):
            return Prospect(False)
        return Prospect(
            True, f"the wheel that the cache has for {wanted.architectures_text}"
        )

    def has_given(self, installed: InstalledWheel, job: Installation, key: str) -> bool:
        built = installed.origin in (WheelOrigin.CACHED, WheelOrigin.BUILT)
        fits = bool(key) and installed.key.startswith(f"{key}-")
        return (
            built
            and fits
            and not job.flash.wheel
            and job.flash.mode in ("auto", "build")
        )

    def bring(self, wanted: Wanted, reporter: Reporter) -> BroughtWheel | None:
        if wanted.mode not in ("auto", "build") or not wanted.key:
            return None
        found = find_built_wheel(wanted.cache, wanted.key, wanted.glibc, reporter)
        if not found:
            return None
        reporter.note(f"{found.path.name} from the cache")
        return BroughtWheel(found.path, found.sha256, self.origin, found.full_key)


class LockedPrebuilt:
    """The wheel that flash-attn's own project has built, by the hash of the lock."""

    origin = WheelOrigin.PREBUILT

    def prospect(self, wanted: Wanted) -> Prospect:
        if wanted.mode not in ("auto", "wheel"):
            return Prospect(False)
        wheel = wanted.job.environment.flash_wheel()
        if not wheel:
            return Prospect(wanted.mode == "wheel", NO_PREBUILT)
        misfit = find_prebuilt_misfit(wheel, wanted)
        if misfit:
            return Prospect(wanted.mode == "wheel", misfit)
        return Prospect(True, f"the prebuilt wheel {wheel.filename}")

    def has_given(self, installed: InstalledWheel, job: Installation, key: str) -> bool:
        wheel = job.environment.flash_wheel()
        if not wheel or job.flash.wheel or job.flash.mode not in ("auto", "wheel"):
            return False
        same_file = (
            installed.filename == wheel.filename and installed.sha256 == wheel.sha256
        )
        return installed.origin is WheelOrigin.PREBUILT and same_file

    def bring(self, wanted: Wanted, reporter: Reporter) -> BroughtWheel | None:
        if wanted.mode not in ("auto", "wheel"):
            return None
        wheel = wanted.job.environment.flash_wheel()
        if not wheel:
            if wanted.mode == "auto":
                return None
            raise Stop(f"flash-attn's prebuilt wheel: {NO_PREBUILT}")
        misfit = find_prebuilt_misfit(wheel, wanted)
        if misfit:
            raise Stop(f"flash-attn's prebuilt wheel: {misfit}")
        folder = wanted.job.cache / "wheels"
        item = make_prebuilt_item(wanted.job, wheel)
        fetch([item], folder, reporter, rounds=3)
        return BroughtWheel(folder / wheel.filename, wheel.sha256, self.origin)


def find_prebuilt_misfit(wheel: PrebuiltWheel, wanted: Wanted) -> str | None:
    """Why a prebuilt wheel does not fit this environment and machine, or None."""
    if version_tuple(wanted.glibc) < version_tuple(wheel.glibc):
        return f"it needs glibc {wheel.glibc}, this machine has {wanted.glibc}"
    for arch in wanted.archs:
        if arch not in wheel.archs:
            return f"it has no code for sm_{arch}"
    return find_misfit(wheel.filename, wanted.torch, wanted.glibc)


def make_prebuilt_item(job: Installation, wheel: PrebuiltWheel) -> Item:
    """Where the prebuilt wheel is: in the offline folder, else at its own address."""
    address = wheel.url
    if job.sources.offline:
        address = (job.sources.offline / "wheels" / wheel.filename).as_uri()
    return Item(wheel.filename, wheel.sha256, 0, [address])


class BuiltFromSource:
    """A wheel that is built now, from the locked source."""

    origin = WheelOrigin.BUILT

    def prospect(self, wanted: Wanted) -> Prospect:
        if wanted.mode not in ("auto", "build") or not wanted.key:
            return Prospect(False)
        tools = "the lock's nvcc and g++"
        if wanted.backend is None or not wanted.backend.has_conda_layer:
            try:
                found = self._find_tools(wanted)
            except Stop as error:
                return Prospect(False, str(error))
            tools = f"nvcc {found.nvcc} and g++ {found.gcc}"
        jobs = toolchain.choose_jobs(wanted.job.flash.jobs, os.environ)
        minutes = toolchain.build_time_text(list(wanted.archs), jobs)
        return Prospect(
            True,
            f"built for {wanted.architectures_text} with {tools}, {jobs}: {minutes}",
        )

    def has_given(self, installed: InstalledWheel, job: Installation, key: str) -> bool:
        return False  # CachedWheel knows what was built

    def bring(self, wanted: Wanted, reporter: Reporter) -> BroughtWheel | None:
        if wanted.mode not in ("auto", "build") or not wanted.source or not wanted.key:
            return None
        job = wanted.job
        tools = self._find_tools(wanted)
        if tools.warning:
            reporter.say(f"warning: {tools.warning}")
        archive = bring_source(job, wanted.source, reporter)
        jobs = toolchain.choose_jobs(job.flash.jobs, os.environ)
        reporter.note(
            f"building for {wanted.architectures_text} with nvcc {tools.nvcc} and g++ {tools.gcc}"
        )
        reporter.note(f"{jobs}: {toolchain.build_time_text(list(wanted.archs), jobs)}")
        full_key = make_full_key(wanted.key, tools, wanted.glibc)
        # One folder a wheel, so that the next run goes on from the object files of one that was
        # interrupted (ninja does that); on one file system, because setup.py renames.
        work = private_folders.temporary("flash-attn", wanted.cache / full_key)
        end_orphans(f"TMPDIR={work}")  # the caller holds the wheel's lock
        private_folders.refuse_foreign(work)
        logs = job.cache / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        without = SHARED_FOLDER if wanted.successor else ""
        build = BuildJob(
            source=unpack_source(archive, work, without),
            work=work,
            prefix=job.prefix.path,
            tools=tools,
            archs=wanted.archs,
            job_count=jobs.count,
            log=logs / f"{full_key}.log",
        )
        wheel = build_wheel(build, reporter)
        facts = describe_build(started, jobs.count, tools, wanted.torch, wanted.archs)
        kept = keep_built_wheel(wheel, wanted.cache, full_key, facts)
        shutil.rmtree(work, ignore_errors=True)
        reporter.note(f"{kept.path.name} built")
        reporter.say(
            f"on another machine, install it with: --wheel {kept.path} --sha256 {kept.sha256}"
        )
        return BroughtWheel(kept.path, kept.sha256, self.origin, full_key)

    def _find_tools(self, wanted: Wanted) -> toolchain.Toolchain:
        return toolchain.find_toolchain(
            wanted.job.prefix.path, wanted.torch.cuda, dict(os.environ)
        )


def bring_source(job: Installation, pin: PipPackage, reporter: Reporter) -> Path:
    """The locked source archive, hash checked: from --offline, the cache or the index.

    Raises Stop or FetchError.
    """
    folders = [job.cache / "wheels"]
    if job.sources.offline:
        folders.insert(0, job.sources.offline / "wheels")
    for folder in folders:
        found = find_by_hash(folder, "flash_attn-*.tar.gz", pin.sha256)
        if found:
            return found
    if job.sources.offline:
        raise Stop(
            f"{folders[0]} has no source of flash-attn {pin.version} with the locked hash; "
            f"collect it anew with --download-only {job.sources.offline}"
        )
    uv = uv_program.bring_uv(job.cache, reporter)
    uv_program.fetch_files([pin], folders[0], uv, job.environment.python, reporter)
    found = find_by_hash(folders[0], "flash_attn-*.tar.gz", pin.sha256)
    if not found:
        raise Stop(f"the package index gave no source of flash-attn {pin.version}")
    return found


SOURCES: tuple[WheelSource, ...] = (
    GivenWheel(),
    CachedWheel(),
    LockedPrebuilt(),
    BuiltFromSource(),
)
