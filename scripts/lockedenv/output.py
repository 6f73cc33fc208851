"""What a script prints while it works: numbered steps and one progress line."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from typing import IO, Callable, Iterator, Optional

from lockedenv.redaction import redact


class Progress:
    """What is going on: on a terminal one line, which is overwritten; elsewhere a line every 15 s."""

    def __init__(self, quiet: bool = False, out: Optional[IO[str]] = None) -> None:
        self.out = out or sys.stderr
        self.quiet, self.terminal, self.drawn, self.shown = (
            quiet,
            self.out.isatty(),
            False,
            time.monotonic(),
        )

    def show(self, text: Callable[[], str], begins: bool = False) -> None:
        """`begins`: a terminal shows it at once."""
        if (
            self.quiet
            or time.monotonic() - self.shown < (0.2 if self.terminal else 15)
            and not (begins and self.terminal)
        ):
            return
        self.shown, self.drawn = time.monotonic(), self.terminal
        line = redact(text())
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
            print(redact(text), flush=True)

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
