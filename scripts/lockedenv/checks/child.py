"""Runs one check in a process of its own, so that a crash, a hang or a kill is that check's result.

`python -m lockedenv.checks.child NAME DEVICE FILE` is the child: it writes the result to FILE as JSON.
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
from pathlib import Path
from typing import Dict, List

from lockedenv import ROOT
from lockedenv.checks import Check, load
from lockedenv.results import SKIP, Result, failed


def environment(prefix: Path, device: str, environ: Dict[str, str]) -> Dict[str, str]:
    """The child's environment: the caller's, with the prefix's programs first and nothing fetched from a hub."""
    ours = {
        "PATH": f"{prefix / 'bin'}:{environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(ROOT / "scripts"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    if device == "cpu":
        ours["CUDA_VISIBLE_DEVICES"] = ""
    return {**environ, **ours}


def run_child(check: Check, python: Path, device: str, environ: Dict[str, str]) -> Result:
    """The check's result, whatever becomes of its process."""
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        answer, log = Path(folder, "result.json"), Path(folder, "log")
        command = [str(python), "-X", "faulthandler", "-m", "lockedenv.checks.child", check.name, device, str(answer)]
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env={**environ, "TMPDIR": folder},
                    start_new_session=True,
                )
            except OSError as error:
                return failed(f"{python} does not start: {error.strerror}", check.remedy)
            status = _wait(process, check.timeout)
        said = log.read_text(errors="replace").splitlines()[-12:]
        if status is None:
            remedy = f"it hangs: run it alone with --only {check.name}; {check.remedy}"
            return failed(f"no answer within {check.timeout} s; stopped", remedy, said)
        if status < 0:
            name = signal.Signals(-status).name
            why = ": out of memory, or someone stopped it" if status == -signal.SIGKILL else ": it crashed"
            return failed(f"killed by {name}{why}", check.remedy, said)
        try:
            result = Result(**json.loads(answer.read_text()))
        except (OSError, ValueError, TypeError):
            return failed(f"ended without an answer (exit {status}): {''.join(said[-1:])}", check.remedy, said)
    if device == "cuda" and result.verdict == SKIP:
        return failed(f"there is a GPU, and this could not run on it: {result.summary}", check.remedy)
    return result


def _wait(process: "subprocess.Popen[bytes]", timeout: int) -> "int | None":
    """The exit status, or None after the time limit; in any case nothing of the child's process group is left."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def main(arguments: List[str]) -> None:
    name, device, answer = arguments
    check = load()[name]
    started = time.monotonic()
    try:
        result = check.function(device)
    except Exception as error:  # whatever a library raises is this check's result
        lines = traceback.format_exc().strip().splitlines()
        text = " ".join(str(error).split())[:200]
        result = failed(f"{type(error).__name__}: {text}", check.remedy, lines[-8:])
    result.seconds = time.monotonic() - started
    Path(answer).write_text(json.dumps(result.as_dict()))
    os._exit(0)  # a library that crashes at exit has nothing more to say about the check


if __name__ == "__main__":
    main(sys.argv[1:])
