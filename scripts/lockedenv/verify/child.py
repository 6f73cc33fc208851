"""Runs one check in a process of its own, so that a crash, a hang or a kill is that check's result.

`python -m lockedenv.verify.child NAME DEVICE ENVIRONMENT FOLDER` is the child. It writes the
result into its folder; a check has passed only if it wrote so itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Callable

from lockedenv.host.process import started
from lockedenv.spec import environment as environments
from lockedenv.verify.checklist import find_check
from lockedenv.verify.checks import AnyCheck
from lockedenv.verify.result import COMPILED, FAIL, PASS, SKIP, Result, failed, is_worse

ANSWER = "result.json"
LOG = "log"
SHOWN = 16  # last lines of a child's output in its result
TRACE = 8  # last lines of a traceback in a result


@dataclass(frozen=True)
class ChildTask:
    """What a child is told: the check, the device, the environment of --environment or "",
    its folder."""

    name: str
    device: str
    environment: str
    folder: Path


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, negative for a signal; None if its time was up."""

    status: int | None


# In the verifier


def run_fresh(
    python: Path, subject: ChildTask, environ: dict[str, str], limit: float
) -> Ended:
    """Runs a check in a fresh interpreter. Raises OSError if that does not start."""
    command = [python, "-X", "faulthandler", "-m", "lockedenv.verify.child"]
    command += [subject.name, subject.device, subject.environment, subject.folder]
    with (subject.folder / LOG).open("ab") as log:
        with started(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=subject.folder,
            env={**environ, "TMPDIR": str(subject.folder)},
        ) as process:
            try:
                return Ended(process.wait(limit))
            except subprocess.TimeoutExpired:
                return Ended(None)


def read_result(
    check: AnyCheck, subject: ChildTask, ended: Ended, limit: float
) -> Result:
    """The result that a child wrote, or what became of the child."""
    lines = (subject.folder / LOG).read_text(errors="replace").splitlines()[-SHOWN:]
    if ended.status is None:
        remedy = f"it hangs: run it alone with --only {check.name}; {check.remedy}"
        return failed(f"no answer within {limit} s; stopped", remedy, lines)
    if ended.status < 0:
        return failed(_describe_signal(-ended.status), check.remedy, lines)
    try:
        result = Result(**json.loads((subject.folder / ANSWER).read_text()))
    except (OSError, ValueError, TypeError):
        last = "".join(lines[-1:])
        text = f"ended without an answer (exit {ended.status}): {last}"
        return failed(text, check.remedy, lines)
    # A check is sent to the GPU only where it can run there. So one that skips itself, such as for
    # a library that does not load, would hide that the GPU was not tested. What a check needs
    # beyond one GPU it declares, with `gpus`, and the runner skips it.
    if subject.device == "cuda" and result.verdict in (SKIP, COMPILED):
        text = f"there is a GPU, and this could not run on it: {result.summary}"
        return failed(text, check.remedy)
    return result


def _describe_signal(number: int) -> str:
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return f"killed by {name}: out of memory, or someone stopped it"
    return f"killed by {name}: it crashed"


# In the child


def run_and_write(subject: ChildTask) -> None:
    """Runs a check, and writes its result into its folder."""
    if subject.environment:
        environments.compare_with(subject.environment)
    result = run_here(find_check(subject.name), subject.device)
    part = subject.folder / f"{ANSWER}.part"
    part.write_text(json.dumps(asdict(result)))
    part.replace(subject.folder / ANSWER)


def run_here(check: AnyCheck, device: str) -> Result:
    """What a check finds, on each GPU up to the first that fails;
    whatever a library raises is its result."""
    began = time.monotonic()
    on_each = check.each_gpu and device == "cuda"
    results = []
    try:
        if on_each:
            for result in run_on_each_gpu(check.function):
                results.append(result)
                if result.verdict is FAIL:
                    break
        else:
            results.append(check.function(device))
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        message = " ".join(str(error).split())[:200]
        results.append(
            failed(f"{type(error).__name__}: {message}", check.remedy, lines[-TRACE:])
        )
    result = merge(results) if on_each else results[0]
    return replace(result, seconds=time.monotonic() - began)


def run_on_each_gpu(function: Callable[[str], Result]) -> Iterator[Result]:
    """A check's results with GPU 0, 1, ... as torch's current one, each in a folder of its own."""
    import torch

    for index in range(torch.cuda.device_count()):
        torch.cuda.set_device(index)
        os.chdir(tempfile.mkdtemp())
        yield function("cuda")


def merge(results: list[Result]) -> Result:
    """One check's results on GPU 0, 1, ... as one.

    It is the worst, with the GPU that it is of; the figures of all, if all passed.
    """
    if not results:
        return failed("torch finds no GPU", "see the checks `driver` and `torch-build`")
    index = 0
    for number, result in enumerate(results):
        if is_worse(result, results[index]):
            index = number
    worst = results[index]
    if worst.verdict is PASS and len(results) == 1:
        return worst
    if worst.verdict is not PASS:
        return replace(worst, summary=f"GPU {index}: {worst.summary}")
    figures = {}
    for number, result in enumerate(results):
        for name, value in result.measured.items():
            figures[f"GPU {number} {name}"] = value
    summary = f"on each of {len(results)} GPUs; GPU 0: {worst.summary}"
    return replace(worst, summary=summary, measured=figures)


if __name__ == "__main__":
    name, device, environment, folder = sys.argv[1:]
    run_and_write(ChildTask(name, device, environment, Path(folder)))
    sys.stdout.flush()
    os._exit(
        0
    )  # a library that crashes at exit has nothing more to say about the check
