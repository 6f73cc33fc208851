"""Runs one check in a process of its own, so that a crash, a hang or a kill is that check's result.

`python -m lockedenv.verify.child NAME DEVICE FILE` is the child: it writes the result to FILE as JSON. With DEVICE alone it forks
children: what takes longer to import than most checks to run is imported once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from lockedenv import ROOT
from lockedenv.host.machine import gpu_nodes
from lockedenv.host.process import kill, libc, started
from lockedenv.verify.checklist import find_check
from lockedenv.verify.checks import COMPILED, FAIL, PASS, SKIP, WARN, Check, Result, failed

# What is imported before a fork; the first two before that of torch.compile, the longest check. Not bitsandbytes and what imports
# it (peft, Trainer): it asks each GPU what it can do, and CUDA does not work in the forks of a process that has used it.
STACK = """torch torch._inductor.compile_fx transformers.models.llama.modeling_llama accelerate hf_transfer hf_xet datasets numpy
scipy.stats statsmodels.api tqdm pytest einops tokenizers safetensors huggingface_hub""".split()


@contextlib.contextmanager
def forking(
    python: Path, device: str, environ: Dict[str, str]
) -> "Iterator[Callable[[str, str, float], int]]":
    """Gives what forks a check: name, folder, seconds in which it must begin -> its process id, or 0 where that cannot be."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [python, "-X", "faulthandler", "-m", "lockedenv.verify.child", device]
    silent: Any = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }  # what fails to import, the check `imports` tells
    lock, begun = threading.Lock(), threading.Event()
    libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    with (
        contextlib.ExitStack() as stack
    ):  # it is killed in the end, and leaves what its libraries put into TMPDIR
        environ = {
            **environ,
            "TMPDIR": stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-")),
        }
        for end in (control, theirs):
            stack.enter_context(end)
        process = stack.enter_context(
            started(command, stdin=theirs, cwd=ROOT / "scripts", env=environ, **silent)
        )
        theirs.close()

        def fork(name: str, folder: str, limit: float) -> int:
            if name != "torch-compile":
                begun.wait(0.1)  # so that it comes first
            with lock, contextlib.suppress(OSError, ValueError):  # it hangs, or has ended
                begun.set()
                control.settimeout(limit)
                control.send(json.dumps([name, folder]).encode())
                return int(control.recv(64))
            kill(process)
            return 0

        yield fork


def run_child(
    check: Check, python: Path, device: str, environ: Dict[str, str], fork: Any = None
) -> Result:
    """The check's result, whatever becomes of its process: a fork, or where there can be none, a fresh interpreter."""
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        answer, log = Path(folder, "result.json"), Path(folder, "log")
        limit = check.timeout * (
            max(1, len(gpu_nodes())) if check.each_gpu and device == "cuda" else 1
        )
        limit += check.compile_timeout
        command = [
            str(python),
            "-X",
            "faulthandler",
            "-m",
            "lockedenv.verify.child",
            check.name,
            device,
            str(answer),
        ]
        options: Any = {
            "stderr": subprocess.STDOUT,
            "cwd": folder,
            "env": {**environ, "TMPDIR": folder},
        }
        status: Optional[int] = None
        try:
            with log.open("wb") as output, contextlib.suppress(subprocess.TimeoutExpired):
                forked = fork and fork(check.name, folder, limit)
                with started(forked or command, stdout=output, **options) as process:
                    status = process.wait(limit)
        except OSError as error:
            return failed(f"{python} does not start: {error.strerror}", check.remedy)
        said = log.read_text(errors="replace").splitlines()[-12:]
        if status is None:
            remedy = f"it hangs: run it alone with --only {check.name}; {check.remedy}"
            return failed(f"no answer within {limit} s; stopped", remedy, said)
        if status < 0:
            name = signal.Signals(-status).name
            why = (
                ": out of memory, or someone stopped it"
                if status == -signal.SIGKILL
                else ": it crashed"
            )
            return failed(f"killed by {name}{why}", check.remedy, said)
        try:
            result = Result(**json.loads(answer.read_text()))
        except (OSError, ValueError, TypeError):
            return failed(
                f"ended without an answer (exit {status}): {''.join(said[-1:])}", check.remedy, said
            )
    if device == "cuda" and result.verdict in (SKIP, COMPILED):
        return failed(
            f"there is a GPU, and this could not run on it: {result.summary}", check.remedy
        )
    return result


def merged(results: List[Result]) -> Result:
    """One check's results on GPU 0, 1, ... as one: the worst and which GPU it is of; the figures of all, if it is a pass."""
    if not results:
        return failed("torch finds no GPU", "see the checks `driver` and `torch-build`")
    index, worst = min(
        enumerate(results),
        key=lambda pair: (FAIL, SKIP, COMPILED, WARN, PASS).index(pair[1].verdict),
    )
    many = f"on each of {len(results)} GPUs; GPU 0: " if len(results) > 1 else ""
    lead = many if worst.verdict == PASS else f"GPU {index}: "
    figures = {
        f"GPU {i} {name}": value
        for i, result in enumerate(results)
        for name, value in result.measured.items()
    }
    return replace(
        worst,
        summary=lead + worst.summary,
        measured=figures if worst.verdict == PASS and many else worst.measured,
    )


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
        results.append(
            failed(
                f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                check.remedy,
                lines[-8:],
            )
        )
    return replace(merged(results) if each else results[0], seconds=time.monotonic() - began)


def fork_checks(device: str) -> List[str]:
    """Forks a check for each name and folder that it is told; returns in the fork, with the arguments of a child.

    An import that fails or crashes ends it, and fresh interpreters tell of what; so `imports` is as good in a fork as in one.
    """
    control, environ, verifier = socket.socket(fileno=0), dict(os.environ), os.getppid()
    os.environ.update(
        PYTORCH_NVML_BASED_CUDA_CHECK="1", TORCH_WARM_POOL="0"
    )  # no compile workers, which would not be a fork's
    for said in iter(lambda: control.recv(1 << 16), b""):
        name, folder = json.loads(said)
        for module in STACK[:2] if name == "torch-compile" else STACK:
            if importlib.util.find_spec(module.split(".")[0]):  # not every environment has each
                importlib.import_module(module)
        if (
            "/libcuda.so" in Path("/proc/self/maps").read_text()
        ):  # torch.cuda._is_in_bad_fork knows of torch's own calls alone
            break
        between = os.fork()
        if between:
            os.waitpid(between, 0)
            continue
        between = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == between:  # until the verifier has adopted it
            time.sleep(0.001)
        libc.prctl(1, signal.SIGKILL)
        if os.getppid() != verifier:
            break
        os.setsid()
        control.send(str(os.getpid()).encode())
        os.chdir(folder)
        for number, file in enumerate([os.devnull, "log", "log"]):
            os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), number)
        os.environ.clear()
        os.environ.update(environ, TMPDIR=folder)
        tempfile.tempdir = None
        return [name, device, "result.json"]
    sys.exit()


if __name__ == "__main__":
    name, device, file = fork_checks(sys.argv[1]) if len(sys.argv) == 2 else sys.argv[1:]
    Path(file).write_text(json.dumps(asdict(outcome(find_check(name), device))))
    os._exit(0)  # a library that crashes at exit has nothing more to say about the check
