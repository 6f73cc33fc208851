"""The one way to remove an environment, and to move people's files out of one.

Only a path that the inventory has, or that an added package recorded, is deleted, and only while it
is as it was installed. All else is moved to PREFIX.kept-TIME first. Nothing is deleted below a
mount point.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Iterable, Iterator, Sequence

from lockedenv.errors import Stop, disk_text, printable
from lockedenv.host.files import FileRefused, read_json, read_regular
from lockedenv.prefix.activation import activate_text, guard_text
from lockedenv.prefix.compare_inventory import Problem, compare_full, compare_quick
from lockedenv.prefix.conda_files import HISTORY, is_in_conda_meta
from lockedenv.prefix.inventory import (
    INVENTORY,
    MANIFEST,
    NOTES,
    Entry,
    Inventory,
    Kind,
    Package,
    inventory_or_none,
    is_bytecode,
    is_inside,
    write_inventory,
)
from lockedenv.prefix.make_inventory import (
    earlier_inventory,
    record_entries,
    take_inventory,
)
from lockedenv.prefix.mark import MadeBy, Mark, State, mark_text, read_mark, write_mark
from lockedenv.prefix.place import Prefix, find_backend, mark_or_none, place_of
from lockedenv.prefix.records import file_sha256, hashes, read_prefix
from lockedenv.prefix.version_2 import NOTE as NOTE_OF_VERSION_2
from lockedenv.spec.environment import MARK
from lockedenv.spec.layers import BackendName, Layer

SHOWN = 20
ROUNDS = 5
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
TAG_LIMIT = 10_000  # bytes
# https://bford.info/cachedir/, with the comments that tools write.
CACHE_TAG = re.compile(rb"Signature: 8a477f597d28d172789f06886806bc55(\n(#[^\n]*)?)*")
HISTORY_LIMIT = 10_000_000  # bytes
# A time, a command or specification, and the packages that came and went.
CONDA_HISTORY = re.compile(rb"((==> [^\n]* <==|[#+-][^\n]*)?(\n|\Z))*")
VERSION_2_FIELDS = {"files", "links", "wheels", "records", "conda"}
# Where packages put their files; only there may a link into the cache belong to one that is half
# installed.
PACKAGE_FOLDERS = (
    "bin",
    "etc",
    "include",
    "lib",
    "lib64",
    "libexec",
    "share",
    "ssl",
    "x86_64-conda-linux-gnu",
)
# What installers write into a package's dist-info, in most cases without a hash.
GENERATED = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
PROGRAM_LIMIT = 10_000  # bytes
# The program that conda makes of an entry point; its record has no hash of it.
ENTRY_POINT = re.compile(
    rb"#![^\n]+\n# -\*- coding: utf-8 -\*-\nimport re\nimport sys\n+from [\w.]+ import \w+\n+"
    rb"if __name__ == '__main__':\n"
    rb"[ \t]+sys\.argv\[0\] = re\.sub\(r'[^'\n]*', '', sys\.argv\[0\]\)\n"
    rb"[ \t]+sys\.exit\([\w.]+\(\)\)\n?"
)


class RemovalRefused(Stop):
    """A folder is not removed; the message says why and what to do."""


@dataclass(frozen=True)
class Kept:
    """What was moved out of an environment: the names that it had there, and the folder where it
    lies now.
    """

    folder: Path
    names: tuple[str, ...]

    def lines(self) -> list[str]:
        """This for people: names, not just a count. Nothing where nothing was moved."""
        if not self.names:
            return []
        noun = "files or folders of yours are"
        if len(self.names) == 1:
            noun = "file or folder of yours is"
        lines = [f"{len(self.names)} {noun} now in {self.folder}:"]
        lines += [f"  {printable(name)}" for name in self.names[:SHOWN]]
        if len(self.names) > SHOWN:
            lines.append(f"  and {len(self.names) - SHOWN} more")
        return lines


@dataclass
class _Contents:
    """What lies in a folder: `own` is to be kept, `disposable` may be deleted, `folders` are in
    between, deepest first.
    """

    own: list[str] = field(default_factory=list)
    disposable: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def remove_environment(prefix: Prefix, folder: Path) -> Kept | None:
    """Removes an environment of this prefix; gives what was moved out of it first, or None.

    Raises RemovalRefused for a folder that the set-up did not make for this prefix, or with a mount
    in it. A killed removal goes on where it was: the inventory and the mark are the last to go.
    """
    refuse_removal(prefix, folder)
    mark = read_mark(folder)
    if mark is None:
        raise RemovalRefused(f"{folder} has no mark; it is left as it is")
    target = kept_folder(prefix)
    moved: list[str] = []
    try:
        if os.path.lexists(folder / INVENTORY) and INVENTORY not in _notes(
            folder, mark
        ):
            _move(folder, [INVENTORY], target, moved)  # one is written in its place
        inventory = _complete_inventory(folder, mark)
        unfinished = _is_unfinished(mark)
        if mark.state is not State.REMOVING:
            _mark_as_removing(folder, mark)
        for _ in range(ROUNDS):
            contents = _classify(folder, inventory, unfinished)
            for path in contents.folders:
                _make_writable(folder / path)
            _move(folder, contents.own, target, moved)
            refuse_mounts(prefix, folder)
            if _delete(folder, contents):
                break
        else:
            raise RemovalRefused(
                f"{folder} cannot be emptied: something writes to it; end that, and run again"
            )
    except (RemovalRefused, OSError) as error:
        text = disk_text(error) if isinstance(error, OSError) else str(error)
        lines = Kept(target, tuple(moved)).lines()
        raise RemovalRefused("\n".join([text, *lines])) from None
    return Kept(target, tuple(moved)) if moved else None


def _is_unfinished(mark: Mark) -> bool:
    """Whether an environment was not whole when its removal began."""
    if mark.state is State.REMOVING:
        return mark.other.get("unfinished") is True
    return mark.state is State.MAKING


def _mark_as_removing(folder: Path, mark: Mark) -> None:
    unfinished = _is_unfinished(mark)
    removing = replace(
        mark, state=State.REMOVING, other={**mark.other, "unfinished": unfinished}
    )
    try:
        write_mark(folder, removing)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        # A full disk must not keep what fills it: there is room for a mark where the mark is.
        with open(folder / MARK, "r+", encoding="utf-8") as file:
            file.write(mark_text(removing))
            file.truncate()


def refuse_removal(prefix: Prefix, folder: Path) -> None:
    """Raises RemovalRefused for a folder that may not be removed."""
    mark = read_mark(folder)
    if mark is None or mark.made_by is not MadeBy.SETUP:
        raise RemovalRefused(
            f"{folder} was not made by this set-up; it is left as it is"
        )
    if not prefix.owns(folder, mark):
        raise RemovalRefused(
            f"{folder} is a copy of the environment made at {mark.path}; it is left as it is. "
            f"If you do not need it: rm -r {folder}"
        )
    refuse_mounts(prefix, folder)


def refuse_mounts(prefix: Prefix, folder: Path) -> None:
    """Raises RemovalRefused where something is mounted in a folder."""
    mounted = mounts_in(folder)
    if mounted:
        raise RemovalRefused(
            f"{mounted[0]} is mounted in the environment {folder}; unmount it first: umount "
            f"{mounted[0]}"
        )


def mounts_in(folder: Path) -> list[str]:
    """What is mounted at a folder or below it."""
    try:
        text = Path("/proc/self/mountinfo").read_text(
            encoding="utf-8", errors="replace"
        )
    except OSError:
        return []
    real = os.path.realpath(folder)
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) < 5:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if place == real or place.startswith(f"{real}/"):
            found.append(place)
    return found


def kept_folder(prefix: Prefix) -> Path:
    """A name for a new PREFIX.kept-TIME."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = prefix.beside(f"kept-{stamp}")
    number = 1
    while os.path.lexists(folder):
        number += 1
        folder = prefix.beside(f"kept-{stamp}-{number}")
    return folder


