"""The wheels of a lock: fetched by hash, and installed by uv, in a prefix of either backend."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from lockedenv.backends.base import Job
from lockedenv.backends.cache import (
    is_whole_wheel,
    note_unpacked,
    read_archive_hashes,
    remove,
    remove_changed,
)
from lockedenv.backends.index import index_problem
from lockedenv.backends.private_folders import temporary
from lockedenv.backends.uv_program import PLATFORM, fetch_files, run_uv, uv_environment
from lockedenv.errors import Stop
from lockedenv.host.disks import same_filesystem
from lockedenv.host.locking import holding
from lockedenv.prefix.inventory import inventory_or_none
from lockedenv.prefix.kept_files import keep, keep_edited
from lockedenv.prefix.records import (
    Dist,
    file_sha256,
    hash_record,
    hashes,
    info_name,
    read_prefix,
    record_hashes,
)
from lockedenv.prefix.version_2 import read_note
from lockedenv.reporter import Reporter
from lockedenv.spec import locks
from lockedenv.spec.layers import Layer
from lockedenv.spec.locks import PipPackage


@dataclass(frozen=True)
class Damage:
    """What of the locked wheels is not in a prefix as the lock has it.

    `reinstall`: the names of the packages that are to be installed again. `without_record`: their
    dist-info folders that list no file: uv cannot take those away, and refuses to put them there
    again.
    """

    reinstall: Sequence[str]
    without_record: Sequence[Path]


@dataclass(frozen=True)
class NotedWheel:
    """What was noted of a wheel when it was installed: its hash, and that of the RECORD it left.
    Empty: not known.
    """

    sha256: str
    record_sha256: str


def find_damage(prefix: Path, pins: Sequence[PipPackage]) -> Damage:
    """What the prefix holds of the locked wheels and is not as the lock
    has it; nothing is changed.
    """
    locked = {pin.name: pin for pin in pins}
    noted = read_noted_wheels(prefix)
    reinstall = []
    without_record = []
    for dist in read_prefix(prefix).dists:
        if dist.name not in locked or dist.manager != Layer.PIP:
            continue
        if _lists_no_file(dist):
            without_record.append(dist.path)
        if not _is_whole(dist) or not _is_locked(
            dist, locked[dist.name], noted.get(dist.name)
        ):
            reinstall.append(dist.name)
    return Damage(reinstall, without_record)


def read_noted_wheels(prefix: Path) -> dict[str, NotedWheel]:
    """By the name of the package, what the inventory or version 2.0's note has of the wheels."""
    inventory = inventory_or_none(prefix)
    noted = {}
    if inventory is None:
        note = read_note(prefix)
        for name in {*note.wheels, *note.records}:
            noted[name] = NotedWheel(
                note.wheels.get(name, ""), note.records.get(name, "")
            )
        return noted
    records = {}
    for entry in inventory.entries:
        folder, _, name = entry.path.rpartition("/")
        if name == "RECORD" and info_name(folder) == entry.package:
            records[entry.package] = entry.sha256
    for package in inventory.packages:
        if package.layer is Layer.PIP:
            noted[package.name] = NotedWheel(
                package.sha256, records.get(package.name, "")
            )
    return noted


def _lists_no_file(dist: Dist) -> bool:
    """Whether a dist-info has no RECORD, or one in which no file has a hash."""
    try:
        return not record_hashes(dist.path / "RECORD")
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def _is_whole(dist: Dist) -> bool:
    """Whether each file of a wheel is as its RECORD says."""
    try:
        files = record_hashes(dist.path / "RECORD")
    except (OSError, ValueError):
        return False
    return bool(files) and hashes(files) == files


def _is_locked(dist: Dist, pin: PipPackage, noted: NotedWheel | None) -> bool:
    """Whether an installed wheel is the locked one: by the lock's digest of its RECORD, else by
    what was noted.
    """
    record = dist.path / "RECORD"
    if (dist.path / "direct_url.json").exists():
        return False  # what comes from somewhere else than the index says so there
    if pin.record_sha256:
        return hash_record(dist) == pin.record_sha256
    if noted is None:
        return True
    same_wheel = noted.sha256 in ("", pin.sha256)
    return same_wheel and noted.record_sha256 in ("", file_sha256(record))


