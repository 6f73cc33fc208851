"""What the cache holds: archives by hash, what was unpacked from them, and the programs that they
carry.

Two notes save reading gigabytes again, and each says in its function what it saves. Both are
believed only for what is checked later in another way: uv and micromamba hash an archive when they
unpack it, and the verifier compares what was installed with the lock. A program that we run
ourselves is compared with its archive every time.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import secrets
import shutil
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Iterable, Iterator

from lockedenv.errors import Stop
from lockedenv.host.files import read_json, write_atomically
from lockedenv.prefix.records import file_sha256, hashes, record_hashes

ARCHIVE_HASHES = "hashes.json"
UNPACKED = "unpacked.json"
# The largest program that is taken out of an archive, uv, has 40 MB.
PROGRAM_LIMIT = 400_000_000
_RECORD_LIMIT = 16_000_000


class CacheFolder(Enum):
    """The folders of a cache that can be served."""

    ARCHIVES = "pkgs"
    WHEELS = "wheels"
    PYTHON = "python-archives"  # uv's own name for it


# Archives -----------------------------------------------------------------------------------------


def read_archive_hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """The sha256 of the files of one folder, as noted for their size and time of change, or read
    and noted.

    Only for files whose unpacker hashes them too: who can write to the cache can write the note as
    well. It saves reading them twice: 2.7 GB of wheels took 10.5 s to hash on a busy machine of two
    cores, and their sizes and times no time that can be measured.
    """
    files = []
    for path in paths:
        if path.is_file():
            files.append(path)
    if not files:
        return {}
    notes = read_json(files[0].parent.with_name(ARCHIVE_HASHES))
    found = {}
    unknown = []
    for path in files:
        noted = notes.get(fingerprint(path))
        if isinstance(noted, str):
            found[path] = noted
        else:
            unknown.append(path)
    found.update(hashes(unknown))
    note_archive_hashes(found)
    return found


def note_archive_hashes(found: dict[Path, str]) -> None:
    """Notes the sha256 of files, beside the folder of each."""
    for file in {path.parent.with_name(ARCHIVE_HASHES) for path in found}:
        notes = read_json(file)
        for path, sha256 in found.items():
            notes[fingerprint(path)] = sha256
        _write_notes(file, notes)


def forget_archive_hashes(cache: Path) -> None:
    """Lets the next run read every archive, because an unpacker may have found one that is not as
    it was noted.
    """
    (cache / ARCHIVE_HASHES).unlink(missing_ok=True)


def find_by_hash(folder: Path, pattern: str, sha256: str) -> Path | None:
    """The file of a folder that has this hash, by reading those that match; or None."""
    for path in folder.glob(pattern):
        if file_sha256(path) == sha256:
            return path
    return None


# What was unpacked --------------------------------------------------------------------------------


def fingerprint(path: Path) -> str:
    """A sha256 over names, sizes, times of change and link targets of a file, or of all that is in
    a folder.
    """
    rows = []
    if path.is_dir():
        for entry in _walk(path):
            status = entry.stat(follow_symlinks=False)
            target = ""
            if entry.is_symlink():
                target = os.readlink(entry.path)
            name = entry.path[len(str(path)) :]
            rows.append((name, status.st_size, status.st_mtime_ns, target))
    else:
        status = path.lstat()
        rows.append((path.name, status.st_size, status.st_mtime_ns, ""))
    return hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder but the folders."""
    open_folders = [str(folder)]
    while open_folders:
        for entry in os.scandir(open_folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                open_folders.append(entry.path)
            else:
                yield entry


def note_unpacked(cache: Path, paths: Iterable[Path]) -> None:
    """Notes how the files of a folder are that was just unpacked, unless it has a note.

    Files in a prefix are links to the cache: whoever edits one in place edits the cache, and every
    prefix that comes after. Neither uv nor micromamba looks at what it has unpacked before. Without
    the note all of it would be hashed: 56 wheels with 3.6 GB took 19 s on a busy machine of two
    cores, their note 0.5 s.
    """
    notes = read_json(cache / UNPACKED)
    for path in paths:
        name = str(path.relative_to(cache))
        if name not in notes and path.exists():
            notes[name] = fingerprint(path)
    _write_notes(cache / UNPACKED, notes)


def remove_changed(cache: Path, paths: Iterable[Path]) -> list[Path]:
    """Removes what is not as it was noted, and its note.

    Gives what is there without a note, as a run that was killed leaves it.
    """
    notes = read_json(cache / UNPACKED)
    unknown = []
    changed = []
    for path in paths:
        name = str(path.relative_to(cache))
        there = os.path.lexists(path)
        if name not in notes:
            if there:
                unknown.append(path)
            continue
        if not there or fingerprint(path) != notes[name]:
            del notes[name]
            changed.append(path)
    if changed:
        _write_notes(cache / UNPACKED, notes)  # first: what is half removed has no note
    for path in changed:
        if os.path.lexists(path):
            remove(path)
    return unknown


def remove(path: Path) -> None:
    """Removes a file, a link or a folder of the cache."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def is_whole_wheel(folder: Path) -> bool:
    """Whether an unpacked wheel holds just the files that its RECORD lists, each with its hash."""
    records = list(folder.glob("*.dist-info/RECORD"))
    if not records:
        return False
    try:
        wanted = record_hashes(records[0])
    except (OSError, ValueError):
        return False
    for path in folder.rglob("*"):
        if path.is_file() and path.parent != records[0].parent and path not in wanted:
            return False
    return hashes(wanted) == wanted


# Programs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A program in an archive: how its path there ends, and its file name in the cache."""

    path_end: str
    file_name: str


def extract_program(archive: Path, program: Program, cache: Path) -> Path:
    """The program out of an archive whose hash was checked just now. Raises Stop if it holds none.

    The one in the cache is compared with the archive each time (0.1 s for uv): on a volume that
    several people write to, a note beside it would let any of them choose what runs.
    """
    target = cache / "bin" / program.file_name
    expected = _read_program_hash(archive, program)
    if target.is_file() and not target.is_symlink() and file_sha256(target) == expected:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with _open_program(archive, program) as source, beside.open("wb") as file:
            digest = _copy_bounded(source, file, archive)
        if digest != expected:
            raise Stop(
                f"{archive} contradicts itself; remove it, and it is fetched anew"
            )
        beside.chmod(0o755)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def _read_program_hash(archive: Path, program: Program) -> str:
    """The sha256 of a program in an archive: from a wheel's RECORD, otherwise by unpacking it."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.filename.endswith(".dist-info/RECORD"):
                    continue
                with wheel.open(info) as file:
                    text = file.read(_RECORD_LIMIT).decode()
                for row in csv.reader(io.StringIO(text)):
                    if len(row) == 3 and row[0].endswith(program.path_end):
                        encoded = row[1].removeprefix("sha256=")
                        return base64.urlsafe_b64decode(encoded + "==").hex()
    with _open_program(archive, program) as source:
        return _copy_bounded(source, None, archive)


@contextmanager
def _open_program(archive: Path, program: Program) -> Iterator[IO[bytes]]:
    """A program in an archive, to be read. Raises Stop if it is not there."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith(program.path_end):
                    with wheel.open(name) as member:
                        yield member
                    return
    else:
        with tarfile.open(archive) as tar:
            for info in tar:
                if info.isfile() and info.name.endswith(program.path_end):
                    opened = tar.extractfile(info)
                    if opened:
                        with opened:
                            yield opened
                        return
    raise Stop(
        f"{archive} holds no {program.path_end}; remove it, and it is fetched anew"
    )


def _copy_bounded(source: IO[bytes], target: IO[bytes] | None, archive: Path) -> str:
    """Reads a member of an archive, into a file if one is given; gives its sha256. Raises Stop
    beyond the limit.
    """
    digest = hashlib.sha256()
    size = 0
    while True:
        block = source.read(1 << 20)
        if not block:
            return digest.hexdigest()
        size += len(block)
        if size > PROGRAM_LIMIT:
            raise Stop(
                f"{archive} holds a program of more than {PROGRAM_LIMIT} bytes; remove it"
            )
        digest.update(block)
        if target:
            target.write(block)


def _write_notes(file: Path, notes: dict[str, object]) -> None:
    write_atomically(file, json.dumps(notes, indent=0) + "\n")
