"""What the cache holds unpacked is believed only while it is as it was when it came out of its archive, by hash.

Files in a prefix are links to it: whoever edits one in place edits the cache, and every prefix that comes after. So a
note keeps the size and the time of change of every file; what differs from its note is thrown away and unpacked anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Dict, Iterable, List, Optional

from lockedenv.errors import Stop
from lockedenv.host.machine import read_json, write_atomically
from lockedenv.prefix.records import hashes, record_entries

NOTES, HASHES = "unpacked.json", "hashes.json"


def known(paths: Iterable[Path]) -> Dict[Path, str]:
    """The sha256 of a folder's files, as noted for this size and time, or read. For what its unpacker hashes too."""
    files = [path for path in paths if path.is_file()]
    notes = read_json(files[0].parent.with_name(HASHES)) if files else {}
    found = {path: notes[name] for path, name in zip(files, map(signature, files)) if name in notes}
    found.update(hashes(path for path in files if path not in found))
    note_hashes(found)
    return found


def note_hashes(found: Dict[Path, str]) -> None:
    """Notes the sha256 of a folder's files, beside the folder."""
    for file in {path.parent.with_name(HASHES) for path in found}:
        notes = {**read_json(file), **{signature(path): sha for path, sha in found.items()}}
        write_atomically(file, json.dumps(notes, indent=0) + "\n")


def signature(path: Path) -> str:
    """A sha256 over names, sizes, times of change and link targets of a file or of all that is in a folder."""
    stat, rows, folders = path.lstat(), [], [str(path)]
    if not path.is_dir():
        rows, folders = [(path.name, stat.st_size, stat.st_mtime_ns, "")], []
    while folders:
        for entry in os.scandir(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                stat, target = entry.stat(follow_symlinks=False), (
                    os.readlink(entry.path) if entry.is_symlink() else ""
                )
                rows.append((entry.path[len(str(path)) :], stat.st_size, stat.st_mtime_ns, target))
    return hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()


def note(cache: Path, paths: Iterable[Path]) -> None:
    """Notes what was just unpacked, by hash, and has no note yet."""
    notes = read_json(cache / NOTES)
    names = {str(path.relative_to(cache)): path for path in paths if path.exists()}
    found = {name: signature(path) for name, path in names.items() if name not in notes}
    write_atomically(cache / NOTES, json.dumps({**notes, **found}, indent=0) + "\n")


def drop_changed(cache: Path, paths: Iterable[Path]) -> List[Path]:
    """Removes what is not as it was noted, and its note; gives what is there without a note, as a killed run leaves it."""
    notes: Dict[str, str] = read_json(cache / NOTES)
    names = {str(path.relative_to(cache)): path for path in paths}
    now = {name: signature(path) if os.path.lexists(path) else "" for name, path in names.items()}
    if wrong := [name for name in now if notes.get(name, now[name]) != now[name]]:
        write_atomically(
            cache / NOTES,
            json.dumps({k: v for k, v in notes.items() if k not in wrong}, indent=0) + "\n",
        )
    for name in filter(now.get, wrong):
        discard(names[name])
    return [names[name] for name in now if now[name] and name not in notes]


def discard(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def whole_wheel(folder: Path) -> bool:
    """Whether an unpacked wheel holds just the files that its RECORD lists, each with its hash."""
    try:
        record = next(folder.glob("*.dist-info/RECORD"))
        wanted = {path: sha for path, sha in record_entries(record).items() if sha}
    except (StopIteration, OSError, ValueError):
        return False
    there = {path for path in folder.rglob("*") if path.is_file() and path.parent != record.parent}
    return there <= set(wanted) and hashes(wanted) == wanted


def program(archive: Path, member: str, name: str, cache: Path) -> Path:
    """A program out of an archive whose hash was checked, kept in the cache. `member` is the end of its name there."""
    target = cache / "bin" / name
    if drop_changed(cache, [target]) or not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        with _member(archive, member) as source, beside.open("wb") as file:
            shutil.copyfileobj(source, file)
        beside.chmod(0o755)
        beside.replace(target)
        note(cache, [target])
    return target


def _member(archive: Path, member: str) -> IO[bytes]:
    found: Optional[IO[bytes]] = None
    if zipfile.is_zipfile(archive):
        wheel = zipfile.ZipFile(archive)
        found = next((wheel.open(name) for name in wheel.namelist() if name.endswith(member)), None)
    else:
        tar = tarfile.open(archive)
        found = next(
            (tar.extractfile(info) for info in tar if info.name.endswith(member) and info.isfile()),
            None,
        )
    if not found:
        raise Stop(f"{archive} holds no {member}; remove it, and it is fetched anew")
    return found
