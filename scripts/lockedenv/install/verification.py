"""Runs the verifier with the prefix's own interpreter.

Its verdict is the document that it wrote.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Mapping, Sequence

from lockedenv import ROOT
from lockedenv.backends.base import Job
from lockedenv.host.files import read_json
from lockedenv.host.gpus import Trouble, read_gpu_facts
from lockedenv.host.process import follow, started
from lockedenv.prefix.inventory import MANIFEST
from lockedenv.reporter import Reporter
from lockedenv.spec.level import Level

VERIFIER = ROOT / "scripts/verify_environment.py"

# The verifier's verdicts on a check, and how many of them are told.
COUNTED = {
    "pass": "passed",
    "compiled": "compiled but not run",
    "warn": "warned",
    "fail": "failed",
    "skip": "skipped",
}
# These are told where there are none, too.
ALWAYS_COUNTED = ("pass", "fail")


@dataclass(frozen=True)
class VerificationOutcome:
    """How a verification ended. `counts`: how many checks ended with each verdict.

    `problem`: why there is no verdict of the verifier's own, or an empty string.
    `warned`: the checks that warned, with what they said. `said`: what the verifier wrote, as
    far as it has not been shown yet.
    """

    passed: bool
    counts: Mapping[str, int]
    problem: str = ""
    warned: Mapping[str, str] = field(default_factory=dict)
    said: Sequence[str] = ()

    def count_text(self) -> str:
        """Such as "15 passed, 1 warned, 0 failed, 4 skipped"."""
        parts = []
        for verdict, word in COUNTED.items():
            if self.counts[verdict] or verdict in ALWAYS_COUNTED:
                parts.append(f"{self.counts[verdict]} {word}")
        return ", ".join(parts)


@dataclass(frozen=True)
class VerifierEnding:
    """How the verifier ended: its exit status, negative for a signal, and its
    lines that were not shown.
    """

    status: int
    lines: Sequence[str]


def verify(
    job: Job,
    level: Level,
    skip: tuple[str, ...],
    reporter: Reporter,
    manifest: bool = True,
) -> VerificationOutcome:
    """Verifies a prefix. What the verifier says is shown at once only where details are wanted.

    `manifest`: whether it writes the manifest into the prefix.
    """
    path = job.prefix.path
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder, "verdict.json")
        command = [path / "bin/python", VERIFIER, "--level", level.value]
        command += ["--json", document]
        if manifest:
            command += ["--manifest", path / MANIFEST]
        if skip:
            command += ["--skip", ",".join(skip)]
        if reporter.verbose:
            command.append("--verbose")
        command += _leave_out_gpus(reporter)
        ending = _run(command, reporter)
        outcome = read_outcome(ending.status, document)
    return replace(outcome, said=ending.lines)


def _leave_out_gpus(reporter: Reporter) -> list[str]:
    """The verifier's option for a machine that has nvidia-smi, no driver, and no sign of a GPU."""
    error = read_gpu_facts().error
    if error is None or error.trouble is not Trouble.NO_DRIVER:
        return []
    reporter.say(f"verified without a GPU, since {error.problem}")
    return ["--gpu", "off"]


def _run(command: list[object], reporter: Reporter) -> VerifierEnding:
    """Runs the verifier; its last line is what is going on."""
    lines: list[str] = []
    began = time.monotonic()

    def look() -> None:
        doing = "verifying"
        if lines:
            doing = " ".join(lines[-1].split())
        reporter.progress(lambda: f"{doing}, {time.monotonic() - began:.0f} s")

    environ = callers_variables()
    with tempfile.TemporaryFile() as errors:
        if reporter.verbose:
            with started(command, True, env=environ, stderr=errors) as process:
                status = process.wait()
        else:
            pipe = subprocess.PIPE
            with started(
                command, True, env=environ, stdout=pipe, stderr=errors
            ) as process:
                status = follow(process, lines.append, look)
        errors.seek(0)
        problems = errors.read().decode(errors="replace").strip()
    if problems:
        reporter.warn(problems)
    return VerifierEnding(int(status), lines)


def read_outcome(status: int, document: Path) -> VerificationOutcome:
    """What the verifier wrote, if it ended by itself and says the same as its exit status."""
    counts = dict.fromkeys(COUNTED, 0)
    if status < 0:
        name = signal.Signals(-status).name
        return VerificationOutcome(
            False, counts, f"the verifier was killed by {name}{_who_kills(-status)}"
        )
    written = read_json(document)
    results = written.get("results")
    if not isinstance(results, list):
        return VerificationOutcome(
            False, counts, f"the verifier wrote no verdict (exit status {status})"
        )
    warned = {}
    for result in results:
        counts[result["verdict"]] += 1
        if result["verdict"] == "warn":
            warned[result.get("check", "")] = result.get("summary", "")
    passed = status == 0 and written.get("exit_status") == 0 and counts["fail"] == 0
    return VerificationOutcome(passed, counts, warned=warned)


def _who_kills(number: int) -> str:
    if number == signal.SIGKILL:
        return (
            ": by the kernel if memory ran out (`dmesg | tail`), or by whoever "
            "manages this machine"
        )
    return ""


def callers_variables() -> dict[str, str]:
    """The variables as the caller has them: PYTHONPATH is ours here, and the
    scripts note the caller's.

    Others of Python's stay under the name by which they were handed on: with PYTHONHOME, say, the
    verifier does not start.
    """
    environ = dict(os.environ)
    environ.pop("PYTHONPATH", None)
    theirs = environ.pop("MAXIMALCAI_PYTHONPATH", "")
    if theirs:
        environ["PYTHONPATH"] = theirs
    return environ
