"""How a lower room says what it does: it is passed a Reporter, and never prints."""

from __future__ import annotations

from typing import Callable, ContextManager, Protocol


class Reporter(Protocol):
    """What the command line gives to the rooms below it. cli/output.py is the
    terminal's; tests have their own.
    """

    @property
    def quiet(self) -> bool:
        """Whether only the verdict and errors are wanted."""

    @property
    def verbose(self) -> bool:
        """Whether details are wanted."""

    def say(self, text: str) -> None:
        """A line of its own, which a reader needs."""

    def note(self, text: str) -> None:
        """A detail of the running step, shown where details are wanted."""

    def outcome(self, text: str) -> None:
        """What the running step has done, in a few words: it is put on the step's line."""

    def show(self, text: str) -> None:
        """A line that is shown even if only the verdict and errors are wanted."""

    def warn(self, text: str) -> None:
        """An error or a warning; it is always shown."""

    def progress(self, text: Callable[[], str]) -> None:
        """What is going on, while something lasts; asked for only when it is shown."""

    def end(self, text: str) -> None:
        """The last line: how it ended, with the seconds of the whole run."""

    def step(self, title: str) -> ContextManager[None]:
        """The block is one step of the work, and is shown under this title."""