def own_paths(folder: Path) -> list[str]:
    """What a removal of this environment would move out of it: people's files and folders, and
    edited files.
    """
    mark = read_mark(folder)
    unfinished = mark is not None and _is_unfinished(mark)
    inventory = _whole_inventory(folder, mark) or _attributed(folder)
    return sorted(_classify(folder, inventory, unfinished).own)


def keep_edited(prefix: Prefix, names: Iterable[str]) -> Kept | None:
    """Moves the edited files of these packages out of the environment, before they are installed
    again.

    So are links that people made in the place of a package's folder: an installer would delete
    through them.
    """
    wanted = set(names)
    packages = []
    for package in _packages(prefix.path):
        if package.name in wanted:
            packages.append(package)
    taken = take_inventory(prefix.path, packages)
    edited = _edited_entries(prefix.path, taken)
    links = []
    for entry in edited:
        if entry.kind is Kind.FOLDER and (prefix.path / entry.path).is_symlink():
            links.append(entry.path)
    unproven = _unproven(prefix.path, wanted)
    whole = _whole_inventory(prefix.path, read_mark(prefix.path))
    if whole is not None and unproven:
        unchanged = {entry.path for entry in whole.entries}
        unproven -= unchanged - _edited_since(prefix.path, whole)
    python_folders = set()
    for site in read_prefix(prefix.path).sites:
        python_folders.update(_with_parents(site.relative_to(prefix.path).as_posix()))
    paths = []
    for entry in edited:
        below = _lies_below(entry.path, links)
        if (
            entry.package in wanted
            and not below
            and not entry.path.endswith(".dist-info/RECORD")
        ):
            paths.append(entry.path)
    for path in sorted(unproven.difference(paths)):
        if not _lies_below(path, links):
            paths.append(path)
    for link in links:
        if _lies_below(link, links):
            continue  # what it leads to is people's
        if link == "bin" or link in python_folders:
            raise Stop(
                f"{prefix.path / link} is a link, and the packages of the environment lie behind "
                "it; move it away, and make the environment anew with --force"
            )
        paths.append(link)
    return keep(prefix, paths)


