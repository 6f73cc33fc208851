"""The life of an environment: made, installed, verified, exchanged for its successor, given up.

A successor is made in PREFIX.d while PREFIX leads to the one that is used. The exchange is one
rename of a link; a roll-back is nothing at all. The predecessor is removed only after its successor
is verified. Kill it anywhere: PREFIX is the old environment or the new one, whole, and the next run
goes on.

The states are in `status.py`, the rename in `exchange.py`, and what a killed run leaves in
`recovery.py`.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, Sequence

from lockedenv.errors import Stop
from lockedenv.host.locking import holding
from lockedenv.host.orphans import end_orphans
from lockedenv.prefix.exchange import exchange, point
from lockedenv.prefix.kept_files import Say, tell_kept
from lockedenv.prefix.mark import (
    MadeBy,
    Mark,
    RecordedVerdict,
    State,
    read_mark,
    write_mark,
)
from lockedenv.prefix.place import LOCK, Prefix, mark_or_none, refuse_long_name
from lockedenv.prefix.removal import RemovalRefused, mounts_in, remove_environment
from lockedenv.prefix.status import is_ours
from lockedenv.redaction import redact
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level

# In the environment of all that a run starts: the prefix that it works on.
WORKS_ON = "MAXIMALCAI_WORKS_ON"


def change_mark(prefix: Prefix, **changes: Any) -> Mark:
    """Writes the mark of an environment with these fields changed; gives it. A folder without one
    becomes the user's.
    """
    mark = read_mark(prefix.path)
    if mark is None:
        mark = Mark(MadeBy.PEOPLE, State.INSTALLED, str(prefix.path))
    mark = replace(mark, **changes)
    write_mark(prefix.path, mark)
    return mark


@contextlib.contextmanager
def hold(prefix: Prefix, say: Say) -> Iterator[None]:
    """Holds the lock of a prefix; what a killed run has left working on it is ended first.

    `say`: is told who else holds it, before it is waited for.
    """
    name = prefix.public_path
    refuse_long_name(name, f".{LOCK}")
    with holding(prefix.beside(LOCK), f"the environment {name}", say):
        unfinished = []
        for folder, mark in prefix.environments():
            if mark.state is State.MAKING:
                unfinished.append(folder)
        end_orphans(f"{WORKS_ON}={name}", unfinished)
        os.environ[WORKS_ON] = str(name)  # all that this run starts inherits it
        try:
            yield
        finally:
            del os.environ[WORKS_ON]


def list_mounts(prefix: Prefix) -> list[str]:
    """What is mounted in the environments that a rebuild would remove: the used one, others,
    unfinished ones.
    """
    folders = [folder for folder, _ in prefix.environments()]
    if prefix.path not in folders and is_ours(prefix):
        folders.append(prefix.path)
    used = prefix.used()
    found = []
    for folder in folders:
        for place in mounts_in(folder):
            if folder == used:
                place = str(prefix.public_path / Path(place).relative_to(folder))
            found.append(place)
    return found


def refuse_mounted(prefix: Prefix) -> None:
    """Raises RemovalRefused where something is mounted in an environment that a rebuild would
    remove.
    """
    for place in list_mounts(prefix):
        raise RemovalRefused(
            f"{place} is mounted in the environment, which is to be removed; unmount it first: "
            f"umount {place}"
        )


@contextlib.contextmanager
def make_successor(
    prefix: Prefix, backend: BackendName, environment: str, say: Say
) -> Iterator[Prefix]:
    """The block makes a new environment in the folder that it is given, in which the mark lies.

    `environment`: its name as --environment takes it. Whatever ends the block before
    `finish_installation` ends the unfinished environment too; PREFIX leads to the old one all the
    time.
    """
    refuse_mounted(prefix)
    used = prefix.used()
    if used == prefix.public_path and not is_ours(Prefix(used)):
        raise Stop(
            f"{used} was not made by this set-up, or is a copy of what it made; move it away, or "
            "choose another --prefix"
        )
    for folder, mark in prefix.environments():
        if mark.state is not State.INSTALLED or (
            folder != used and _is_newer(mark, used)
        ):
            tell_kept(remove_environment(prefix, folder), say)
    if used == prefix.public_path and _state_of(used) is not State.INSTALLED:
        tell_kept(
            remove_environment(prefix, used), say
        )  # what a killed run of version 2.0 has left
    new = Prefix(prefix.public_path, prefix.public_path).successor()
    _make_folder(new, backend, environment)
    try:
        yield new
    except BaseException:
        if _state_of(new.path) is State.MAKING:
            # The error that ended the block is the one to tell.
            with contextlib.suppress(Stop):
                tell_kept(remove_environment(new, new.path), say)
            if used is not None:
                say(f"the old environment is as it was at {prefix.public_path}")
        raise


def _state_of(folder: Path | None) -> State | None:
    mark = mark_or_none(folder) if folder else None
    return mark.state if mark else None


def _is_newer(mark: Mark, used: Path | None) -> bool:
    known = mark_or_none(used) if used else None
    return known is None or mark.made > known.made


def _make_folder(new: Prefix, backend: BackendName, environment: str) -> None:
    """Makes the folder and its mark; a kill between the two leaves an empty folder, which holds
    nothing.
    """
    new.path.mkdir(mode=0o755, parents=True)
    mark = Mark(
        made_by=MadeBy.SETUP,
        state=State.MAKING,
        path=str(new.path),
        id=new.path.name,
        backend=backend,
        made=time.time_ns(),
        environment=environment,
    )
    write_mark(new.path, mark)


def finish_installation(prefix: Prefix, environment: str, locks: str) -> None:
    """Notes that all that is locked was installed. On a first installation PREFIX leads to it from
    now on.
    """
    change_mark(
        prefix,
        state=State.INSTALLED,
        environment=environment,
        locks=locks,
        verdicts={},
        lacking=(),
    )
    if prefix.link and prefix.used() is None:
        point(prefix, prefix.path)


def settle(prefix: Prefix, passed: bool, complete: bool, say: Say) -> Prefix:
    """After a verification of `prefix`, decides which environment is used; gives it. Removes what
    is given up.

    `complete`: all that was asked for is there.
    """
    if prefix.link is None or not is_ours(prefix):
        return prefix
    used = prefix.used()
    if used is not None and used != prefix.path:
        used_mark = mark_or_none(used)
        if not passed and used_mark is not None and used_mark.passed:
            say(
                f"the new environment did not verify; {prefix.public_path} is still the old one. "
                "Removing the new one"
            )
            give_up(prefix, prefix.path, say)
            return Prefix(
                used, None if used == prefix.public_path else prefix.public_path
            )
        exchange(prefix, say)
    predecessors = []
    for folder, _ in prefix.environments():
        if folder != prefix.path:
            predecessors.append(folder)
    if not predecessors:
        return prefix
    if passed and complete:
        for folder in predecessors:
            say(f"removing the old environment {folder}")
            give_up(prefix, folder, say)
    elif passed:
        say(
            f"the old environment stays at {predecessors[-1]} until all that was asked for is there"
        )
    else:
        say(
            "neither the new environment nor the old one is verified; the old one stays at "
            f"{predecessors[-1]}"
        )
    return prefix


def give_up(prefix: Prefix, folder: Path, say: Say) -> None:
    """Removes an environment, or says why it stays."""
    links = links_to(prefix, folder)
    if links:
        say(f"{folder} is no longer used and stays: {links[0]} is a link to it")
        return
    try:
        tell_kept(remove_environment(prefix, folder), say)
    except RemovalRefused as error:
        say(f"{folder} is no longer used and stays: {error}")


def links_to(prefix: Prefix, folder: Path) -> list[Path]:
    """Links beside PREFIX that people made to an environment, as `cp -a PREFIX PREFIX.old` does."""
    found = []
    for path in sorted(prefix.public_path.parent.iterdir()):
        if path.is_symlink() and path != prefix.public_path:
            target = path.parent / os.readlink(path)
            if target.parent.resolve() / target.name == folder:
                found.append(path)
    return found


def record_verdict(
    folder: Path,
    level: Level,
    passed: bool,
    made: int | None,
    added: Sequence[str] = (),
) -> None:
    """Notes the outcome of a whole verification, if the mark is still that of the environment
    `made` then.

    `added`: what was installed beyond the lock, as requirements. On a read-only disk nothing is
    noted.
    """
    mark = mark_or_none(folder)
    if mark is None or mark.state is not State.INSTALLED or mark.made != (made or 0):
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    verdict = RecordedVerdict(passed, now, tuple(redact(line) for line in added))
    with contextlib.suppress(OSError):
        write_mark(folder, mark.with_verdict(level, verdict))
