"""Runs one check in a process of its own, so that a crash, a hang or a kill is that check's result.

`python -m lockedenv.verify.child NAME DEVICE FILE` is the child: it writes the result to FILE as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List, Optional

from lockedenv import ROOT
from lockedenv.process import started
from lockedenv.verify.checks import Check, load
from lockedenv.verify.results import SKIP, Result, failed

# A cluster's variables, which RunPod sets too: accelerate and Trainer would wait in a check for the other ranks.
RENDEZVOUS = set(
    "WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK NODE_RANK MASTER_ADDR MASTER_PORT ACCELERATE_USE_FSDP "
    "ACCELERATE_USE_DEEPSPEED ACCELERATE_MIXED_PRECISION OMPI_COMM_WORLD_SIZE PMI_SIZE SLURM_PROCID SLURM_NTASKS".split()
)


def environment(prefix: Path, device: str, environ: Dict[str, str]) -> Dict[str, str]:
    """The child's environment: the caller's, with the prefix's programs first and nothing fetched from a hub."""
    ours = {
        "PATH": f"{prefix / 'bin'}:{environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(ROOT / "scripts"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    if device == "cpu":
        ours["CUDA_VISIBLE_DEVICES"] = ""
    return {**{k: v for k, v in environ.items() if k not in RENDEZVOUS}, **ours}


def run_child(check: Check, python: Path, device: str, environ: Dict[str, str]) -> Result:
    """The check's result, whatever becomes of its process."""
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        answer, log = Path(folder, "result.json"), Path(folder, "log")
        command = [str(python), "-X", "faulthandler", "-m", "lockedenv.verify.child", check.name, device, str(answer)]
        options: Any = {"stderr": subprocess.STDOUT, "cwd": folder, "env": {**environ, "TMPDIR": folder}}
        status: Optional[int] = None
        try:
            with log.open("wb") as output, started(command, stdout=output, **options) as process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(check.timeout)
        except OSError as error:
            return failed(f"{python} does not start: {error.strerror}", check.remedy)
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
