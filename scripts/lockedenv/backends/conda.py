"""The conda backend: its channels, its archives by hash, and micromamba, which makes a prefix of
them.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from lockedenv.backends import download as fetch
from lockedenv.backends.base import FileOrigin, Job, Obstacle, Offer, Space
from lockedenv.backends.cache import (
    Program,
    extract_program,
    forget_archive_hashes,
    note_unpacked,
    read_archive_hashes,
    remove,
    remove_changed,
)
from lockedenv.backends.curl import CURL
from lockedenv.errors import Stop
from lockedenv.host.disks import same_filesystem, size_text
from lockedenv.host.locking import holding
from lockedenv.host.process import ask, run
from lockedenv.prefix.conda_files import CONDA_META, HISTORY
from lockedenv.prefix.place import LONGER_BY
from lockedenv.redaction import redact
from lockedenv.reporter import Reporter
from lockedenv.spec.environment import CONDA_LOCK, Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.locks import CondaPackage
from lockedenv.spec.programs import MICROMAMBA
from lockedenv.spec.variables import clean

# The one archive whose size the channel's metadata lacked when it was locked is pytorch's; its twin
# for a newer Python has 1,571,072,276 bytes.
UNKNOWN_SIZE = 1_600_000_000
# Installed bytes per downloaded byte, measured: conda's archives are packed tighter than wheels.
GROWTH = 2.5
# conda's packages have this many bytes for the prefix, which is written into their files.
LONGEST_PREFIX = 255
ASK_CHANNEL = (
    *CURL,
    *("--head", "--fail", "--output", os.devnull),
    *("--connect-timeout", "5", "--max-time", "10"),
)


@dataclass(frozen=True)
class Conda:
    """Both layers as conda has them: archives of the channels, and the wheels of locks/pip.txt on
    top.
    """

    name: BackendName = BackendName.CONDA
    fetch_title: str = "Fetch the archives"
    brings_compiler: bool = True
    brings_python: bool = True

    def offer(self, job: Job) -> Offer:
        packages = job.environment.conda()
        wanted = {package.sha256 for package in packages}
        for address, listing in job.sources.listings.items():
            if wanted <= set(listing):
                return Offer(True, f"{redact(address)} has its archives")
        if job.sources.address:
            return Offer(False, f"{redact(job.sources.address)} has wheels alone")
        if job.sources.offline:
            if (job.sources.offline / "pkgs").is_dir():
                return Offer(True, "the offline folder has its archives")
            return Offer(False, "the offline folder has wheels alone")
        if _are_cached(packages, job.cache / "pkgs"):
            return Offer(True, "all its archives are in the cache")
        problem = channel_problem(packages, job.sources.mirrors)
        if problem:
            return Offer(False, problem)
        return Offer(True, "its channels answer")

    def prefix_problem(self, path: Path) -> Obstacle | None:
        # The environment is in PREFIX.d/ID.
        length = len(os.fsencode(path)) + LONGER_BY
        if length > LONGEST_PREFIX:
            return Obstacle(
                f"the prefix has {length} characters, and conda packages have room for "
                f"{LONGEST_PREFIX}",
                "choose a shorter --prefix",
            )
        return None

    def tool_problem(self, job: Job) -> Obstacle | None:
        return None  # its environment brings a uv of its own

    def space(self, job: Job) -> Space:
        sizes = {package.filename: package.size for package in job.environment.conda()}
        total = 0
        missing = 0
        for filename, known in sizes.items():
            size = known or UNKNOWN_SIZE
            total += size
            if not (job.cache / "pkgs" / filename).exists():
                missing += size
        return Space(
            fetched=missing,
            archives=total,
            unpacked=int(total * GROWTH),
            unpacked_beside=total,
        )

    def archives(self, environment: Environment) -> list[CondaPackage]:
        return [*environment.conda(), MICROMAMBA]

    def origins(self, job: Job) -> list[FileOrigin]:
        channels: dict[str, list[CondaPackage]] = {}
        for package in job.environment.conda():
            channels.setdefault(package.channel, []).append(package)
        origins = []
        for channel, packages in channels.items():
            largest = max(packages, key=lambda package: package.size)
            address = archive_items([largest], job.sources.mirrors)[0].sources[0]
            needed = sum(package.size for package in packages)
            origins.append(FileOrigin(channel, address, largest.size, needed))
        return origins

    def fetch(self, job: Job, reporter: Reporter) -> Path:
        """Every archive of the conda layer into the cache, whole and right; gives micromamba."""
        folder = job.cache / "pkgs"
        rounds = 1 if job.sources.offline else fetch.ROUNDS
        archives = archive_items(
            job.environment.conda(), job.sources.mirrors, job.sources.offline
        )
        micromamba = archive_items(
            [MICROMAMBA], job.sources.mirrors, job.sources.offline
        )
        # micromamba hashes all that it unpacks; nothing else hashes micromamba itself.
        fetched = fetch.fetch(archives, folder, reporter, rounds, read_archive_hashes)
        fetched += fetch.fetch(micromamba, folder, reporter, rounds)
        items = [*archives, *micromamba]
        total = sum((folder / item.name).stat().st_size for item in items)
        reporter.outcome(
            f"{len(items)} archives, {size_text(total)}, hashes right; "
            f"{size_text(fetched)} fetched now"
        )
        program = Program("bin/micromamba", f"micromamba-{MICROMAMBA.sha256[:12]}")
        return extract_program(folder / MICROMAMBA.filename, program, job.cache)

    def create(self, job: Job, program: Path, reporter: Reporter) -> None:
        """Makes the prefix of the archives in the cache. Raises Stop if it fails or leaves less."""
        prefix = job.prefix.path
        packages = job.environment.conda()
        archives = job.cache / "pkgs"
        unpacked_packages = [archives / package.stem for package in packages]
        together = same_filesystem(job.cache, prefix)
        # Unpacking makes 100,000 small files: slow on a network volume, and there they could not be
        # linked into the prefix.
        unpacked = archives if together else job.prefix.beside("maximalcai-pkgs")
        (job.cache / "mamba").mkdir(parents=True, exist_ok=True)
        # Without a history micromamba takes the folder for someone else's; `create` would empty it,
        # our mark included.
        (prefix / CONDA_META).mkdir()
        (prefix / HISTORY).touch()
        with holding(job.cache / "pkgs.lock", f"the cache {job.cache}", reporter.warn):
            if together:
                _drop_changed(job.cache, unpacked_packages, job.fresh)
            else:
                _link_archives(archives, unpacked, packages)
            try:
                _micromamba_install(job, program, unpacked, reporter)
                if together:
                    note_unpacked(job.cache, unpacked_packages)
            except Stop:
                # It may have found an archive that is not as noted: the next run reads all of them.
                forget_archive_hashes(job.cache)
                raise
            finally:
                if not together:
                    shutil.rmtree(unpacked, ignore_errors=True)
        _refuse_incomplete(prefix, packages, archives)
        reporter.outcome(
            f"{len(packages)} conda packages, Python {job.environment.python}"
        )

    def lock(self, environment: Environment) -> Path:
        return environment.lock(self.name)


def archive_items(
    packages: list[CondaPackage], mirrors: tuple[str, ...], offline: Path | None = None
) -> list[fetch.Item]:
    """The archives to fetch: from the offline folder, or from the mirrors and then their own
    address.
    """
    items = []
    for package in packages:
        sources = [fetch.address(mirror, package.url) for mirror in mirrors]
        sources.append(package.url)
        if offline:
            sources = [(offline / "pkgs" / package.filename).as_uri()]
        items.append(
            fetch.Item(package.filename, package.sha256, package.size, sources)
        )
    return items


def channel_problem(
    packages: list[CondaPackage], mirrors: tuple[str, ...]
) -> str | None:
    """Which of the packages' channels does not answer, and how; None if all do."""
    if not shutil.which("curl"):
        return "curl is not installed (apt-get install curl)"
    smallest: dict[str, CondaPackage] = {}
    for package in packages:
        known = smallest.setdefault(package.channel, package)
        if package.size < known.size:
            smallest[package.channel] = package

    def ask_for(package: CondaPackage) -> str | None:
        said = ""
        for source in archive_items([package], mirrors)[0].sources:
            answer = ask(ASK_CHANNEL, input=f'url = "{source}"\n')
            if answer.status == 0:
                return None
            said = answer.error
        return f"the channel {package.channel} does not answer ({redact(' '.join(said.split()))})"

    with ThreadPoolExecutor(len(smallest)) as pool:
        for problem in pool.map(ask_for, smallest.values()):
            if problem:
                return problem
    return None


