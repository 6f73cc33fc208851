"""A lock that is a file's, which the kernel lets go of when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Callable

from lockedenv.errors import Stop

HOUR = 3600.0
LOOK_AGAIN = 0.2  # seconds


@contextlib.contextmanager
def holding(
    path: Path, what: str, tell: Callable[[str], None], patience: float = HOUR
) -> Iterator[None]:
    """Holds a file's lock for the block. The file stays.

    Another holder is named to `tell`, and waited for; raises Stop after `patience` seconds.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise Stop(f"{path} is not a regular file, and cannot be locked; remove it")
        with path.open("a+") as file:
            _take_lock(file, what, patience, tell)
            if not _is_file_at(file, path):
                # The one who held it has removed it: others hold the file that is there now.
                continue
            _write_holder(file)
            yield
            return


def _is_file_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(file: IO[str]) -> None:
    """Writes who holds a lock; on a full disk nothing is written."""
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = f"process {os.getpid()} on {platform.node()} since {since}\n"
    with contextlib.suppress(OSError):
        os.write(file.fileno(), text.encode())


def _take_lock(
    file: IO[str], what: str, patience: float, tell: Callable[[str], None]
) -> None:
    deadline = time.monotonic() + patience
    is_told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _read_holder(file)
            if time.monotonic() > deadline:
                message = f"{what} is held by {holder}; wait for it, or stop it, and run again"
                raise Stop(message) from None
            if not is_told:
                tell(f"{what} is held by {holder}; waiting for it")
            is_told = True
            time.sleep(min(LOOK_AGAIN, patience))
        except OSError as error:
            # Some network file systems have no locks: two runs are then only atomic, not serial.
            folder = Path(file.name).parent
            tell(f"{what}: {folder} has no file locks ({error.strerror}); going on")
            return


def _read_holder(file: IO[str]) -> str:
    file.seek(0)
    holder = " ".join(file.read(1000).split())
    return holder if holder else "another process"
