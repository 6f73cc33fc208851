"""Moves the user's files out of an environment, to PREFIX.kept-TIME, under the names that they had.

`ownership.py` and `edits.py` decide which files are the user's. `removal.py` alone removes an
environment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable

from lockedenv.errors import Stop, printable
from lockedenv.prefix.edits import edited_entries, edited_since, unproven_paths
from lockedenv.prefix.inventory import PathKind
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.mark import read_mark
from lockedenv.prefix.ownership import recorded_packages, whole_inventory, with_parents
from lockedenv.prefix.place import Prefix
from lockedenv.prefix.records import read_prefix

SHOWN = 20

Say = Callable[[str], None]


@dataclass(frozen=True)
class Kept:
    """The paths that were moved out of an environment, relative to it, and the folder that they are
    in now.
    """

    folder: Path
    names: tuple[str, ...]

    def lines(self) -> list[str]:
        """The lines that name what was moved, to be printed; none where nothing was moved."""
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


def tell_kept(kept: Kept | None, say: Say) -> None:
    """Prints with `say` what was moved out of an environment, and where it is now."""
    if kept:
        for line in kept.lines():
            say(line)


@dataclass(frozen=True)
class _Edits:
    """What an installer would overwrite or delete in the place of some packages, relative to the
    environment.

    `edited`: files that differ from the records of their packages. `unproven`: files without a
    recorded hash that may be edited. `links`: links in the place of folders of packages.
    """

    edited: frozenset[str]
    unproven: frozenset[str]
    links: frozenset[str]

    def outermost_links(self) -> list[str]:
        """The links that do not lie behind another one, sorted."""
        return self._in_place(self.links)

    def files(self) -> list[str]:
        """The files that do not lie behind a link, sorted. Behind one are files of the user, which
        stay.
        """
        return self._in_place(self.edited | self.unproven)

    def _in_place(self, paths: Iterable[str]) -> list[str]:
        return sorted(path for path in paths if not _lies_below(path, self.links))


def keep_edited(prefix: Prefix, names: Iterable[str]) -> Kept | None:
    """Moves the edited files of these packages out of the environment, before they are installed
    again.

    A link that the user made in the place of a package's folder is moved too: an installer would
    delete through it. Raises Stop, and moves nothing, where the packages of the environment lie
    behind a link.
    """
    edits = _find_edits(prefix.path, set(names))
    links = edits.outermost_links()
    _refuse_links_to_packages(prefix, links)
    return keep(prefix, [*edits.files(), *links])


def _find_edits(folder: Path, names: set[str]) -> _Edits:
    """What is edited, or not proven to be unedited, in the packages of these names."""
    packages = []
    for package in recorded_packages(folder):
        if package.name in names:
            packages.append(package)
    edited = set()
    links = set()
    taken = take_inventory(folder, packages)
    for entry in edited_entries(folder, taken):
        if entry.kind is PathKind.FOLDER and (folder / entry.path).is_symlink():
            links.add(entry.path)
        # RECORD stays in its place: the installer reads there which files it replaces.
        elif entry.package in names and not entry.path.endswith(".dist-info/RECORD"):
            edited.add(entry.path)
    unproven = unproven_paths(folder, names)
    if unproven:
        unproven -= _unedited_paths(folder)
    return _Edits(frozenset(edited), frozenset(unproven), frozenset(links))


def _unedited_paths(folder: Path) -> set[str]:
    """The paths that are as the inventory of the environment has them; none without one."""
    inventory = whole_inventory(folder, read_mark(folder))
    if inventory is None:
        return set()
    paths = {entry.path for entry in inventory.entries}
    return paths - edited_since(folder, inventory)


def _refuse_links_to_packages(prefix: Prefix, links: Iterable[str]) -> None:
    """Raises Stop for a link in the place of `bin` or of a folder that holds site-packages."""
    needed = {"bin"}
    for site in read_prefix(prefix.path).sites:
        needed.update(with_parents(site.relative_to(prefix.path).as_posix()))
    for link in links:
        if link in needed:
            raise Stop(
                f"{prefix.path / link} is a link, and the packages of the environment lie behind "
                "it; move it away, and make the environment anew with --force"
            )


def _lies_below(path: str, folders: Iterable[str]) -> bool:
    """Whether a relative path is inside one of these folders."""
    for folder in folders:
        if path.startswith(f"{folder}/"):
            return True
    return False


def keep(prefix: Prefix, paths: Iterable[str]) -> Kept | None:
    """Moves paths of an environment, relative to it, to PREFIX.kept-TIME."""
    target = kept_folder(prefix)
    moved: list[str] = []
    move_paths(prefix.path, sorted(paths), target, moved)
    return Kept(target, tuple(moved)) if moved else None


def kept_folder(prefix: Prefix) -> Path:
    """A name for a new PREFIX.kept-TIME."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = prefix.beside(f"kept-{stamp}")
    number = 1
    while os.path.lexists(folder):
        number += 1
        folder = prefix.beside(f"kept-{stamp}-{number}")
    return folder


# Moving


def move_paths(
    folder: Path, paths: Iterable[str], target: Path, moved: list[str]
) -> None:
    """Moves paths into a folder, under their names; adds those that were moved to `moved`."""
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
    """Moves a file, a link or a folder to a path where nothing is, with its mode."""
    if source.is_symlink() or not source.is_dir():
        _move_file(source, place)
        return
    mode = stat.S_IMODE(source.lstat().st_mode)
    make_writable(source)  # its entry `..` changes
    try:
        source.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_folder_by_parts(source, place)
    place.chmod(mode)


def _move_file(source: Path, place: Path) -> None:
    try:
        source.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(str(source), str(place))  # another disk


def _move_folder_by_parts(source: Path, place: Path) -> None:
    """Moves a folder of an image's lower layer: it cannot be renamed, but what is in it can."""
    status = source.lstat()
    place.mkdir(mode=0o700)
    for name in os.listdir(source):
        _move_path(source / name, place / name)
    os.chown(place, status.st_uid, status.st_gid)
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    source.rmdir()


def make_writable(folder: Path) -> None:
    """Gives the owner of a folder all rights on it; a folder of another user stays as it is."""
    if not os.access(folder, os.W_OK | os.X_OK):
        with contextlib.suppress(OSError):
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IRWXU)


def _free_name(path: Path) -> Path:
    """The path; with a number where it exists."""
    number = 1
    free = path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
