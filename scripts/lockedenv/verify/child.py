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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from lockedenv import ROOT
from lockedenv.machine import gpu_nodes
from lockedenv.process import started
from lockedenv.verify.checks import FAIL, PASS, SKIP, WARN, Check, Result, failed, load

# A cluster's variables, which RunPod sets too: accelerate and Trainer would wait in a check for the other ranks.
RENDEZVOUS = """WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK NODE_RANK MASTER_ADDR MASTER_PORT PMI_SIZE
ACCELERATE_USE_FSDP ACCELERATE_USE_DEEPSPEED ACCELERATE_MIXED_PRECISION OMPI_COMM_WORLD_SIZE SLURM_PROCID SLURM_NTASKS""".split()
SETTINGS = {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}


def environment(prefix: Path, device: str, environ: Dict[str, str]) -> Dict[str, str]:
    """The child's environment: the caller's, with the prefix's programs first and nothing fetched from a hub."""
    ours = {"PATH": f"{prefix / 'bin'}:{environ.get('PATH', os.defpath)}", "PYTHONPATH": str(ROOT / "scripts"), **SETTINGS}
    if device == "cpu":
        ours["CUDA_VISIBLE_DEVICES"] = ""
    return {**{k: v for k, v in environ.items() if k not in RENDEZVOUS}, **ours}


def run_child(check: Check, python: Path, device: str, environ: Dict[str, str]) -> Result:
    """The check's result, whatever becomes of its process."""
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        answer, log = Path(folder, "result.json"), Path(folder, "log")
        limit = check.timeout * (max(1, len(gpu_nodes())) if check.each_gpu and device == "cuda" else 1)
        command = [str(python), "-X", "faulthandler", "-m", "lockedenv.verify.child", check.name, device, str(answer)]
        options: Any = {"stderr": subprocess.STDOUT, "cwd": folder, "env": {**environ, "TMPDIR": folder}}
        status: Optional[int] = None
        try:
            with log.open("wb") as output, started(command, stdout=output, **options) as process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(limit)
        except OSError as error:
            return failed(f"{python} does not start: {error.strerror}", check.remedy)
        said = log.read_text(errors="replace").splitlines()[-12:]
        if status is None:
            remedy = f"it hangs: run it alone with --only {check.name}; {check.remedy}"
            return failed(f"no answer within {limit} s; stopped", remedy, said)
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


def merged(results: List[Result]) -> Result:
    """One check's results on GPU 0, 1, ... as one: the worst and which GPU it is of; the figures of all, if it is a pass."""
    if not results:
        return failed("torch finds no GPU", "see the checks `driver` and `torch-build`")
    index, worst = min(enumerate(results), key=lambda pair: (FAIL, SKIP, WARN, PASS).index(pair[1].verdict))
    many = f"on each of {len(results)} GPUs; GPU 0: " if len(results) > 1 else ""
    lead = many if worst.verdict == PASS else f"GPU {index}: "
    figures = {f"GPU {i} {name}": value for i, result in enumerate(results) for name, value in result.measured.items()}
    return replace(worst, summary=lead + worst.summary, measured=figures if worst.verdict == PASS and many else worst.measured)


def on_each_gpu(function: Callable[[str], Result]) -> Iterator[Result]:
    """A check's results with GPU 0, 1, ... as torch's current one, each in a folder of its own."""
    import torch

    for index in range(torch.cuda.device_count()):
        torch.cuda.set_device(index)
        os.chdir(tempfile.mkdtemp())
        yield function("cuda")


def outcome(check: Check, device: str) -> Result:
    """What a check finds, on each GPU up to the first that fails; whatever a library raises is the check's result."""
    results, began, each = [], time.monotonic(), check.each_gpu and device == "cuda"
    try:
        for result in on_each_gpu(check.function) if each else [check.function(device)]:
            results.append(result)
            if result.verdict == FAIL:
                break
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        results.append(failed(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", check.remedy, lines[-8:]))
    return replace(merged(results) if each else results[0], seconds=time.monotonic() - began)


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(asdict(outcome(load()[sys.argv[1]], sys.argv[2]))))
    os._exit(0)  # a library that crashes at exit has nothing more to say about the check
