"""The progress line that is shown while something lasts."""

from __future__ import annotations

import shutil
import sys
import time
from typing import IO, Callable, Optional

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
