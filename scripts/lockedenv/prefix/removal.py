"""Removes an environment; nothing else does.

A path is deleted only if it is in the inventory, or an added package recorded it, and if it is as
it was installed. Everything else is moved to PREFIX.kept-TIME first. Nothing is deleted below a
mount point. `ownership.py` decides which paths are kept.
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
# What `read_prefix` and `take_inventory` read of a wheel.
RECORD_FILES = (".dist-info/RECORD", ".dist-info/METADATA")


class RemovalRefused(Stop):
    """A folder is not removed; the message has the reason and the remedy."""


def remove_environment(prefix: Prefix, folder: Path) -> Kept | None:
    """Removes an environment of this prefix; gives what was moved out of it first, or None.

    Raises RemovalRefused for a folder that the set-up did not make for this prefix, or with a mount
    in it. A removal that was killed is continued by the next one.
    """
    refuse_removal(prefix, folder)
    mark = read_mark(folder)
    if mark is None:
        raise RemovalRefused(f"{folder} has no mark; it is left as it is")
    target = kept_folder(prefix)
    moved: list[str] = []
    try:
        _keep_and_delete(folder, mark, target, moved)
    except (RemovalRefused, OSError) as error:
        text = disk_text(error) if isinstance(error, OSError) else str(error)
        lines = Kept(target, tuple(moved)).lines()
        raise RemovalRefused("\n".join([text, *lines])) from None
    return Kept(target, tuple(moved)) if moved else None


def _keep_and_delete(folder: Path, mark: Mark, target: Path, moved: list[str]) -> None:
    """Moves what is to be kept to `target`, adds its paths to `moved`, and deletes the rest.

    The order is what a killed removal is continued by. The inventory is there, whole, before the
    mark names the removal, and both are there before anything is deleted. They are deleted last.
    """
    if _has_foreign_inventory(folder, mark):
        move_paths(folder, [INVENTORY], target, moved)  # one is written in its place
    inventory = _complete_inventory(folder, mark)
    unfinished = is_unfinished(mark)
    if mark.state is not State.REMOVING:
        _mark_as_removing(folder, mark)
    for _ in range(ROUNDS):
        contents = classify(folder, inventory, unfinished)
        for path in contents.folders:
            make_writable(folder / path)
        move_paths(folder, contents.own, target, moved)
        refuse_mounts(folder)  # again: one may have been made since
        if _delete(folder, contents):
            return
    raise RemovalRefused(
        f"{folder} cannot be emptied: something writes to it; end that, and run again"
    )


def _has_foreign_inventory(folder: Path, mark: Mark) -> bool:
    """Whether a file with the name of the inventory is there that is not an inventory."""
    if not os.path.lexists(folder / INVENTORY):
        return False
    return INVENTORY not in intact_notes(folder, mark)


def _complete_inventory(folder: Path, mark: Mark) -> Inventory:
    """The inventory of an environment. Writes one where there is none, because the records that it
    is made from are deleted before the removal ends.
    """
    inventory = whole_inventory(folder, mark)
    if inventory is None:
        inventory = attributed_inventory(folder)
        try:
            write_inventory(folder, inventory)
        except OSError as error:
            # On a full disk the removal is done without the file. If it is killed then, the next
            # one keeps the files whose records are deleted.
            if error.errno not in FULL_DISK_ERRNOS:
                raise
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
        # A full disk must not prevent the removal that empties it. A new file has no room there,
        # so the mark is written over the present one.
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
    refuse_mounts(folder)


def refuse_mounts(folder: Path) -> None:
    """Raises RemovalRefused where something is mounted in a folder."""
    mounted = mounts_in(folder)
    if mounted:
        raise RemovalRefused(
            f"{mounted[0]} is mounted in the environment {folder}; unmount it first: umount "
            f"{mounted[0]}"
        )


def mounts_in(folder: Path) -> list[str]:
    """The mount points at a folder or below it."""
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
    """Deletes what may be deleted, then the folders; gives whether the environment is gone.

    The inventory and the mark are deleted last, when nothing else is there.
    """
    last = [INVENTORY, MARK]
    for path in _records_last(contents.disposable):
        if path not in last:
            _unlink(folder / path)
    for path in contents.folders:
        if not _remove_folder(folder, path):
            return False
    if set(os.listdir(folder)) - set(last):
        return False
    for name in last:
        _unlink(folder / name)
    os.rmdir(folder)
    return True


def _remove_folder(folder: Path, path: str) -> bool:
    """Removes an empty folder of an environment; False where it is not empty."""
    try:
        os.rmdir(folder / path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise RemovalRefused(
                f"{folder / path} is mounted in the environment; unmount it first: umount "
                f"{folder / path}"
            ) from None
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _records_last(paths: Iterable[str]) -> Iterator[str]:
    """The paths, with the records of packages at the end: after a kill, the next removal reads
    there which files the packages brought.
    """
    records = []
    for path in paths:
        if path.endswith(RECORD_FILES) or is_in_conda_meta(path):
            records.append(path)
        else:
            yield path
    yield from records


def _unlink(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
