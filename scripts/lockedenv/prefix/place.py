"""The place of an environment. The user names PREFIX; the files are in PREFIX.d/ID, and PREFIX is a
link to that.

    PREFIX      -> PREFIX.d/1f3a9c2e      the environment that is used
    PREFIX.d/1f3a9c2e                     made once at this path, never renamed
    PREFIX.d/77b0d4e1                     a successor that is being made, or a predecessor

A folder at PREFIX itself is an environment that a user made, or one of version 2.0; the scripts
change it in place.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from lockedenv.errors import Stop
from lockedenv.prefix.conda_files import CONDA_META, HISTORY
from lockedenv.prefix.mark import MadeBy, Mark, MarkError, State, read_mark
from lockedenv.spec.layers import BackendName

ID_BYTES = 4
ID = re.compile("[0-9a-f]{8}")  # the name of an environment in PREFIX.d
# PREFIX.d/ID has this many characters more than PREFIX.
LONGER_BY = len(".d/") + 2 * ID_BYTES
NAME_MAX = 255  # linux/limits.h
LOCK = "maximalcai-lock"  # beside PREFIX
# The end of the longest name beside PREFIX.
LONGEST_BESIDE = ".maximalcai-extras-20260101-000000.txt"
LINKS = 40  # as many as Linux follows


@dataclass(frozen=True)
class Prefix:
    """A place for an environment. `path`: the folder of its files, absolute, without a symbolic
    link.

    `link`: PREFIX as the user names it, where that is or will be a link to `path`; None for a plain
    folder.
    """

    path: Path
    link: Path | None = None

    @property
    def public_path(self) -> Path:
        """PREFIX as the user names it: for messages, `activate`, and the names beside it."""
        return self.link or self.path

    @property
    def container(self) -> Path:
        """PREFIX.d, in which the environments lie side by side."""
        return self.beside("d")

    def beside(self, suffix: str) -> Path:
        """A path beside PREFIX, under its name: its lock, its lists, what is unpacked for it."""
        return self.public_path.with_name(f"{self.public_path.name}.{suffix}")

    def used(self) -> Path | None:
        """The folder that PREFIX is, or leads to; None where there is
        nothing, or an empty folder.
        """
        name = self.public_path
        folder = linked_environment(name) or name
        if not folder.is_dir():
            return None
        if folder == name and not any(name.iterdir()):
            return None
        return folder

    def owns(self, folder: Path, mark: Mark | None) -> bool:
        """Whether the set-up made a folder for this prefix. A copy of one is the user's."""
        if mark is None or mark.made_by is not MadeBy.SETUP or folder.is_symlink():
            return False
        if folder.parent == self.container:
            named = mark.id == folder.name
        else:
            named = self._is_of_version_2(folder, mark)
        return named and not self._is_copy(folder, mark)

    def _is_of_version_2(self, folder: Path, mark: Mark) -> bool:
        """Whether a folder is PREFIX itself, as version 2.0 made it, which had no PREFIX.d.

        It has no id. Where an exchange was killed it may have one already: that of its place in
        PREFIX.d, to which it was to be moved.
        """
        if folder != self.public_path:
            return False
        return not mark.id or mark.path == str(self.public_path)

    def _is_copy(self, folder: Path, mark: Mark) -> bool:
        made_at = Path(mark.path)
        if not mark.path or made_at in (folder, self.public_path):
            return False
        try:
            return not os.path.samefile(made_at, folder)
        except OSError:
            return False  # nothing is at that path now: the folder was moved

    def environments(self) -> list[tuple[Path, Mark]]:
        """The environments of this prefix in PREFIX.d that the set-up made, the oldest first, with
        their marks.
        """
        found = []
        if not self.container.is_dir():
            return []
        for folder in sorted(self.container.iterdir()):
            mark = mark_or_none(folder)
            if mark is not None and self.owns(folder, mark):
                found.append((folder, mark))
        found.sort(key=lambda pair: pair[1].made)
        return found

    def successor(self) -> Prefix:
        """A place in PREFIX.d for a new environment; nothing is there yet."""
        while True:
            folder = self.container / secrets.token_hex(ID_BYTES)
            if not os.path.lexists(folder):
                return Prefix(folder, self.public_path)


def place_of(folder: Path) -> Prefix:
    """The place that the folder of an environment belongs to; `folder` may be PREFIX, the link."""
    target = linked_environment(folder)
    if target is not None:
        return Prefix(target, folder)
    if folder.parent.name.endswith(".d"):
        place = Prefix(folder, folder.parent.with_name(folder.parent.name[:-2]))
        if place.owns(folder, mark_or_none(folder)):
            return place
    return Prefix(folder)


