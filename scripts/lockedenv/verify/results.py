"""What a check found, as data; report.py prints it, manifest.py keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Sequence

PASS, WARN, FAIL, SKIP = "pass", "warn", "fail", "skip"


@dataclass
class Result:
    """One check's verdict.

    `summary` is one line: what was measured, or what is wrong. `remedy` is what to do about it. `measured` holds
    figures by name, each with its unit in the name.
    """

    verdict: str
    summary: str
    remedy: str = ""
    details: List[str] = field(default_factory=list)
    measured: Dict[str, Any] = field(default_factory=dict)
    check: str = ""
    seconds: float = 0.0

    def as_dict(self) -> Dict[str, Any]:
        return asdict(self)


def passed(summary: str, **measured: Any) -> Result:
    return Result(PASS, summary, measured=measured)


def failed(summary: str, remedy: str, details: Sequence[str] = (), **measured: Any) -> Result:
    return Result(FAIL, summary, remedy, list(details), measured)


def warned(summary: str, remedy: str, details: Sequence[str] = (), **measured: Any) -> Result:
    return Result(WARN, summary, remedy, list(details), measured)


def skipped(reason: str) -> Result:
    return Result(SKIP, reason)


def exit_status(results: List[Result], strict: bool = False) -> int:
    """0 if nothing failed, otherwise 1; with `strict`, a warning counts as a failure. Skipped is neither."""
    bad = (FAIL, WARN) if strict else (FAIL,)
    return int(any(result.verdict in bad for result in results))
