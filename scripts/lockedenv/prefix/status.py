"""The states of an environment at a prefix.

    absent -> making -> installed -> verified
    changed: made from other locks; moved: its scripts name another place

It changes nothing.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

from lockedenv.prefix.mark import MadeBy, State, read_mark
from lockedenv.prefix.place import Prefix, mark_or_none, place_of


class PrefixStatus(str, Enum):
    """The state of a prefix. The values are those of the plan's JSON."""

    ABSENT = "absent"
    MAKING = "making"
    INSTALLED = "installed"
    VERIFIED = "verified"
    CHANGED = "changed"
    MOVED = "moved"
    FOREIGN = "foreign"


def read_status(prefix: Prefix, digest: str = "") -> PrefixStatus:
    """The state of a prefix. `digest`: of the locks that it should be made from; where it is empty,
    they count as unchanged.
    """
    folder = prefix.path
    if not folder.is_dir() or not any(folder.iterdir()):
        for _, unused in prefix.environments():
            if unused.state is State.MAKING:
                return PrefixStatus.MAKING
        return PrefixStatus.ABSENT
    mark = mark_or_none(folder)
    if mark is None or mark.made_by is not MadeBy.SETUP:
        return PrefixStatus.FOREIGN
    if mark.state is not State.INSTALLED:
        return (
            PrefixStatus.MAKING if prefix.owns(folder, mark) else PrefixStatus.FOREIGN
        )
    if find_move(prefix):
        return PrefixStatus.MOVED
    if not prefix.owns(folder, mark):
        return PrefixStatus.FOREIGN
    if digest and mark.locks != digest:
        return PrefixStatus.CHANGED
    return PrefixStatus.VERIFIED if mark.verified else PrefixStatus.INSTALLED


def find_move(prefix: Prefix) -> str:
    """The PREFIX that an environment was made at, which its scripts name; empty where that is this
    one.
    """
    mark = read_mark(prefix.path)
    if mark is None or not mark.path:
        return ""
    if mark.path in (str(prefix.path), str(prefix.public_path)):
        return ""
    try:
        if os.path.samefile(mark.path, prefix.path):
            return ""
    except OSError:
        pass  # nothing is at that path now
    made_at = Path(mark.path)
    if mark.id and made_at.parent.name.endswith(".d"):
        made_at = made_at.parent.with_name(made_at.parent.name[:-2])
    return str(made_at)


def moved_from(folder: Path) -> str:
    """The same for the folder of an environment."""
    return find_move(place_of(folder))


def is_ours(prefix: Prefix) -> bool:
    """Whether the set-up made the environment, and may replace and remove it."""
    return prefix.owns(prefix.path, mark_or_none(prefix.path))