def _lies_below(path: str, folders: Iterable[str]) -> bool:
    """Whether a relative path is inside one of these folders."""
    for folder in folders:
        if path.startswith(f"{folder}/"):
            return True
    return False


def _with_parents(path: str) -> list[str]:
    """A relative path and the folders that it lies in."""
    found = []
    while path:
        found.append(path)
        path = os.path.dirname(path)
    return found


def keep(prefix: Prefix, paths: Iterable[str]) -> Kept | None:
    """Moves paths of an environment, relative to it, to PREFIX.kept-TIME."""
    target = kept_folder(prefix)
    moved: list[str] = []
    _move(prefix.path, sorted(paths), target, moved)
    return Kept(target, tuple(moved)) if moved else None


# What is whose


def _whole_inventory(folder: Path, mark: Mark | None) -> Inventory | None:
    """The inventory of an environment; None where there is none, or only
    that of the first steps.
    """
    if mark is not None and mark.state is State.MAKING:
        return None
    return inventory_or_none(folder)


def _complete_inventory(folder: Path, mark: Mark) -> Inventory:
    """The inventory, written if there is none: the records that it is made from are deleted before
    the end.
    """
    inventory = _whole_inventory(folder, mark)
    if inventory is None:
        inventory = _attributed(folder)
        try:
            write_inventory(folder, inventory)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise  # else: after a kill, what no record tells any more counts as people's
    return inventory


def _attributed(folder: Path) -> Inventory:
    """An inventory of a folder without one, as far as records tell; without what was edited."""
    taken = take_inventory(
        folder,
        _packages(folder),
        with_interpreter=False,
        earlier=earlier_inventory(folder),
    )
    edited = _edited_or_unproven(folder, taken)
    edited.update(_edited_texts(folder))
    entries = []
    for entry in taken.entries:
        if entry.path not in edited:
            entries.append(entry)
    return replace(taken, entries=tuple(entries))


