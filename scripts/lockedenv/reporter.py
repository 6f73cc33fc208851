"""How a lower room says what it does: it is passed a Reporter, and never prints."""

from __future__ import annotations

from typing import ContextManager, Protocol


class Reporter(Protocol):
    """What the command line gives to the rooms below it. cli/output.py is the terminal's; tests have their own."""

    @property
    def quiet(self) -> bool:
        """Whether only the verdict and errors are wanted."""

    def say(self, text: str) -> None:
        """A line of its own."""

    def note(self, text: str) -> None:
        """A line that belongs to the running step."""

    def show(self, text: str) -> None:
        """A line that is shown even if only the verdict and errors are wanted."""

    def warn(self, text: str) -> None:
        """An error or a warning; it is always shown."""

    def end(self, text: str) -> None:
        """The last line: how it ended."""

    def step(self, title: str) -> ContextManager[None]:
        """The block is one step of the work, and is shown under this title."""
