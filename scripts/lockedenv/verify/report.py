"""What the verifier says, in words: a line a group or a check, what failed in full,
the verdict in the last line."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from lockedenv import ROOT
from lockedenv.errors import printable
from lockedenv.host.places import default_cache
from lockedenv.redaction import redact
from lockedenv.spec.level import USUAL, Level
from lockedenv.verify.checks import Context
from lockedenv.verify.groups import Section, Sections
from lockedenv.verify.progress import Progress
from lockedenv.verify.remedies import RemedyKind, command_for
from lockedenv.verify.result import (
    COMPILED,
    FAIL,
    PASS,
    SKIP,
    WARN,
    CheckOutcome,
    Result,
)

COLOURS = {PASS: "32", COMPILED: "36", WARN: "33", FAIL: "31", SKIP: "36"}
WORDS = {
    PASS: "passed",
    COMPILED: "compiled but not run",
    WARN: "warned",
    FAIL: "failed",
    SKIP: "skipped",
}
SHOWN_DETAILS = 20
REASON = 60  # characters of a failure's summary in the last line
TAIL = 65_536  # bytes of a log that are looked at
LAST_LINES = 40  # of a log in a report
LAST_LOGS = 3
NAMED = 6  # checks that the last line names
DAY = 86_400  # seconds
NO_ENVIRONMENT = "where no lock was installed"
_VERDICT_WORDS = "|".join(verdict.value.upper() for verdict in WORDS)
# The first line of `to_attach`: a result, or why there are none.
BEGINNING = re.compile(rf"({_VERDICT_WORDS})  \S+ +\S|this is .+, {NO_ENVIRONMENT}; ")
PRESENT = "present"  # the check that says how the quick level compared


@dataclass(frozen=True)
class Scope:
    """What was looked at: the level, the names of the checks,
    and whether that is all of the level."""

    level: Level
    checks: tuple[str, ...]
    whole: bool


class CheckReport:
    """Says results as they come. `out` is where to; colour and width follow from what it is.

    `grouped`: one line for each group of checks, and in full what warned or failed, with one
    remedy at the end.
    """

    def __init__(self, out: IO[str] | None = None, grouped: bool = False) -> None:
        # Standard output is None if whoever started this has closed it.
        self.out = out or sys.stdout or open(os.devnull, "w")  # noqa: SIM115
        self.terminal = self.out.isatty()
        colours = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.colour = self.terminal and colours
        self.width = 10_000
        if self.terminal:
            self.width = max(60, shutil.get_terminal_size().columns)
        self.progress = Progress(self.out)
        self.prefix: Path | None = None
        self.grouped = grouped
        self.sections: Sections | None = None

    def say(self, text: str) -> None:
        self.progress.clear()
        print(text, file=self.out, flush=True)

    def begin(self, context: Context, scope: Scope) -> None:
        """The first line: what is verified, and how."""
        self.prefix = context.installed.prefix
        if self.grouped:
            self.sections = Sections(scope.checks)
        self.say(
            f"{context.installed.backend} prefix {self.prefix}, "
            f"environment {context.environment.name}, {scope.level} level, on the {context.device}"
        )

    def running(self, text: Callable[[], str], begins: bool = False) -> None:
        self.progress.show(text, begins)

    def result(self, result: Result) -> None:
        """Says a result, or the groups that it completes."""
        result = _printable(result)
        if self.sections is None:
            self._say_result(result)
            return
        for section in self.sections.add(result):
            self._say_section(section)

    def _say_section(self, section: Section) -> None:
        """One line for a group, and what warned or failed in it."""
        word = self._paint(section.verdict, section.verdict.value.upper())
        self.say(f"{word}  {section.group.value:<10} {section.summary()}".rstrip())
        for result in section.problems:
            self._say_problem(result, section.find_check(result).brief)

    def _say_problem(self, result: Result, brief: bool) -> None:
        """What warned or failed. What the one remedy at the end mends has none here."""
        lead = f"      {result.verdict.value.upper()}  {result.check}: "
        if brief:
            self._wrap(lead, f"{result.summary}; --only {result.check} lists them")
        elif result.follows_from:
            self._wrap(
                lead,
                f"{result.summary} (probably follows from `{result.follows_from}`)",
            )
        else:
            self._wrap(lead, result.summary)
            self._say_details(result, "            ")
            if result.remedy and not result.action:
                self._wrap("            > ", result.remedy)

    def _say_result(self, result: Result) -> None:
        """One line for a result; under one that warned or failed its details and its remedy."""
        seconds = f" ({result.seconds:.1f} s)" if result.seconds >= 1 else ""
        word = self._paint(result.verdict, result.verdict.value.upper())
        self.say(f"{word}  {result.check:<16} {result.summary}{seconds}")
        if result.verdict not in (FAIL, WARN):
            return
        self._say_details(result, "      ")
        if result.follows_from:
            self._wrap("      > ", f"probably follows from `{result.follows_from}`")
        elif result.remedy:
            self._wrap("      > ", result.remedy)

    def _say_details(self, result: Result, indent: str) -> None:
        for line in result.details[:SHOWN_DETAILS]:
            self._wrap(f"{indent}- ", line)
        hidden = len(result.details) - SHOWN_DETAILS
        if hidden > 0:
            self.say(f"{indent}- and {hidden} more; --json FILE has them all")

    def summary(
        self,
        results: Sequence[Result],
        seconds: float,
        strict: bool = False,
        scope: Scope | None = None,
    ) -> None:
        """The counts, the remedy and the verdict."""
        results = [_printable(result) for result in results]
        counts = Counter(result.verdict for result in results)
        parts = []
        for verdict, word in WORDS.items():
            if counts[verdict] or verdict in (PASS, FAIL):
                parts.append(f"{counts[verdict]} {word}")
        text = f"{', '.join(parts)} in {seconds:.1f} s"
        if self.sections:
            text += "; --verbose shows each check"
        self.say(text)
        failures = [result for result in results if result.verdict is FAIL]
        remedy = self._find_remedy(failures)
        if remedy:
            self._wrap("to mend it: ", remedy)
        self.say(self._verdict(results, counts, failures, strict, scope))

    def _find_remedy(self, failures: Sequence[Result]) -> str:
        """The one command that mends all of the damage, the least destructive that does."""
        if self.prefix is None or (len(failures) < 2 and self.sections is None):
            return ""
        causes = []
        actions = set()
        for result in failures:
            if result.action and not result.follows_from:
                causes.append(result)
                actions.add(result.action)
        if RemedyKind.REBUILD in actions:
            return command_for(RemedyKind.REBUILD, self.prefix)
        commands: dict[str, None] = {}
        for result in causes:
            if result.action is RemedyKind.REMOVE:
                commands[result.remedy] = None
        if RemedyKind.REPAIR in actions:
            commands[command_for(RemedyKind.REPAIR, self.prefix)] = None
        return " && ".join(commands)

    def _verdict(
        self,
        results: Sequence[Result],
        counts: Counter[CheckOutcome],
        failures: Sequence[Result],
        strict: bool,
        scope: Scope | None,
    ) -> str:
        if failures:
            return self._paint(FAIL, f"FAILED: {', '.join(_name_failures(failures))}")
        warned = [result.check for result in results if result.verdict is WARN]
        if warned and strict:
            text = f"not verified, since with --strict a warning fails: {', '.join(warned)}"
            return self._paint(FAIL, text)
        if scope and not scope.whole and counts[PASS]:
            names = [result.check for result in results if result.verdict is not SKIP]
            ran = f"{len(names)} checks ran"
            if len(names) <= NAMED:
                ran = f"what ran: {', '.join(names)}"
            return (
                f"no check failed. This is no verdict on the whole environment; {ran}"
            )
        if counts[PASS]:
            text = "verified: no check failed"
            if scope and scope.level is not USUAL:
                text += f" ({scope.level} level{_describe_comparison(scope.level, results)})"
            return self._paint(PASS, text)
        if counts[COMPILED]:
            return "nothing was run: machine code for a GPU was compiled, and no check passed"
        if warned:
            return "no check failed, and none passed"
        return "nothing was checked"

    def _paint(self, verdict: CheckOutcome, text: str) -> str:
        if not self.colour:
            return text
        return f"\033[{COLOURS[verdict]}m{text}\033[0m"

    def _wrap(self, lead: str, text: str) -> None:
        width = self.width - len(lead)
        lines = textwrap.wrap(
            text, width, break_long_words=False, break_on_hyphens=False
        )
        for line in lines or [""]:
            self.say(lead + line)
            lead = " " * len(lead)


def _printable(result: Result) -> Result:
    """The result with texts that can be shown: names,
    values and messages in them come from outside."""
    details = [_printable_lines(line) for line in result.details]
    summary = _printable_lines(result.summary)
    return replace(
        result, summary=summary, remedy=_printable_lines(result.remedy), details=details
    )


def _printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.expandtabs().split("\n"))


def _describe_comparison(level: Level, results: Sequence[Result]) -> str:
    """How the files of the prefix were compared, at a level that does not read them."""
    if level.includes(Level.FULL):
        return ""
    for result in results:
        if result.check == PRESENT and result.verdict is PASS:
            return f"; {result.summary}"
    return ""


def _name_failures(failures: Sequence[Result]) -> list[str]:
    """The checks that failed, each with its reason, those that follow from another left out."""
    names = []
    following = 0
    for result in failures:
        if result.follows_from:
            following += 1
        else:
            reason = textwrap.shorten(result.summary, REASON, placeholder=" ...")
            names.append(f"{result.check} ({reason})")
    if following:
        names.append(f"and {following} that follow from these")
    return names


# --report


def to_attach(
    manifest: dict[str, Any],
    results: Sequence[Result],
    seconds: float,
    strict: bool = False,
    scope: Scope | None = None,
    problem: str = "",
) -> str:
    """What a report of a problem needs, in one text without secrets.

    Results, machine, versions, the last lines of our logs; `problem`: why nothing could be checked.
    """
    out = io.StringIO()
    report = CheckReport(out)
    if problem:
        report.say(problem)
    for result in results:
        report.result(result)
    report.summary(results, seconds, strict, scope)
    rest = {}
    for key, value in manifest.items():
        if key not in ("packages", "results", "vulnerabilities"):
            rest[key] = value
    report.say(f"\n{json.dumps(rest, indent=1)}\n")
    for package in manifest["packages"]:
        report.say("{name} {version} {build} {manager}".format(**package))
    for log in _find_logs():
        written = time.strftime("%Y-%m-%d %H:%M", time.gmtime(log.lstat().st_mtime))
        report.say(f"\nThe last lines of {log}, written {written} UTC:")
        for line in read_tail(log).splitlines()[-LAST_LINES:]:
            report.say(line)
    return redact(out.getvalue())


def is_report(text: str) -> bool:
    """Whether a text begins as those of `to_attach` do."""
    return BEGINNING.match(text) is not None


def _find_logs() -> list[Path]:
    """The newest logs of a day, oldest first."""
    found = []
    for log in default_cache().glob("logs/*.log"):
        if _is_ours(log):
            found.append(log)
    for log in Path(tempfile.gettempdir()).glob("maximalcai-*.log"):
        if _is_ours(log) and f"{ROOT}/" in read_tail(log):  # not another clone's
            found.append(log)
    found.sort(key=lambda log: log.lstat().st_mtime)
    return found[-LAST_LOGS:]


def _is_ours(log: Path) -> bool:
    """The folder for temporary files is everyone's: no link, and nothing of another user."""
    if log.is_symlink() or not log.is_file() or not os.access(log, os.R_OK):
        return False
    status = log.lstat()
    return status.st_uid == os.getuid() and status.st_mtime > time.time() - DAY


def read_tail(log: Path) -> str:
    """The last 64 kB of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        return file.read().decode(errors="replace")
