"""What a run that was killed with -9 has left working."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path


def end_orphans(entry: str, folders: Sequence[Path] = ()) -> None:
    """Ends what a run that was killed with -9 has left working.

    That is what has `entry` (NAME=value) in its environment; and, since micromamba starts programs
    with an empty one, what runs a program of one of the `folders`, or works in one with an empty
    environment. Not what this program was started by, and not what has other mounts: in another
    container the same path is another place.
    What cannot be read is another user's, and not ours.
    """
    deadline = time.monotonic() + 5
    ancestors = _ancestors()
    while time.monotonic() < deadline:
        found = [pid for pid in _process_ids() if pid not in ancestors]
        orphans = [
            pid for pid in found if _is_orphan(Path("/proc", str(pid)), entry, folders)
        ]
        if not orphans:
            return
        for pid in orphans:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _process_ids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _ancestors() -> list[int]:
    """This process and those that it was started by, as far as /proc shows them.

    hidepid hides those of others.
    """
    found = [os.getpid(), os.getppid()]
    while found[-1] > 1:
        try:
            text = Path(f"/proc/{found[-1]}/status").read_text()
        except OSError:
            break
        parent = re.search(r"^PPid:\s+(\d+)", text, re.M)
        if not parent:
            break
        found.append(int(parent[1]))
    return found


def _is_orphan(process: Path, entry: str, folders: Sequence[Path]) -> bool:
    try:
        if os.readlink(process / "ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            return False
        environ = (process / "environ").read_bytes()
        if entry.encode() in environ.split(b"\0"):
            return True
        program = os.readlink(process / "exe")
        working_folder = os.readlink(process / "cwd")
    except OSError:
        return False
    for folder in folders:
        if f"{program}/".startswith(f"{folder}/"):
            return True
        if not environ and f"{working_folder}/".startswith(f"{folder}/"):
            return True
    return False
