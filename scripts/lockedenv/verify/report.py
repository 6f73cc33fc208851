"""All that the verifier prints: aligned lines, colour on a terminal only, the remedy under what failed."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import IO, Any, Dict, List

from lockedenv import ROOT
from lockedenv.host.places import default_cache
from lockedenv.output import Progress
from lockedenv.redaction import redact
from lockedenv.verify.checks import COMPILED, FAIL, PASS, SKIP, WARN, Result, Verdict

_COLOURS = {PASS: "32", COMPILED: "36", WARN: "33", FAIL: "31", SKIP: "36"}
_SHOWN_DETAILS = 20


class Report:
    """Prints results as they come. `out` is where to; colour and width follow from what it is."""

    def __init__(self, out: IO[str] = sys.stdout) -> None:
        self.out = out
        self.terminal = out.isatty()
        self.colour = (
            self.terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        )
        self.width = max(60, shutil.get_terminal_size().columns) if self.terminal else 10_000
        self.progress = Progress(out=out)

    def _paint(self, verdict: Verdict, text: str) -> str:
        return f"\033[{_COLOURS[verdict]}m{text}\033[0m" if self.colour else text

    def say(self, text: str) -> None:
        self.progress.clear()
        print(redact(text), file=self.out, flush=True)

    def result(self, result: Result) -> None:
        """One line for a result; remedy and details, wrapped, under one that is not a pass."""
        seconds = f" ({result.seconds:.1f} s)" if result.seconds >= 1 else ""
        self.say(
            f"{self._paint(result.verdict, result.verdict.upper())}  {result.check:<16} {result.summary}{seconds}"
        )
        if result.verdict in (FAIL, WARN):
            for line in result.details[:_SHOWN_DETAILS]:
                self._wrapped("      - ", line)
            if len(result.details) > _SHOWN_DETAILS:
                self.say(
                    f"      - and {len(result.details) - _SHOWN_DETAILS} more; --json FILE has them all"
                )
            if result.remedy:
                self._wrapped("      > ", result.remedy)

    def _wrapped(self, lead: str, text: str) -> None:
        for part in textwrap.wrap(
            text, self.width - len(lead), break_long_words=False, break_on_hyphens=False
        ) or [""]:
            self.say(lead + part)
            lead = " " * len(lead)

    def summary(self, results: List[Result], seconds: float, strict: bool = False) -> None:
        counts = {
            verdict: sum(r.verdict == verdict for r in results)
            for verdict in (PASS, COMPILED, WARN, FAIL, SKIP)
        }
        words = {
            PASS: "passed",
            COMPILED: "compiled but not run",
            WARN: "warned",
            FAIL: "failed",
            SKIP: "skipped",
        }
        said = ", ".join(f"{counts[v]} {words[v]}" for v in words if counts[v] or v in (PASS, FAIL))
        self.say(f"{said} in {seconds:.1f} s")
        bad = [r.check for r in results if r.verdict == FAIL]
        odd = [r.check for r in results if r.verdict == WARN]
        if bad:
            self.say(self._paint(FAIL, f"NOT the verified environment: {', '.join(bad)}"))
        elif odd and strict:
            self.say(
                self._paint(
                    FAIL, f"not verified, since with --strict a warning fails: {', '.join(odd)}"
                )
            )
        elif counts[PASS]:
            self.say(self._paint(PASS, "verified: every check that ran has passed"))
        elif counts[COMPILED]:
            self.say("nothing was run: machine code for a GPU was compiled, and no check passed")
        else:
            self.say("no check failed, and none passed" if odd else "nothing was checked")


def to_attach(
    manifest: Dict[str, Any], results: List[Result], seconds: float, strict: bool = False
) -> str:
    """What a report of a problem needs, in one text without secrets: results, machine, versions, the last lines of our logs."""
    out = io.StringIO()
    report = Report(out)
    for result in results:
        report.result(result)
    report.summary(results, seconds, strict)
    rest = {
        key: value
        for key, value in manifest.items()
        if key not in ("packages", "results", "vulnerabilities")
    }
    print(f"\n{json.dumps(rest, indent=1)}\n", file=out)
    print(
        *(f"{p['name']} {p['version']} {p['build']} {p['manager']}" for p in manifest["packages"]),
        sep="\n",
        file=out,
    )
    logs = [
        *default_cache().glob("logs/*.log"),
        *Path(tempfile.gettempdir()).glob("maximalcai-*.log"),
    ]
    # The folder for temporary files is everyone's: no link, nothing of another user, nothing of another clone.
    ours = [
        log
        for log in logs
        if not log.is_symlink() and log.is_file() and log.lstat().st_uid == os.getuid()
    ]
    ours = [
        log
        for log in ours
        if log.lstat().st_mtime > time.time() - 86400 and os.access(log, os.R_OK)
    ]
    ours = [log for log in ours if log.parent.name == "logs" or f"{ROOT}/" in tail(log)]
    for log in sorted(ours, key=lambda path: path.lstat().st_mtime)[-3:]:
        written = time.strftime("%Y-%m-%d %H:%M", time.gmtime(log.lstat().st_mtime))
        print(
            f"\nThe last lines of {log}, written {written} UTC:",
            *tail(log).splitlines()[-40:],
            sep="\n",
            file=out,
        )
    return redact(out.getvalue())


def tail(log: Path) -> str:
    """The last 64 kB of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        return file.read().decode(errors="replace")
