"""The life of an environment: made, installed, verified, exchanged for its successor, removed.

    absent -> making -> installed -> verified
    changed: made from other locks; moved: its scripts name another place

A successor is made in PREFIX.d while PREFIX leads to the one that is used. The exchange is one
rename of a link; a roll-back is nothing at all. The predecessor is removed only after its successor
is verified. Kill it anywhere: PREFIX is the old environment or the new one, whole, and the next run
goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import time
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from lockedenv.errors import Stop
from lockedenv.host.locking import holding
from lockedenv.host.orphans import end_orphans
from lockedenv.prefix.kept_files import Kept
from lockedenv.prefix.mark import (
    MadeBy,
    Mark,
    RecordedVerdict,
    State,
    read_mark,
    write_mark,
)
from lockedenv.prefix.place import (
    ID,
    LOCK,
    Prefix,
    linked_environment,
    mark_or_none,
    place_of,
    refuse_long_name,
)
from lockedenv.prefix.removal import (
    RemovalRefused,
    mounts_in,
    refuse_mounts,
    remove_environment,
)
from lockedenv.redaction import redact
from lockedenv.spec.environment import MARK
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level

# In the environment of all that a run starts: the prefix that it works on.
WORKS_ON = "MAXIMALCAI_WORKS_ON"
AT_FDCWD = -100
UNPACKED = (
    "maximalcai-uv",
    "maximalcai-pkgs",
)  # what is unpacked for an environment while it is made
RENAME_EXCHANGE = 2  # linux/fs.h


class Status(str, Enum):
    """What lies at a prefix. The values are those of the plan's JSON."""

    ABSENT = "absent"
    MAKING = "making"
    INSTALLED = "installed"
    VERIFIED = "verified"
    CHANGED = "changed"
    MOVED = "moved"
    FOREIGN = "foreign"


Say = Callable[[str], None]


def read_status(prefix: Prefix, digest: str = "") -> Status:
    """What lies at a prefix. `digest`: of the locks that it should be made from; empty: they count
    as unchanged.
    """
    folder = prefix.path
    if not folder.is_dir() or not any(folder.iterdir()):
        for _, unused in prefix.environments():
            if unused.state is State.MAKING:
                return Status.MAKING
        return Status.ABSENT
    mark = mark_or_none(folder)
    if mark is None or mark.made_by is not MadeBy.SETUP:
        return Status.FOREIGN
    if mark.state is not State.INSTALLED:
        return Status.MAKING if prefix.owns(folder, mark) else Status.FOREIGN
    if find_move(prefix):
        return Status.MOVED
    if not prefix.owns(folder, mark):
        return Status.FOREIGN
    if digest and mark.locks != digest:
        return Status.CHANGED
    return Status.VERIFIED if mark.verified else Status.INSTALLED


def find_move(prefix: Prefix) -> str:
    """The PREFIX that an environment was made at, if that is another one: its scripts name it.
    Empty if not.
    """
    mark = read_mark(prefix.path)
    if (
        mark is None
        or not mark.path
        or mark.path in (str(prefix.path), str(prefix.public_path))
    ):
        return ""
    try:
        if os.path.samefile(mark.path, prefix.path):
            return ""
    except OSError:
        pass  # nothing is there any more
    made_at = Path(mark.path)
    if mark.id and made_at.parent.name.endswith(".d"):
        made_at = made_at.parent.with_name(made_at.parent.name[:-2])
    return str(made_at)


def moved_from(folder: Path) -> str:
    """The path that the environment in a folder was made at, if that is
    another one; empty if not.
    """
    return find_move(place_of(folder))


def is_ours(prefix: Prefix) -> bool:
    """Whether the set-up made the environment, and may replace and remove it."""
    return prefix.owns(prefix.path, mark_or_none(prefix.path))


