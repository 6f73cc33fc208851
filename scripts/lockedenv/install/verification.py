"""Runs the verifier with the prefix's own interpreter. Its verdict is the document that it wrote."""

from __future__ import annotations

import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from lockedenv import ROOT
from lockedenv.backends.base import Job
from lockedenv.host.files import read_json
from lockedenv.host.gpus import Trouble, read_gpu_facts
from lockedenv.host.process import started
from lockedenv.reporter import Reporter

VERIFIER = ROOT / "scripts/verify_environment.py"
MANIFEST = "maximalcai-manifest.json"


@dataclass(frozen=True)
class Verdict:
    """How a verification ended. `counts`: how many checks ended with each verdict.

    `problem`: why there is no verdict of the verifier's own, or an empty string.
    """

    passed: bool
    counts: Mapping[str, int]
    problem: str = ""


def verify(
    job: Job, level: str, skip: tuple[str, ...], reporter: Reporter, manifest: bool = True
) -> Verdict:
    """Verifies a prefix; what the verifier says is shown, to a quiet reporter its verdict alone or what failed.

    `manifest`: whether it writes the manifest into the prefix.
    """
    path = job.prefix.path
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder, "verdict.json")
        command = [path / "bin/python", VERIFIER, "--level", level, "--json", document]
        if manifest:
            command += ["--manifest", path / MANIFEST]
        if skip:
            command += ["--skip", ",".join(skip)]
        command += _leave_out_gpus(reporter)
        status = _run(command, reporter)
        return read_verdict(status, document)


def _leave_out_gpus(reporter: Reporter) -> list[str]:
    """The verifier's option for a machine that has nvidia-smi, no driver, and no sign of a GPU."""
    error = read_gpu_facts().error
    if error is None or error.trouble is not Trouble.NO_DRIVER:
        return []
    reporter.note(f"verified without a GPU, since {error.problem}")
    return ["--gpu", "off"]


def _run(command: list[object], reporter: Reporter) -> int:
    """The exit status of the verifier; negative for the signal that ended it."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        shown = said if reporter.quiet else None
        with started(
            command, True, env=callers_variables(), stdout=shown, stderr=errors
        ) as process:
            status = process.wait()
        said.seek(0)
        errors.seek(0)
        text = said.read().decode(errors="replace").strip()
        if text and status == 0:
            text = text.splitlines()[-1]
        if text:
            reporter.show(text)
        problems = errors.read().decode(errors="replace").strip()
        if problems:
            reporter.warn(problems)
    return int(status)


def read_verdict(status: int, document: Path) -> Verdict:
    """The verdict: what the verifier wrote, if it ended by itself and says the same as its exit status."""
    counts = {"pass": 0, "compiled": 0, "warn": 0, "fail": 0, "skip": 0}
    if status < 0:
        name = signal.Signals(-status).name
        return Verdict(False, counts, f"the verifier was killed by {name}{_who_kills(-status)}")
    written = read_json(document)
    results = written.get("results")
    if not isinstance(results, list):
        return Verdict(False, counts, f"the verifier wrote no verdict (exit status {status})")
    for result in results:
        counts[result["verdict"]] += 1
    passed = status == 0 and written.get("exit_status") == 0 and counts["fail"] == 0
    return Verdict(passed, counts)


def _who_kills(number: int) -> str:
    if number == signal.SIGKILL:
        return (
            ": by the kernel if memory ran out (`dmesg | tail`), or by whoever manages this machine"
        )
    return ""


def callers_variables() -> dict[str, str]:
    """The variables as the caller has them: PYTHONPATH is ours here, and the scripts note the caller's."""
    environ = dict(os.environ)
    environ.pop("PYTHONPATH", None)
    theirs = environ.pop("MAXIMALCAI_PYTHONPATH", "")
    if theirs:
        environ["PYTHONPATH"] = theirs
    return environ