def _edited_or_unproven(folder: Path, taken: Inventory) -> set[str]:
    """The paths of an inventory just taken of which nothing shows that they are as they were
    installed.
    """
    names = {package.name for package in taken.packages}
    paths = _unproven(folder, names)
    for entry in _edited_entries(folder, taken):
        paths.add(entry.path)
    return paths


def _packages(folder: Path) -> list[Package]:
    """Every package that has a record in a folder, locked or added."""
    installed = read_prefix(folder)
    packages = []
    for record in installed.conda:
        packages.append(
            Package(record.name, record.version, record.sha256, Layer.CONDA)
        )
    for dist in installed.dists:
        packages.append(Package(dist.name, dist.version, "", Layer.PIP))
    return packages


def _edited_texts(folder: Path) -> list[str]:
    """Of the texts that the set-up writes, those that are not as it writes them, nor as version 2.0
    noted them.
    """
    mark = read_mark(folder)
    if mark is None:
        return []
    prefix = place_of(folder)
    texts = {
        "activate": activate_text(prefix, find_backend(folder)),
        "pip.conf": guard_text(prefix),
    }
    edited = []
    for path, text in texts.items():
        has = file_sha256(folder / path)
        wanted = {hashlib.sha256(text.encode()).hexdigest(), str(mark.other.get(path))}
        if has and has not in wanted:
            edited.append(path)
    return edited


def _edited_entries(folder: Path, inventory: Inventory) -> list[Entry]:
    """The entries that are not as they were recorded, by content; what is missing or not executable
    is not edited.
    """
    entries = inventory.entries_by_path()
    edited = []
    for difference in compare_full(folder, inventory):
        if difference.problem not in (Problem.MISSING, Problem.EXECUTABLE):
            edited.append(entries[difference.path])
    return edited


def _unproven(folder: Path, names: set[str]) -> set[str]:
    """What these packages list without a hash, and is there: nothing shows that it is not edited.

    Without what is generated beyond doubt. A link is only as good as what it leads to.
    """
    installed = read_prefix(folder)
    found = set()
    for record in installed.conda:
        if record.name not in names:
            continue
        for path, sha256 in record.hashes.items():
            if not _is_proven(folder, path, sha256) and not _is_made_by_conda(
                folder, path
            ):
                found.add(path)
    for dist in installed.dists:
        if (
            dist.name not in names
            or dist.manager != Layer.PIP
            or folder not in dist.path.parents
        ):
            continue
        info = dist.path.relative_to(folder).as_posix()
        for entry in record_entries(folder, dist):
            place, _, name = entry.path.rpartition("/")
            generated = place == info and name in GENERATED
            if not generated and not _is_proven(folder, entry.path, entry.sha256):
                found.add(entry.path)
    return {path for path in found if os.path.lexists(folder / path)}


def _is_proven(folder: Path, path: str, sha256: str) -> bool:
    """Whether a hash says what a file should be.

    A file is compared with it elsewhere, a link here.
    """
    if not sha256:
        return False
    return not (folder / path).is_symlink() or file_sha256(folder / path) == sha256


def _is_made_by_conda(folder: Path, path: str) -> bool:
    """Whether a path without a hash is a link within the environment, or the program of an entry
    point.
    """
    place = folder / path
    if place.is_symlink():
        target = os.path.normpath(
            os.path.join(os.path.dirname(path), os.readlink(place))
        )
        return is_inside(target)
    try:
        return ENTRY_POINT.fullmatch(read_regular(place, PROGRAM_LIMIT)) is not None
    except (OSError, FileRefused):
        return False


def _edited_since(folder: Path, inventory: Inventory) -> set[str]:
    """The same by sizes and times; a file whose time alone changed is read."""
    entries = inventory.entries_by_path()
    edited = set()
    touched = []
    for difference in compare_quick(folder, inventory):
        if difference.problem is Problem.TIME:
            touched.append(difference.path)
        elif difference.problem not in (Problem.MISSING, Problem.EXECUTABLE):
            edited.add(difference.path)
    found = hashes(folder / path for path in touched)
    for path in touched:
        if found[folder / path] != entries[path].sha256:
            edited.add(path)
    return edited


