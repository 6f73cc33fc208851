"""The life of an environment: made, installed, verified, exchanged for its successor, removed.

A successor is made in PREFIX.d while PREFIX leads to the one that is used. The exchange is one
rename of a link; a roll-back changes nothing. The predecessor is removed only after its successor
is verified. Whenever a run is killed, PREFIX is the old environment or the new one, whole, and the
next run continues.

`status.py` has the states, `exchange.py` the rename, and `recovery.py` repairs what a killed run
has left.
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

# A variable of every process that a run starts: the prefix that the run works on.
WORKS_ON = "MAXIMALCAI_WORKS_ON"


def change_mark(prefix: Prefix, **changes: Any) -> Mark:
    """Writes the mark of an environment with these fields changed; gives it. In a folder without a
    mark, the new one says that a user made the folder.
    """
    mark = read_mark(prefix.path)
    if mark is None:
        mark = Mark(MadeBy.PEOPLE, State.INSTALLED, str(prefix.path))
    mark = replace(mark, **changes)
    write_mark(prefix.path, mark)
    return mark


@contextlib.contextmanager
def hold(prefix: Prefix, say: Say) -> Iterator[None]:
    """Holds the lock of a prefix, and first ends the processes that a killed run has left.

    `say` prints who holds the lock, before this waits for it.
    """
    name = prefix.public_path
    refuse_long_name(name, f".{LOCK}")
    with holding(prefix.beside(LOCK), f"the environment {name}", say):
        unfinished = []
        for folder, mark in prefix.environments():
            if mark.state is State.MAKING:
                unfinished.append(folder)
        end_orphans(f"{WORKS_ON}={name}", unfinished)
        os.environ[WORKS_ON] = str(name)  # every process of this run inherits it
        try:
            yield
        finally:
            del os.environ[WORKS_ON]


def list_mounts(prefix: Prefix) -> list[str]:
    """The mount points in the environments that a rebuild would remove, whether they are used,
    unused or unfinished.
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
    mounted = list_mounts(prefix)
    if mounted:
        raise RemovalRefused(
            f"{mounted[0]} is mounted in the environment, which is to be removed; unmount it "
            f"first: umount {mounted[0]}"
        )


@contextlib.contextmanager
def make_successor(
    prefix: Prefix, backend: BackendName, environment: str, say: Say
) -> Iterator[Prefix]:
    """Makes the folder of a new environment with its mark, and gives it to the block, which fills
    it. PREFIX leads to the old environment all the time.

    `environment`: its name as --environment takes it. A block that ends with an error before
    `finish_installation` was called removes the new environment.
    """
    refuse_mounted(prefix)
    used = prefix.used()
    if used == prefix.public_path and not is_ours(Prefix(used)):
        raise Stop(
            f"{used} was not made by this set-up, or is a copy of what it made; move it away, or "
            "choose another --prefix"
        )
    _remove_unused(prefix, used, say)
    new = Prefix(prefix.public_path, prefix.public_path).successor()
    _make_folder(new, backend, environment)
    try:
        yield new
    except BaseException:
        if _state_of(new.path) is State.MAKING:
            # The error that ended the block is reported, not one of this removal.
            with contextlib.suppress(Stop):
                tell_kept(remove_environment(new, new.path), say)
            if used is not None:
                say(f"the old environment is as it was at {prefix.public_path}")
        raise


def _remove_unused(prefix: Prefix, used: Path | None, say: Say) -> None:
    """Removes what killed runs have left: environments that were not made to the end, and those
    that are newer than the used one and did not replace it. An older one is a predecessor and
    stays.
    """
    for folder, mark in prefix.environments():
        unused_successor = folder != used and _is_newer(mark, used)
        if mark.state is not State.INSTALLED or unused_successor:
            tell_kept(remove_environment(prefix, folder), say)
    # A killed run of version 2.0 has left it at PREFIX itself.
    if used == prefix.public_path and _state_of(used) is not State.INSTALLED:
        tell_kept(remove_environment(prefix, used), say)


def _state_of(folder: Path | None) -> State | None:
    mark = mark_or_none(folder) if folder else None
    return mark.state if mark else None


def _is_newer(mark: Mark, used: Path | None) -> bool:
    known = mark_or_none(used) if used else None
    return known is None or mark.made > known.made


def _make_folder(new: Prefix, backend: BackendName, environment: str) -> None:
    """Makes the folder and its mark. A kill between the two leaves an empty folder, which the next
    run removes.
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
    """Writes into the mark that every locked package is installed. On a first installation, PREFIX
    leads to the environment from now on.
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
    """After a verification of `prefix`, decides which environment is used; gives it.

    `passed`: the verification passed. `complete`: everything that was asked for is installed.

        the new one               the used one      is used     the other ones
        failed                    passed            the old     the new one is removed
        failed                    did not pass      the new     stay
        passed, is not complete   in every case     the new     stay
        passed, is complete       in every case     the new     are removed
    """
    if prefix.link is None or not is_ours(prefix):
        return prefix
    used = prefix.used()
    if used is not None and used != prefix.path:
        if not passed and _has_passed(used):
            return _return_to_predecessor(prefix, used, say)
        exchange(prefix, say)
    _settle_predecessors(prefix, passed, complete, say)
    return prefix


def _has_passed(folder: Path) -> bool:
    mark = mark_or_none(folder)
    return mark is not None and mark.passed


def _return_to_predecessor(prefix: Prefix, used: Path, say: Say) -> Prefix:
    """Removes an environment that did not verify; gives the one that is used, which stays."""
    say(
        f"the new environment did not verify; {prefix.public_path} is still the old one. "
        "Removing the new one"
    )
    give_up(prefix, prefix.path, say)
    if used == prefix.public_path:
        return Prefix(used)  # an environment of version 2.0: PREFIX is its folder
    return Prefix(used, prefix.public_path)


def _settle_predecessors(
    prefix: Prefix, passed: bool, complete: bool, say: Say
) -> None:
    """Removes the environments before the used one, or says why they stay."""
    predecessors = []
    for folder, _ in prefix.environments():
        if folder != prefix.path:
            predecessors.append(folder)
    if not predecessors:
        return
    newest = predecessors[-1]
    if not passed:
        say(
            "neither the new environment nor the old one is verified; the old one stays at "
            f"{newest}"
        )
        return
    if not complete:
        say(
            f"the old environment stays at {newest} until all that was asked for is there"
        )
        return
    for folder in predecessors:
        say(f"removing the old environment {folder}")
        give_up(prefix, folder, say)


def give_up(prefix: Prefix, folder: Path, say: Say) -> None:
    """Removes an environment that is no longer used, or says why it stays."""
    links = links_to(prefix, folder)
    if links:
        say(f"{folder} is no longer used and stays: {links[0]} is a link to it")
        return
    try:
        tell_kept(remove_environment(prefix, folder), say)
    except RemovalRefused as error:
        say(f"{folder} is no longer used and stays: {error}")


def links_to(prefix: Prefix, folder: Path) -> list[Path]:
    """Links beside PREFIX that users made to an environment, as `cp -a PREFIX PREFIX.old` does."""
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
    """Writes the outcome of a whole verification into the mark, if that is still the mark of the
    environment that was verified: `made` is its time.

    `added`: the packages that are not in the lock, as requirements. On a read-only disk nothing is
    written.
    """
    mark = mark_or_none(folder)
    if mark is None or mark.state is not State.INSTALLED or mark.made != (made or 0):
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    verdict = RecordedVerdict(passed, now, tuple(redact(line) for line in added))
    with contextlib.suppress(OSError):
        write_mark(folder, mark.with_verdict(level, verdict))
