"""The one way to remove an environment.

Only a path that the inventory has, or that an added package recorded, is deleted, and only while it
is as it was installed. All else is moved to PREFIX.kept-TIME first. Nothing is deleted below a
mount point. `ownership.py` decides which paths are the user's.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Iterable, Iterator

from lockedenv.errors import FULL_DISK_ERRNOS, Stop, disk_text
from lockedenv.prefix.conda_files import is_in_conda_meta
from lockedenv.prefix.inventory import INVENTORY, Inventory, write_inventory
from lockedenv.prefix.kept_files import Kept, kept_folder, make_writable, move_paths
from lockedenv.prefix.mark import MadeBy, Mark, State, mark_text, read_mark, write_mark
from lockedenv.prefix.ownership import (
    FolderContents,
    attributed_inventory,
    classify,
    intact_notes,
    is_unfinished,
    whole_inventory,
)
from lockedenv.prefix.place import Prefix
from lockedenv.spec.environment import MARK

ROUNDS = 5


class RemovalRefused(Stop):
    """A folder is not removed; the message says why and what to do."""


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
        if os.path.lexists(folder / INVENTORY) and INVENTORY not in intact_notes(
            folder, mark
        ):
            # One is written in its place.
            move_paths(folder, [INVENTORY], target, moved)
        inventory = _complete_inventory(folder, mark)
        unfinished = is_unfinished(mark)
        if mark.state is not State.REMOVING:
            _mark_as_removing(folder, mark)
        for _ in range(ROUNDS):
            contents = classify(folder, inventory, unfinished)
            for path in contents.folders:
                make_writable(folder / path)
            move_paths(folder, contents.own, target, moved)
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


def _complete_inventory(folder: Path, mark: Mark) -> Inventory:
    """The inventory, written if there is none: the records that it is made from are deleted before
    the end.
    """
    inventory = whole_inventory(folder, mark)
    if inventory is None:
        inventory = attributed_inventory(folder)
        try:
            write_inventory(folder, inventory)
        except OSError as error:
            if error.errno not in FULL_DISK_ERRNOS:
                raise  # else: after a kill, what no record has any more counts as the user's
    return inventory


def _mark_as_removing(folder: Path, mark: Mark) -> None:
    unfinished = is_unfinished(mark)
    removing = replace(
        mark, state=State.REMOVING, other={**mark.other, "unfinished": unfinished}
    )
    try:
        write_mark(folder, removing)
    except OSError as error:
        if error.errno not in FULL_DISK_ERRNOS:
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


# Deleting


def _delete(folder: Path, contents: FolderContents) -> bool:
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