def _classify(folder: Path, inventory: Inventory, unfinished: bool) -> _Contents:
    """What lies in an environment, by whose it is."""
    listed = set()
    for entry in inventory.entries:
        if entry.kind is not Kind.FOLDER:
            listed.add(entry.path)
    listed -= _edited_since(folder, inventory)
    listed |= _notes(folder, mark_or_none(folder))
    locked = {package.name for package in inventory.packages}
    added = []
    for package in _packages(folder):
        if package.name not in locked:
            added.append(package)
    if added:
        taken = take_inventory(folder, added, with_interpreter=False)
        edited = _edited_or_unproven(folder, taken)
        for entry in taken.entries:
            if entry.package and entry.path not in edited:
                listed.add(entry.path)
    folders = _list_folders(folder)
    if unfinished:
        listed.update(_links_to_cache(folder, folders))
    return _sort(folders, listed)


def _notes(folder: Path, mark: Mark | None) -> set[str]:
    """The notes of the set-up and of its tools in an environment that are as they were written, so
    far as that is known.

    A file of this name with something else in it is people's.
    """
    found = {MARK}
    for name in NOTES:
        try:
            path = folder / name
            if stat.S_ISREG(path.lstat().st_mode) and _is_note(folder, name, mark):
                found.add(name)
        except (OSError, FileRefused, ValueError, RecursionError):
            continue
    return found


def _is_note(folder: Path, name: str, mark: Mark | None) -> bool:
    path = folder / name
    if name == INVENTORY:
        return inventory_or_none(folder) is not None
    if name == MANIFEST:
        if mark is not None and mark.manifest:
            return file_sha256(path) == mark.manifest
        return {"schema_version", "fingerprint"} <= set(read_json(path))
    if name == NOTE_OF_VERSION_2:
        return bool(VERSION_2_FIELDS & set(read_json(path)))
    if name == ".lock":
        return path.lstat().st_size == 0
    if name == "CACHEDIR.TAG":
        return CACHE_TAG.fullmatch(read_regular(path, TAG_LIMIT)) is not None
    if name == HISTORY:
        is_conda = find_backend(folder) == BackendName.CONDA
        return (
            is_conda
            and CONDA_HISTORY.fullmatch(read_regular(path, HISTORY_LIMIT)) is not None
        )
    return False


@dataclass(frozen=True)
class _Listing:
    """What lies in one folder, as paths relative to the environment. `readable`: whether it could
    be looked into.
    """

    folders: Sequence[str]
    files: Sequence[str]
    readable: bool = True


def _list_folders(folder: Path) -> dict[str, _Listing]:
    """Every folder of an environment ("" is itself) with what lies in it,
    each before those in it.
    """
    listings = {}
    pending = [""]
    while pending:
        inside = pending.pop()
        folders = []
        files = []
        try:
            with os.scandir(folder / inside) as found:
                for entry in found:
                    path = f"{inside}/{entry.name}" if inside else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    else:
                        files.append(path)
        except OSError:
            # Without permission, or deeper than a path can be long: nothing of it is known.
            if not inside:
                raise
            listings[inside] = _Listing((), (), readable=False)
            continue
        listings[inside] = _Listing(folders, files)
        pending += folders
    return listings


def _sort(folders: dict[str, _Listing], listed: set[str]) -> _Contents:
    """Sorts what lies in an environment by whose it is.

    A folder in which all is people's is kept whole; an empty one and bytecode are nobody's.
    """
    contents = _Contents()
    own: dict[str, list[str]] = {}
    shared = set()  # the folders below which something is not people's
    for inside in reversed(list(folders)):
        own[inside] = []
        for path in folders[inside].folders:
            below = own.pop(path)
            whole = not folders[path].readable or (below and path not in shared)
            if whole:
                own[inside].append(path)
                continue
            own[inside] += below
            contents.folders.append(path)
            if path in shared:
                shared.add(inside)
        for path in folders[inside].files:
            if path in listed:
                contents.disposable.append(path)
                shared.add(inside)
            elif is_bytecode(path):
                contents.disposable.append(path)
            else:
                own[inside].append(path)
    contents.own = sorted(own[""])
    _forget_inside(contents)
    return contents


