"""The results by group: one line of the report for all checks of one group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lockedenv.spec.level import Level
from lockedenv.verify.checklist import find_check
from lockedenv.verify.checks import AnyCheck, CheckGroup
from lockedenv.verify.result import (
    COMPILED,
    FAIL,
    PASS,
    SKIP,
    WARN,
    CheckOutcome,
    Result,
)

SHOWN_FIRST = (FAIL, WARN, PASS, COMPILED, SKIP)
NOT_RUN = {COMPILED: "compiled, not run", SKIP: "skipped"}
WORDS = {FAIL: "failed", WARN: "warned", PASS: "passed", **NOT_RUN}


@dataclass
class Section:
    """The checks of one group that are run, and their results so far."""

    group: CheckGroup
    checks: list[AnyCheck]
    results: list[Result] = field(default_factory=list)

    @property
    def verdict(self) -> CheckOutcome:
        """What the line of the group shows; a group of which nothing ran has not passed."""
        verdicts = {result.verdict for result in self.results}
        for verdict in SHOWN_FIRST:
            if verdict in verdicts:
                return verdict
        return SKIP

    @property
    def problems(self) -> list[Result]:
        """The results that are shown one by one."""
        return [result for result in self.results if result.verdict in (FAIL, WARN)]

    def summary(self) -> str:
        """What was found: the words of the checks that speak for the group, and what else passed.

        Where a check failed, the names alone: the failures are shown below it.
        """
        if self.verdict is FAIL:
            return "; ".join(self._name(WORDS))
        text = "; ".join([*self._spoken(), *self._passed()])
        notes = "; ".join(self._name(NOT_RUN))
        if text and notes:
            return f"{text} ({notes})"
        return text or notes

    def _name(self, words: Mapping[CheckOutcome, str]) -> list[str]:
        """The names of the checks that ended with each of these verdicts."""
        parts = []
        for verdict, word in words.items():
            names = []
            for result in self.results:
                if result.verdict is verdict:
                    names.append(result.check)
            if names:
                parts.append(f"{word}: {', '.join(names)}")
        return parts

    def find_check(self, result: Result) -> AnyCheck:
        for check in self.checks:
            if check.name == result.check:
                return check
        raise KeyError(result.check)

    def _spoken(self) -> list[str]:
        """The summaries of the checks that speak; of one that was skipped,
        where no other speaks."""
        passed = {result.check for result in self.results if result.verdict is PASS}
        summaries = []
        reasons = []
        for result in self.results:
            check = self.find_check(result)
            if not check.speaks or check.yields_to in passed:
                continue
            if result.verdict is PASS:
                summaries.append(result.summary)
            elif result.verdict is SKIP:
                reasons.append(result.summary)
        return summaries or reasons

    def _passed(self) -> list[str]:
        """The names of what passed and does not speak: of the full level and what includes it,
        or where nothing speaks."""
        spoken = self._spoken()
        names = []
        for result in self.results:
            check = self.find_check(result)
            if (
                result.verdict is PASS
                and not check.speaks
                and (check.level.includes(Level.FULL) or not spoken)
            ):
                names.append(result.check)
        if names:
            return [f"passed: {', '.join(names)}"]
        return []


class Sections:
    """Collects results, and gives each group when it and all before it are complete."""

    def __init__(self, names: Iterable[str]) -> None:
        self.waiting: list[Section] = []
        members: dict[CheckGroup, list[AnyCheck]] = {}
        for name in names:
            check = find_check(name)
            members.setdefault(check.group, []).append(check)
        for group in CheckGroup:
            if group in members:
                self.waiting.append(Section(group, members[group]))

    def add(self, result: Result) -> list[Section]:
        """Takes a result; gives the groups that can be reported now."""
        group = find_check(result.check).group
        for section in self.waiting:
            if section.group is group:
                section.results.append(result)
        complete = []
        while self.waiting and len(self.waiting[0].results) == len(
            self.waiting[0].checks
        ):
            complete.append(self.waiting.pop(0))
        return complete