def install(job: Job, lock: Path, uv: Path, reporter: Reporter) -> None:
    """The wheels of a lock, by hash; what is not as the lock has it, again; what the user added
    stays.

    If the job is `fresh`, or where something was damaged, what the cache holds unpacked is compared
    file by file. Raises Stop.
    """
    prefix = job.prefix.path
    offline = job.sources.offline
    pins = locks.read_pip_lock(lock)
    environ = uv_environment(job.cache, prefix, os.environ)
    damage = find_damage(prefix, pins)
    _set_aside(job, damage, reporter)
    folder = (offline or job.cache) / "wheels"
    unpacked_apart = not same_filesystem(job.cache, prefix)
    if environ["UV_CACHE_DIR"] == str(temporary("uv", prefix)):
        unpacked_apart = True
    command = [uv, "pip", "install", "--python", prefix / "bin/python", *PLATFORM]
    command += ["--require-hashes", "--no-deps"]
    for name in damage.reinstall:
        command += ["--reinstall-package", name]
    local = _local_options(job, pins, folder, uv, unpacked_apart, reporter)
    # All in the cache: then no index is asked, and none needs to answer. The last attempt is for
    # what a mirror named and is of no use.
    attempts = [[*local, "--offline"], local]
    if local and not offline:
        attempts.append([])

    with holding(job.cache / "uv.lock", f"the cache {job.cache}", reporter.warn):
        _drop_damaged_wheels(job.cache, everything=bool(damage.reinstall) or job.fresh)
        for number, attempt in enumerate(attempts, 1):
            last = number == len(attempts)
            words = [*command, *attempt, "-r", lock]
            try:
                run_uv(words, environ, f"installing {lock.name}", reporter, disk=prefix)
                break
            except Stop as error:
                if last:
                    raise _explained(error, bool(offline)) from None
            if unpacked_apart and not offline:
                # uv hashes what it unpacks, and may have found a wheel that is not as it was noted.
                fetch_files(pins, folder, uv, job.environment.python, reporter)
        note_unpacked(job.cache, job.cache.glob("uv/archive-v*/*"))


def _local_options(
    job: Job,
    pins: Sequence[PipPackage],
    folder: Path,
    uv: Path,
    unpacked_apart: bool,
    reporter: Reporter,
) -> list[Any]:
    """uv's options where all wheels lie in a folder, by --offline, a mirror, or because they are
    kept as archives.
    """
    offline = job.sources.offline
    wanted = {pin.sha256 for pin in pins}
    if not (offline or unpacked_apart):
        if not wanted <= set(read_archive_hashes(folder.glob("*.whl")).values()):
            return []
    if not offline:
        # What uv unpacks, small files by the thousand, lies beside the prefix; the cache keeps
        # archives.
        fetch_files(pins, folder, uv, job.environment.python, reporter, read=False)
    return ["--no-index", "--find-links", folder]


def _explained(error: Stop, offline: bool) -> Stop:
    """The error, with what is wrong with the package index where that is the cause."""
    if offline:
        return error
    problem = index_problem(os.environ)
    return Stop(f"{problem}\n  {error}") if problem else error


def _set_aside(job: Job, damage: Damage, reporter: Reporter) -> None:
    """Moves what people edited in the damaged packages out of the prefix, and dist-info folders
    that list no file.
    """
    folders = [str(path.relative_to(job.prefix.path)) for path in damage.without_record]
    for kept_files in (
        keep_edited(job.prefix, damage.reinstall),
        keep(job.prefix, folders),
    ):
        if kept_files:
            for line in kept_files.lines():
                reporter.warn(line)


def _drop_damaged_wheels(cache: Path, everything: bool) -> None:
    """Removes the unpacked wheels that are not whole: of those without a note, or with `everything`
    of all.
    """
    unpacked = list(cache.glob("uv/archive-v*/*"))
    suspects = remove_changed(cache, unpacked)
    if everything:
        suspects = unpacked
    for path in suspects:
        if path.exists() and not is_whole_wheel(path):
            remove(path)
