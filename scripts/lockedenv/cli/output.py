"""What a script prints while it works: numbered steps and one progress line. The Reporter of the command line."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Iterator

from lockedenv.redaction import redact


class Steps:
    """Prints `[2/6] Fetch ...` and how long each step took."""

    def __init__(self, total: int, quiet: bool) -> None:
        self._total = total
        self._quiet = quiet
        self._number = 0
        self._started = time.monotonic()

    @property
    def quiet(self) -> bool:
        return self._quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            print(redact(text), flush=True)

    def note(self, text: str) -> None:
        self.say(f"      {text}")

    def show(self, text: str) -> None:
        print(redact(text), flush=True)

    def warn(self, text: str) -> None:
        print(redact(text), file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._number += 1
        self.say(f"[{self._number}/{self._total}] {title}")
        started = time.monotonic()
        yield
        self.note(f"{time.monotonic() - started:.1f} s")

    def end(self, text: str) -> None:
        self.say(f"{text} ({time.monotonic() - self._started:.1f} s in all)")
