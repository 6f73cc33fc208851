"""Moves the user's files out of an environment, to PREFIX.kept-TIME, under the names that they had.

`ownership.py` and `edits.py` decide which they are. The environment itself is removed by
`removal.py` alone.
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


def tell_kept(kept: Kept | None, say: Say) -> None:
    """Says what was moved out of an environment, and where it lies; nothing where nothing was."""
    if kept:
        for line in kept.lines():
            say(line)


def keep_edited(prefix: Prefix, names: Iterable[str]) -> Kept | None:
    """Moves the edited files of these packages out of the environment, before they are installed
    again.

    So are links that people made in the place of a package's folder: an installer would delete
    through them.
    """
    wanted = set(names)
    packages = []
    for package in recorded_packages(prefix.path):
        if package.name in wanted:
            packages.append(package)
    taken = take_inventory(prefix.path, packages)
    edited = edited_entries(prefix.path, taken)
    links = []
    for entry in edited:
        if entry.kind is PathKind.FOLDER and (prefix.path / entry.path).is_symlink():
            links.append(entry.path)
    unproven = unproven_paths(prefix.path, wanted)
    whole = whole_inventory(prefix.path, read_mark(prefix.path))
    if whole is not None and unproven:
        unchanged = {entry.path for entry in whole.entries}
        unproven -= unchanged - edited_since(prefix.path, whole)
    python_folders = set()
    for site in read_prefix(prefix.path).sites:
        python_folders.update(with_parents(site.relative_to(prefix.path).as_posix()))
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
            continue  # what it leads to is the user's
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
        make_writable(source)  # its entry `..` changes
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


def make_writable(folder: Path) -> None:
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
