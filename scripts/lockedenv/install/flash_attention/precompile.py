"""Compiles FlashAttention 4's common kernels when an environment is made.

So the first training step does not wait for them. It needs no GPU: the target is one that is there,
or the one asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lockedenv import ROOT
from lockedenv.spec.flash_attention_kernels import COMMON, OLDEST_MAJOR, Kernel, cache_variables
from lockedenv.spec.gpu_target import GpuTarget, target_variables

PROGRAM = "lockedenv.install.flash_attention.compile_kernels"
FOLDER = "flash-attention-kernels"  # in the cache: on the volume of a pod
TIME_LIMIT = 600  # seconds for one GPU's kernels; about 15 are usual
WORKER_BYTES = 2 * 1024**3  # what one process needs at most


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel and the seconds that it took; `error` is empty if it was compiled."""

    name: str
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Precompiled:
    """What came of it for one GPU. `problem`: why nothing was tried, or why it ended early."""

    target: GpuTarget
    kernels: list[CompiledKernel] = field(default_factory=list)
    seconds: float = 0.0
    problem: str = ""

    @property
    def errors(self) -> list[str]:
        """What went wrong, one line a kernel. None of it stops a set-up: the first use compiles."""
        lines = []
        if self.problem:
            lines.append(self.problem)
        for kernel in self.kernels:
            if kernel.error:
                lines.append(f"{kernel.name}: {kernel.error}")
        return lines

    @property
    def compiled(self) -> list[CompiledKernel]:
        return [kernel for kernel in self.kernels if not kernel.error]


def kernel_folder(cache: Path) -> Path:
    """Where the compiled kernels lie; `activate` names it to FlashAttention 4."""
    return cache / FOLDER


def precompile_kernels(
    python: Path,
    folder: Path,
    targets: Sequence[GpuTarget],
    workers: int,
    environ: Mapping[str, str],
    limit: float = TIME_LIMIT,
    kernels: Sequence[Kernel] = COMMON,
) -> list[Precompiled]:
    """Compiles kernels, the common ones, into `folder` for each target, with the prefix's `python`.

    Starts processes and writes into `folder`. What is there already is not compiled again. An error
    is in what is returned, not raised: without the kernels a training step waits, and works.
    """
    results = []
    for target in targets:
        if target.major < OLDEST_MAJOR:
            problem = f"FlashAttention 4 has no backward for {target.name}; use sdpa there"
            results.append(Precompiled(target, problem=problem))
        else:
            arguments = json.dumps([asdict(kernel) for kernel in kernels])
            shares = max(1, min(workers, len(kernels)))
            command = [str(python), "-m", PROGRAM, str(shares), arguments]
            results.append(_run_compiler(command, folder, target, environ, limit))
    return results


def _run_compiler(
    command: list[str], folder: Path, target: GpuTarget, environ: Mapping[str, str], limit: float
) -> Precompiled:
    folder.mkdir(parents=True, exist_ok=True)
    variables = {
        **environ,
        **target_variables(target),
        **cache_variables(folder),
        "PYTHONPATH": str(ROOT / "scripts"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",  # it compiles; no GPU is asked or held
    }
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    problem = ""
    try:
        output, log = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, log = process.communicate()
        problem = f"not done within {limit:.0f} s; stopped"
    except BaseException:  # an interrupt: its processes end with it
        os.killpg(process.pid, 9)
        process.communicate()
        raise
    answers = _read_answers(output)
    if not answers and not problem:
        last = log.strip().splitlines()[-1:]
        problem = f"nothing was compiled (exit {process.returncode}): {''.join(last)}"
    return Precompiled(target, answers, time.monotonic() - began, problem)


def _read_answers(output: str) -> list[CompiledKernel]:
    """The kernels in what compile_kernels.py printed; a library's own lines are passed over."""
    kernels = []
    for line in output.splitlines():
        try:
            answer = json.loads(line)
            name = str(answer["kernel"])
            kernels.append(CompiledKernel(name, float(answer["seconds"]), str(answer["error"])))
        except (ValueError, TypeError, KeyError):
            continue
    return kernels