def mark_or_none(folder: Path) -> Mark | None:
    """The mark in a folder; None where there is none, or a damaged one: that folder is not
    changed.
    """
    try:
        return read_mark(folder)
    except MarkError:
        return None


def linked_environment(name: Path) -> Path | None:
    """The path in PREFIX.d that PREFIX links to, which may not exist; None where PREFIX is no such
    link.
    """
    if not name.is_symlink():
        return None
    target = name.parent / os.readlink(name)
    target = target.parent.resolve() / target.name
    if target.parent != name.with_name(f"{name.name}.d") or not ID.fullmatch(
        target.name
    ):
        return None
    return target


def refuse_long_name(name: Path, beside: str = LONGEST_BESIDE) -> None:
    """Raises Stop for a PREFIX whose name is too long for the names beside it, which are its own
    followed by `beside`.
    """
    has = len(os.fsencode(name.name))
    longest = _longest_name(name.parent) - len(beside)
    if has > longest:
        raise Stop(
            f"the name of the prefix has {has} bytes and may have at most {longest}, because its "
            "lock and lists lie beside it under longer names; choose a shorter one, such as "
            f"--prefix {name.with_name('maximalcai')}"
        )


def _longest_name(folder: Path) -> int:
    """How many bytes the name of a file may have in a folder, which need not exist yet."""
    for place in (folder, *folder.parents):
        try:
            return os.pathconf(place, "PC_NAME_MAX")
        except OSError:
            continue
    return NAME_MAX


def find_prefix(path: Path) -> Prefix:
    """The place that --prefix names, through links that the user made: that of the environment to
    work on.

    That is a successor which is installed and was not yet verified, where a run was killed; else
    the one that PREFIX leads to. Raises Stop for links that lead in a circle.
    """
    place = Path(os.path.abspath(path.expanduser()))
    if len(os.fsencode(place.name)) > NAME_MAX:
        refuse_long_name(place)  # no path of this name can be read
    for _ in range(LINKS):
        place = place.parent.resolve() / place.name
        known = place_of(place)
        if known.link is not None and known.link != place:
            return known
        if not place.is_symlink():
            return _to_work_on(place)
        if linked_environment(place):
            return _to_work_on(place)
        place = place.parent / os.readlink(place)
    raise Stop(f"--prefix {path}: its symbolic links lead in a circle; name another")


def find_name(folder: Path, to_work_on: bool = True) -> Path:
    """PREFIX, where that leads to this environment; else its folder. For commands that users copy.

    `to_work_on`: it is enough that the scripts take this environment for --prefix PREFIX.
    """
    place = place_of(folder)
    if place.link is None:
        return folder
    if linked_environment(place.public_path) == place.path:
        return place.public_path
    if to_work_on and _to_work_on(place.public_path).path == place.path:
        return place.public_path
    return folder


def _to_work_on(name: Path) -> Prefix:
    """The place to work on, of a PREFIX: a successor that was installed and not yet used, or else
    what is used. What lies at PREFIX itself, or is to be made there, is a plain folder.
    """
    prefix = Prefix(name, name)
    used = prefix.used()
    used_mark = None
    if used is not None:
        used_mark = mark_or_none(used)
    if used == name and used_mark is None:
        return Prefix(name)  # a folder that a user made
    successor = _find_successor(prefix, used, used_mark)
    if successor is not None:
        return Prefix(successor, name)
    if used is None or used == name:
        return Prefix(name)
    return Prefix(used, name)


def _find_successor(
    prefix: Prefix, used: Path | None, used_mark: Mark | None
) -> Path | None:
    """The newest installed environment of a prefix, if it was made after the used one.

    Where nothing is used, or its mark cannot be read, that is the newest one of all.
    """
    for folder, mark in reversed(prefix.environments()):
        if mark.state is not State.INSTALLED or folder == used:
            continue
        if used_mark is None or mark.made > used_mark.made:
            return folder
    return None


def find_backend(folder: Path) -> BackendName:
    """The backend that an environment was made by, from its mark, else from what is in it.

    An empty folder conda-meta proves nothing: a user can make one in a virtual environment.
    """
    mark = mark_or_none(folder)
    if mark is not None and mark.backend:
        return mark.backend
    records = list((folder / CONDA_META).glob("*.json"))
    for record in records:
        if record.name.startswith("python-3"):
            return BackendName.CONDA
    if (folder / "pyvenv.cfg").exists():
        return BackendName.PIP
    if records or (folder / HISTORY).is_file():
        return BackendName.CONDA
    return BackendName.PIP
