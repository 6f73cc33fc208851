"""How the scripts speak: one message for what is wrong and what to do, numbered steps, no secret in either."""

from __future__ import annotations

import contextlib
import errno
import re
import time
from typing import Iterator

FULL_DISK = (
    "No space left on device. Free some disk, or name other places with --prefix and --cache, and run again: "
    "what was downloaded is kept"
)


class Stop(Exception):
    """Ends a script with one clear message: what is wrong, where, and what to do."""


def redact(text: str) -> str:
    """Takes the secrets out of addresses: user:password@, /t/TOKEN/, and whatever follows a question mark."""
    text = re.sub(r"(?<=://)[^/\s]*@", "***@", text)  # greedy: a password may hold an @ itself
    text = re.sub(r"/t/[^/\s]+", "/t/***", text)
    return re.sub(r"(://[^\s?'\"]+)\?[^\s'\"]+", r"\1?***", text)


def disk_text(error: OSError) -> str:
    """An operating system's error for people: which file, what, and what to do if the disk is full."""
    where = f"{error.filename}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return where + (FULL_DISK if full else f"{error.strerror or error}; mend it and run again")


class Steps:
    """Prints `[2/6] Fetch ...` and how long each step took."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.quiet, self.number, self.started = total, quiet, 0, time.monotonic()

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """A line that belongs to the running step."""
        self.say(f"      {text}")

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        self.number += 1
        self.say(f"[{self.number}/{self.total}] {title}")
        started = time.monotonic()
        yield
        self.note(f"{time.monotonic() - started:.1f} s")

    def end(self, text: str) -> None:
        self.say(f"{text} ({time.monotonic() - self.started:.1f} s in all)")
