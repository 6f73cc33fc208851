"""The progress line that is shown while something lasts."""

from __future__ import annotations

import shutil
import time
from typing import IO, Callable

from lockedenv.redaction import redact

ON_A_TERMINAL = 0.2  # seconds between two of its states
ELSEWHERE = 15.0
ERASE = "\r\033[K"  # to the beginning of the line, and what stands there is gone
INDENT = 3  # columns that are left free


class Progress:
    """What is going on: on a terminal one line, which is overwritten;
    elsewhere a line every 15 s."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out
        self.terminal = self.out.isatty()
        self.drawn = False
        self.shown = time.monotonic()

    def show(self, text: Callable[[], str], begins: bool = False) -> None:
        """Shows a state, if the last is some time ago. `begins`: a terminal shows it at once."""
        if not self._is_due() and not (begins and self.terminal):
            return
        self.shown = time.monotonic()
        line = redact(text())
        if self.terminal:
            width = shutil.get_terminal_size().columns - INDENT
            print(f"{ERASE}  {line[:width]}", end="", file=self.out, flush=True)
            self.drawn = True
        else:
            print(f"  {line}", file=self.out, flush=True)

    def _is_due(self) -> bool:
        pause = ON_A_TERMINAL if self.terminal else ELSEWHERE
        return time.monotonic() - self.shown >= pause

    def clear(self) -> None:
        """Takes the line away, before something else is printed."""
        if self.drawn:
            print(ERASE, end="", file=self.out, flush=True)
        self.drawn = False
