"""What a check finds: an outcome, one line, a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from lockedenv.verify.remedies import RemedyKind, command_for


class CheckOutcome(str, Enum):
    """How a check ended. The values stand in --json.

    COMPILED: machine code for a GPU was made, and no GPU was there to run it. It is no pass.
    """

    PASS = "pass"
    COMPILED = "compiled"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"

    def __str__(self) -> str:
        return str(self.value)


PASS = CheckOutcome.PASS
COMPILED = CheckOutcome.COMPILED
WARN = CheckOutcome.WARN
FAIL = CheckOutcome.FAIL
SKIP = CheckOutcome.SKIP
# What was not looked at is worse than what was looked at and is odd.
WORST_FIRST = (FAIL, SKIP, COMPILED, WARN, PASS)


@dataclass
class Result:
    """What a check found.

    `summary` is one line: what was measured, or what is wrong. `remedy` says what to do about it.
    `measured` has figures by name, each with its unit in the name. `follows_from` is the check
    whose failure probably is the cause of this one. `action` is the kind of the remedy, where it is
    one that mends the environment.
    """

    verdict: CheckOutcome
    summary: str
    remedy: str = ""
    details: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    check: str = ""
    seconds: float = 0.0
    follows_from: str = ""
    action: RemedyKind | None = None

    def __post_init__(self) -> None:
        # A child's result was JSON: ValueError for what is no verdict and no action.
        self.verdict = CheckOutcome(self.verdict)
        if self.action is not None:
            self.action = RemedyKind(self.action)


def passed(summary: str, **measured: Any) -> Result:
    return Result(PASS, summary, measured=measured)


def compiled(summary: str, **measured: Any) -> Result:
    return Result(COMPILED, summary, measured=measured)


def failed(
    summary: str, remedy: str, details: Sequence[str] = (), **measured: Any
) -> Result:
    return Result(FAIL, summary, remedy, list(details), measured)


def damaged(
    prefix: Path, action: RemedyKind, lines: Sequence[str], **measured: Any
) -> Result:
    """A failure that the set-up can mend: its remedy is the command of `action` for this prefix."""
    result = failed(first(lines), command_for(action, prefix), lines[1:], **measured)
    result.action = action
    return result


def warned(
    summary: str, remedy: str, details: Sequence[str] = (), **measured: Any
) -> Result:
    return Result(WARN, summary, remedy, list(details), measured)


def skipped(reason: str) -> Result:
    return Result(SKIP, reason)


def first(items: Sequence[str]) -> str:
    """The first of one line or more, and how many follow it, for a summary."""
    if len(items) == 1:
        return items[0]
    return f"{items[0]} (and {len(items) - 1} more)"


def verdict(wrong: Sequence[str], remedy: str, good: str) -> Result:
    """A failure that lists what is wrong, or a pass that says `good` if nothing is."""
    if wrong:
        return failed(first(wrong), remedy, wrong[1:])
    return passed(good)


def is_worse(result: Result, other: Result) -> bool:
    """Whether the first of two results is the one to show where they become one."""
    return WORST_FIRST.index(result.verdict) < WORST_FIRST.index(other.verdict)


def exit_status(results: Iterable[Result], strict: bool = False) -> int:
    """1 if a check failed, or warned where `strict` is set; otherwise 0.

    Skipped and compiled are neither.
    """
    bad = {FAIL, WARN} if strict else {FAIL}
    for result in results:
        if result.verdict in bad:
            return 1
    return 0
