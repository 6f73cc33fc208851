"""How the scripts speak: one message for what is wrong and what to do, numbered steps, no secret in either."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import time
from typing import IO, Callable, Iterator, Optional

FULL_DISK = (
    "No space left on device. Free some disk, or name other places with --prefix, --cache and TMPDIR, and run again: "
    "what was downloaded is kept"
)


class Stop(Exception):
    """Ends a script with one clear message: what is wrong, where, and what to do."""


def _tokens(match: "re.Match[str]") -> str:
    """Hides what follows /t/ as conda's channels have it, but in the path of a folder named t on this machine."""
    shown, *others = match[0].split("/t/")
    for rest in others:
        here = os.path.isdir(shown[max(0, shown.find("/")) :] + "/t")
        shown += "/t/" + (rest if here else re.sub(r"^[^/]+", "***", rest))
    return shown


def redact(text: str) -> str:
    """Takes the secrets out of addresses: user:password@, /t/TOKEN/, and whatever follows a question mark."""
    text = re.sub(r"(?<=://)[^/\s]*@", "***@", text)  # greedy: a password may hold an @ itself
    text = re.sub(r"\S*/t/\S+", _tokens, text)
    return re.sub(r"(://[^\s?'\"]+)\?[^\s'\"]+", r"\1?***", text)


def disk_text(error: OSError) -> str:
    """An operating system's error for people: which file, what, and what to do if the disk is full."""
    where = f"{error.filename}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return where + (FULL_DISK if full else f"{error.strerror or error}; mend it and run again")


class Progress:
    """What is going on: on a terminal one line, which is overwritten; elsewhere a line every 15 s."""

    def __init__(self, quiet: bool = False, out: Optional[IO[str]] = None) -> None:
        self.out = out or sys.stderr
        self.quiet, self.terminal, self.drawn, self.shown = quiet, self.out.isatty(), False, time.monotonic()

    def show(self, text: Callable[[], str], begins: bool = False) -> None:
        """`begins`: a terminal shows it at once."""
        if self.quiet or time.monotonic() - self.shown < (0.2 if self.terminal else 15) and not (begins and self.terminal):
            return
        self.shown, self.drawn = time.monotonic(), self.terminal
        line = text()
        wide = shutil.get_terminal_size().columns - 3
        print(
            f"\r\033[K  {line[:wide]}" if self.terminal else f"  {line}",
            end="" if self.terminal else "\n",
            file=self.out,
            flush=True,
        )

    def clear(self) -> None:
        if self.drawn:
            print("\r\033[K", end="", file=self.out, flush=True)
        self.drawn = False


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
