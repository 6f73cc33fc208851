"""What was found of a machine: a verdict, one line, and a remedy.

The pod's verdict and the verifier's checks of the GPU are both made of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class FindingOutcome(str, Enum):
    """What a finding means. The values stand in --json and in the manifest."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Finding:
    """One finding.

    `summary` is one line: what was measured, or what is wrong. `remedy` says what to do about it.
    `measured` has figures by name, each with its unit in the name. `check` names what was looked
    at.
    """

    verdict: FindingOutcome
    summary: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    measured: dict[str, Any] = field(default_factory=dict)
    check: str = ""

    def as_json(self) -> dict[str, Any]:
        """The finding as it stands in the manifest (`result` of verify.schema.json)."""
        return {
            "check": self.check,
            "verdict": self.verdict.value,
            "summary": self.summary,
            "remedy": self.remedy,
            "details": list(self.details),
            "measured": dict(self.measured),
            "seconds": 0.0,
        }


def passed(summary: str, **measured: Any) -> Finding:
    return Finding(FindingOutcome.PASS, summary, measured=measured)


def skipped(reason: str) -> Finding:
    """What could not be looked at, and why."""
    return Finding(FindingOutcome.SKIP, reason)


def warned(problems: Sequence[str], remedy: str, **measured: Any) -> Finding:
    """A warning. `problems` has at least one line."""
    return _list_problems(FindingOutcome.WARN, problems, remedy, measured)


def failed(problems: Sequence[str], remedy: str, **measured: Any) -> Finding:
    """A failure. `problems` has at least one line."""
    return _list_problems(FindingOutcome.FAIL, problems, remedy, measured)


def _list_problems(
    verdict: FindingOutcome,
    problems: Sequence[str],
    remedy: str,
    measured: dict[str, Any],
) -> Finding:
    summary = problems[0]
    if len(problems) > 1:
        summary += f" (and {len(problems) - 1} more)"
    return Finding(verdict, summary, remedy, tuple(problems[1:]), measured)


def select(findings: Iterable[Finding], verdict: FindingOutcome) -> list[Finding]:
    """The findings with a verdict."""
    return [finding for finding in findings if finding.verdict is verdict]