def _forget_inside(contents: _Contents) -> None:
    """Leaves what lies in a folder that is kept whole out of what is deleted."""
    whole = set(contents.own)
    contents.disposable = _outside(whole, contents.disposable)
    contents.folders = _outside(whole, contents.folders)


def _outside(folders: set[str], paths: Iterable[str]) -> list[str]:
    """The paths that lie in none of these folders, at any depth."""
    outside = []
    for path in paths:
        if folders.isdisjoint(_with_parents(os.path.dirname(path))):
            outside.append(path)
    return outside


def _links_to_cache(folder: Path, folders: dict[str, _Listing]) -> list[str]:
    """The files of half installed packages: hard links that lead out of the environment, into the
    cache.
    """
    links: Counter[tuple[int, int]] = Counter()
    found = []
    for inside, listing in folders.items():
        for path in listing.files:
            status = os.lstat(folder / path)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink < 2:
                continue
            links[status.st_dev, status.st_ino] += 1
            if inside.split("/", 1)[0] in PACKAGE_FOLDERS:
                found.append((path, status))
    paths = []
    for path, status in found:
        if links[status.st_dev, status.st_ino] < status.st_nlink:
            paths.append(path)
    return paths


# Moving and deleting


def _move(folder: Path, paths: Iterable[str], target: Path, moved: list[str]) -> None:
    """Moves paths into a folder, under their names; adds those that were there to `moved`."""
    for path in paths:
        source = folder / path
        if not os.path.lexists(source):
            continue
        place = _free_name(target / path)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            _move_path(source, place)
        finally:
            if os.path.lexists(place):
                moved.append(path)


def _move_path(source: Path, place: Path) -> None:
    is_folder = source.is_dir() and not source.is_symlink()
    status = source.lstat()
    if is_folder:
        _make_writable(source)  # its entry `..` changes
    try:
        source.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not is_folder:
            shutil.move(str(source), str(place))  # another disk
            return
        # A folder of an image's lower layer cannot be renamed; what is in it can.
        place.mkdir(mode=0o700)
        for name in os.listdir(source):
            _move_path(source / name, place / name)
        os.chown(place, status.st_uid, status.st_gid)
        os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
        source.rmdir()
    if is_folder:
        place.chmod(stat.S_IMODE(status.st_mode))


def _make_writable(folder: Path) -> None:
    """Lets its owner change a folder that was protected; what is another user's stays as it is."""
    if not os.access(folder, os.W_OK | os.X_OK):
        with contextlib.suppress(OSError):
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IRWXU)


def _free_name(path: Path) -> Path:
    """The path, or with a number where something is there."""
    number = 1
    free = path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def _delete(folder: Path, contents: _Contents) -> bool:
    """Deletes what may be deleted, records last, then the folders; gives whether the folder is
    gone.
    """
    last = [INVENTORY, MARK]
    for path in _records_last(contents.disposable):
        if path not in last:
            _unlink(folder / path)
    for path in contents.folders:
        try:
            os.rmdir(folder / path)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise RemovalRefused(
                    f"{folder / path} is mounted in the environment; unmount it first: umount "
                    f"{folder / path}"
                ) from None
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
    if set(os.listdir(folder)) - set(last):
        return False
    for name in last:
        _unlink(folder / name)
    os.rmdir(folder)
    return True


def _records_last(paths: Iterable[str]) -> Iterator[str]:
    """The paths, with the records of packages at the end: they say whose the other files are."""
    records = []
    for path in paths:
        if path.endswith(
            (".dist-info/RECORD", ".dist-info/METADATA")
        ) or is_in_conda_meta(path):
            records.append(path)
        else:
            yield path
    yield from records


def _unlink(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
