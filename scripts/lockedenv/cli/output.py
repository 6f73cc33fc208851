"""What a script prints while it works: one line a step. The Reporter of the command line."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from typing import IO, Callable, Iterator

from lockedenv.redaction import redact

ERASE = "\r\033[K"  # to the beginning of the line, and what stands there is gone
ON_A_TERMINAL = 0.2  # seconds between two states of the progress
FIRST_PAUSE = 15.0  # seconds, elsewhere; each pause is twice the one before
LONGEST_PAUSE = 600.0
TITLE_WIDTH = 22
INDENT = "      "


class Steps:
    """Prints `[2/6] Fetch uv   uv 0.13.9   0.1 s`, a line for each step.

    On a terminal the line shows what is going on until the step is over. Elsewhere the title is
    printed when the step begins and the rest when it ends; a step that lasts says so in lines of
    their own, in growing pauses. `verbose`: every detail has a line.
    """

    def __init__(
        self, total: int, quiet: bool, verbose: bool = False, out: IO[str] | None = None
    ) -> None:
        self._out = out or sys.stdout
        self.total = total
        self._quiet = quiet
        self._verbose = verbose and not quiet
        self._terminal = self._out.isatty()
        self._number = 0
        self._started = time.monotonic()
        self._title = ""  # of the running step
        self._outcomes: list[str] = []
        self._on_title_line = False  # the title is printed, and its line is not ended
        self._drawn = False  # a terminal shows the progress
        self._shown = self._started
        self._pause = FIRST_PAUSE

    @property
    def quiet(self) -> bool:
        return self._quiet

    @property
    def verbose(self) -> bool:
        return self._verbose

    def say(self, text: str) -> None:
        if not self._quiet:
            self.show(text)

    def note(self, text: str) -> None:
        if self._verbose:
            self.show(INDENT + text)

    def outcome(self, text: str) -> None:
        if self._title and not self._verbose:
            self._outcomes.append(redact(text))
        else:
            self.say(INDENT + text)

    def show(self, text: str) -> None:
        self._clear()
        print(redact(text), file=self._out, flush=True)

    def warn(self, text: str) -> None:
        self._clear()
        print(redact(text), file=sys.stderr, flush=True)

    def progress(self, text: Callable[[], str]) -> None:
        if self._quiet or not self._is_due():
            return
        self._shown = time.monotonic()
        if self._terminal:
            self._draw(f"{self._title} {text()}")
        else:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self.show(INDENT + text())

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._number += 1
        number = f"[{self._number}/{self.total}]"
        began = time.monotonic()
        self._begin(f"{number} {title:<{TITLE_WIDTH}}")
        try:
            yield
        except BaseException:
            self._clear()
            self._title = ""
            raise
        self._finish(time.monotonic() - began)

    def end(self, text: str) -> None:
        self.say(f"{text} ({time.monotonic() - self._started:.1f} s in all)")

    def _is_due(self) -> bool:
        pause = self._pause
        if self._terminal:
            pause = ON_A_TERMINAL
        return time.monotonic() - self._shown >= pause

    def _begin(self, title: str) -> None:
        self._title = title
        self._outcomes = []
        self._pause = FIRST_PAUSE
        self._shown = time.monotonic()
        if self._quiet:
            return
        if self._verbose:
            self.show(title.rstrip())
        elif self._terminal:
            self._draw(title)
        else:
            print(title, end="", file=self._out, flush=True)
            self._on_title_line = True

    def _finish(self, seconds: float) -> None:
        title = self._title
        self._title = ""
        if self._quiet:
            return
        if self._verbose:
            self.show(f"{INDENT}{seconds:.1f} s")
            return
        outcome = "; ".join(self._outcomes) or "done"
        rest = f" {outcome} ({seconds:.1f} s)"
        if self._on_title_line:
            self._on_title_line = False
            print(rest, file=self._out, flush=True)
        else:
            self.show(title + rest)

    def _draw(self, text: str) -> None:
        """Shows one line on a terminal, in place of the one that is there."""
        width = shutil.get_terminal_size().columns - 1
        print(f"{ERASE}{redact(text)[:width]}", end="", file=self._out, flush=True)
        self._drawn = True

    def _clear(self) -> None:
        """Makes room for a line: the progress is taken away, a title that was begun is ended."""
        if self._drawn:
            print(ERASE, end="", file=self._out, flush=True)
            self._drawn = False
        if self._on_title_line:
            print(file=self._out, flush=True)
            self._on_title_line = False