def change_mark(prefix: Prefix, **changes: Any) -> Mark:
    """Writes the mark of an environment with these fields changed; gives it. A folder without one
    becomes people's.
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


def recover(prefix: Prefix, say: Say) -> None:
    """Puts right what a killed run has left, and says what it did. Hold the lock.

    What is mounted in a folder keeps it from being removed; then nothing in it is touched.
    """
    _drop_unused_links(prefix)
    _drop_begun_folders(prefix)
    for unpacked in unpacked_folders(prefix):
        shutil.rmtree(unpacked, ignore_errors=True)
    if prefix.used() is None:
        folder = _best_installed(prefix)
        if folder is not None:
            point(prefix, folder)
            say(f"{prefix.public_path} leads to the environment {folder} again")
    used = prefix.used()
    used_mark = mark_or_none(used) if used else None
    for folder, mark in prefix.environments():
        if folder in (used, prefix.path):
            continue
        over = mark.state is not State.INSTALLED
        # An older one is a predecessor; it stays until its successor is verified.
        older = used_mark is not None and mark.made < used_mark.made
        if over or (older and used_mark is not None and used_mark.verified):
            give_up(prefix, folder, say)


def _best_installed(prefix: Prefix) -> Path | None:
    """The environment in PREFIX.d that PREFIX should lead to: a verified one, else the newest."""
    best = None
    for folder, mark in prefix.environments():
        if mark.state is State.INSTALLED and not find_move(
            Prefix(folder, prefix.public_path)
        ):
            if best is None or mark.verified >= best[1].verified:
                best = (folder, mark)
    return best[0] if best else None


def _drop_unused_links(prefix: Prefix) -> None:
    """Removes links that a run left in PREFIX.d when it was killed between
    making and renaming one.
    """
    if not prefix.container.is_dir():
        return
    for path in prefix.container.iterdir():
        ours = re.fullmatch(
            rf"\.{re.escape(prefix.public_path.name)}\.[0-9a-f]{{16}}", path.name
        )
        if ours and path.is_symlink():
            path.unlink()


def _drop_begun_folders(prefix: Prefix) -> None:
    """Removes a folder of an environment in which a killed run had not even written the mark."""
    if not prefix.container.is_dir():
        return
    for folder in prefix.container.iterdir():
        if folder.is_symlink() or not folder.is_dir() or not ID.fullmatch(folder.name):
            continue
        # What is mounted there, or is another user's, stays.
        with contextlib.suppress(OSError):
            found = list(folder.iterdir())
            # What `write_atomically` calls a mark that is not whole yet.
            if all(path.name.startswith(f".{MARK}.") for path in found):
                for path in found:
                    path.unlink()
                folder.rmdir()


def unpacked_folders(prefix: Prefix) -> list[Path]:
    """What was unpacked to make environments of this prefix, which may be gone. Not what something
    is mounted in.
    """
    found = [prefix.beside(suffix) for suffix in UNPACKED]
    if prefix.container.is_dir():
        for path in sorted(prefix.container.iterdir()):
            name, _, suffix = path.name.partition(".")
            if ID.fullmatch(name) and suffix in UNPACKED:
                found.append(path)
    removable = []
    for path in found:
        if is_own_folder(path) and not mounts_in(path):
            removable.append(path)
    return removable


def is_own_folder(path: Path) -> bool:
    """Whether a folder is there and is this user's; all users may be able to write beside it."""
    return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid()


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
            _tell(remove_environment(prefix, folder), say)
    if used == prefix.public_path and _state_of(used) is not State.INSTALLED:
        _tell(
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
                _tell(remove_environment(new, new.path), say)
            if used is not None:
                say(f"the old environment is as it was at {prefix.public_path}")
        raise


def _tell(kept: Kept | None, say: Say) -> None:
    if kept:
        for line in kept.lines():
            say(line)


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
        _tell(remove_environment(prefix, folder), say)
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


# The exchange


def point(prefix: Prefix, folder: Path) -> None:
    """Makes PREFIX a link to an environment in PREFIX.d, by one rename. Raises Stop where a folder
    is in its place.
    """
    name = prefix.public_path
    if name.is_dir() and not name.is_symlink():
        try:
            name.rmdir()  # an empty folder holds nothing to lose
        except OSError:
            raise Stop(
                f"{name} appeared while the environment was made, and is not empty: move it away, "
                "and run again"
            ) from None
    _link(prefix, folder).rename(name)


def _link(prefix: Prefix, folder: Path) -> Path:
    """A link to an environment, in PREFIX.d, with the text that it needs at PREFIX."""
    link = prefix.container / f".{prefix.public_path.name}.{secrets.token_hex(8)}"
    link.symlink_to(Path(prefix.container.name, folder.name))
    return link


def exchange(prefix: Prefix, say: Say) -> None:
    """Makes PREFIX the environment `prefix.path`."""
    name = prefix.public_path
    if linked_environment(name) or not name.exists():
        point(prefix, prefix.path)
        return
    # An environment of version 2.0: a folder at PREFIX. It gets the id of the place that it is
    # moved to.
    old = prefix.successor()
    mark = read_mark(name)
    if mark is None or not prefix.owns(name, mark):
        raise Stop(
            f"{name} is not an environment of this set-up any more; move it away, and run again"
        )
    refuse_mounts(prefix, name)
    write_mark(name, replace(mark, id=old.path.name))
    link = _link(prefix, prefix.path)
    link.rename(old.path)
    if _swap(name, old.path):
        return
    old.path.unlink()
    # The disk cannot exchange two names, or the folder is of an image's lower layer.
    _tell(remove_environment(prefix, name), say)
    point(prefix, prefix.path)


def _swap(first: Path, second: Path) -> bool:
    """Exchanges two paths in one step; False where this disk cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:
        return False
    paths = (os.fsencode(first), os.fsencode(second))
    status = renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE)
    return bool(status == 0)


# Verdicts


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


# A place where an environment can be


def refuse_place(prefix: Prefix, cache: Path) -> None:
    """Raises Stop for a place where no environment can work."""
    name = prefix.public_path
    refuse_long_name(name)
    bad = _unusable_characters(name)
    if bad:
        raise Stop(
            f"{name}: the prefix has {' '.join(map(repr, bad))} in its name, which PATH or a "
            "script cannot hold; choose another --prefix"
        )
    if os.path.ismount(name) and not name.is_symlink():
        raise Stop(
            f"{name} is a mount point, which cannot be replaced; choose a folder in it, such as "
            f"--prefix {name / 'maximalcai'}"
        )
    container = prefix.container
    if os.path.lexists(container) and (
        container.is_symlink() or not container.is_dir()
    ):
        raise Stop(
            f"{container} is not a folder, and the environments would lie in it; move it away, or "
            "choose another --prefix"
        )
    if os.path.ismount(container):
        raise Stop(
            f"{container} is a mount point, and {name} could not lead into it; choose a folder in "
            f"it, such as --prefix {container / 'maximalcai'}"
        )
    for folder in (name, container, prefix.path):
        if folder in [cache, *cache.parents]:
            raise Stop(
                f"the cache {cache} lies in the prefix {folder}, and would be removed with it; "
                "choose another with --cache"
            )
    if name.exists() and not name.is_dir():
        raise Stop(f"{name} is there and is not a folder; choose another --prefix")
    if name.is_symlink() and not name.exists() and not linked_environment(name):
        raise Stop(
            f"{name} is a symbolic link that leads nowhere; remove it, or choose another --prefix"
        )


def _unusable_characters(path: Path) -> list[str]:
    """The characters of a path that PATH or a script cannot hold, sorted."""
    found = set()
    for character in str(path):
        if character in ":'\"\\$`;&|<>*?" or not character.isprintable():
            found.add(character)
    return sorted(found)