def _drop_changed(cache: Path, folders: list[Path], everything: bool) -> None:
    """Removes unpacked archives that are not as they were noted; with `everything`, all of them."""
    if everything:
        for folder in folders:
            if os.path.lexists(folder):
                remove(folder)
    for folder in remove_changed(cache, folders):
        remove(folder)


def _link_archives(archives: Path, folder: Path, packages: list[CondaPackage]) -> None:
    """A new folder with a link to each archive: micromamba unpacks beside what it reads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for package in packages:
        (folder / package.filename).symlink_to(archives / package.filename)


def _micromamba_install(
    job: Job, program: Path, unpacked: Path, reporter: Reporter
) -> None:
    root = str(job.cache / "mamba")
    # HOME too: micromamba lists every prefix in ~/.conda/environments.txt.
    environ = clean(
        dict(os.environ),
        CONDA_PKGS_DIRS=str(unpacked),
        MAMBA_ROOT_PREFIX=root,
        HOME=root,
    )
    prefix = job.prefix.path
    lock = job.environment.folder / CONDA_LOCK
    command = [program, "install", "--yes", "--no-rc", "-p", prefix, "-f", lock]
    run(command, environ, "micromamba install", reporter, disk=prefix)


def _refuse_incomplete(
    prefix: Path, packages: list[CondaPackage], archives: Path
) -> None:
    """Raises Stop where micromamba ended well and packages are missing."""
    missing = []
    for package in packages:
        if not (prefix / f"{CONDA_META}/{package.stem}.json").exists():
            missing.append(package.name)
    if missing or not (prefix / "bin/python").exists():
        raise Stop(
            f"micromamba said it was done, and {len(missing)} packages are missing "
            f"({', '.join(missing[:3])}...); remove {archives}, and run again"
        )


def _are_cached(packages: Sequence[CondaPackage], folder: Path) -> bool:
    """Whether a folder has the archives of all these packages."""
    for package in packages:
        if not (folder / package.filename).exists():
            return False
    return True
