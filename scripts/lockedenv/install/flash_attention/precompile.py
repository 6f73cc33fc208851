"""Compiles FlashAttention 4's common kernels when an environment is made.

So the first training step does not wait for them. It needs no GPU: the target is one that is there,
or the one asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lockedenv import ROOT
from lockedenv.errors import Stop
from lockedenv.host.gpus import Gpu
from lockedenv.host.process import kill, started
from lockedenv.install.request import Installation
from lockedenv.prefix.activation import find_kernel_folder
from lockedenv.reporter import Reporter
from lockedenv.spec.flash_attention_kernels import (
    COMMON,
    COMPILED_NOTE,
    OLDEST_MAJOR,
    Kernel,
    cache_variables,
)
from lockedenv.spec.gpu_target import GpuTarget, parse_target, target_variables
from lockedenv.spec.layers import BackendName
from lockedenv.spec.variables import clean

# FlashAttention's own cache asks for the same: cache_utils.py, _compute_source_fingerprint.
COMPILER_WHEELS = (
    "flash-attn-4",
    "nvidia-cutlass-dsl",
    "apache-tvm-ffi",
    "quack-kernels",
    "torch",
)
PROGRAM = "lockedenv.install.flash_attention.compile_kernels"
TIME_LIMIT = 600  # seconds for one GPU's kernels; about 15 are usual


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


def compile_common_kernels(
    job: Installation, targets: Sequence[GpuTarget], cpus: int, reporter: Reporter
) -> None:
    """The set-up's step: compiles the common kernels for each target.

    Writes into the folder that `activate` names. What these wheels have compiled there before is
    not looked at again. A failure is a note: the first use of a kernel compiles it.
    """
    folder = find_kernel_folder(job.prefix)
    for target in targets:
        done = folder / f"{COMPILED_NOTE}{target.name}-{describe_wheels(job)}"
        if done.exists():
            reporter.outcome(f"its common kernels for {target.name} are in {folder}")
            continue
        try:
            (result,) = precompile_kernels(
                job.prefix.path / "bin/python",
                folder,
                [target],
                cpus,
                clean(dict(os.environ)),
            )
        except OSError as error:
            reporter.outcome(
                f"its kernels for {target.name} are compiled at first use: {error}"
            )
            continue
        for line in result.errors:
            reporter.say(f"not compiled for {target.name}: {line}")
        if result.compiled:
            reporter.outcome(
                f"{len(result.compiled)} kernels compiled for {target.name} "
                f"in {result.seconds:.0f} s, not run; they are in {folder}"
            )
        if result.compiled and not result.errors:
            done.touch()


def choose_targets(gpus: Sequence[Gpu], arch: str) -> list[GpuTarget]:
    """What to compile for: --arch, such as "90" or "90,100", or else each kind of GPU that is here.

    Raises Stop for what is no compute capability.
    """
    names = sorted({gpu.arch for gpu in gpus})
    if arch:
        names = re.split(r"[,;]", arch)
    targets = []
    for name in names:
        try:
            targets.append(parse_target(name.replace(".", "")))
        except ValueError as error:
            raise Stop(f"--arch {arch}: {error}") from None
    return targets


def describe_targets(targets: Sequence[GpuTarget]) -> str:
    """What is going to be compiled, and when, in words."""
    good = []
    parts = []
    for target in targets:
        problem = find_target_problem(target)
        if problem:
            parts.append(problem)
        else:
            good.append(target.name)
    if good:
        parts.insert(0, f"its common kernels are compiled for {', '.join(good)}")
    if not targets:
        parts.append(
            "its kernels are compiled at first use: no GPU is here, and no --arch given"
        )
    return "; ".join(parts)


def find_target_problem(target: GpuTarget) -> str:
    """Why there are no kernels for a target; empty where there are."""
    if target.major < OLDEST_MAJOR:
        return f"FlashAttention 4 has no backward for {target.name}; use sdpa there"
    return ""


def describe_wheels(job: Installation) -> str:
    """A short hash of Python's version and the wheels that decide which machine code is made."""
    text = job.environment.python
    for pin in job.environment.wheels(BackendName.PIP):
        if pin.name.startswith(COMPILER_WHEELS):
            text += f" {pin.name}=={pin.version}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        problem = find_target_problem(target)
        if problem:
            results.append(Precompiled(target, problem=problem))
        else:
            arguments = json.dumps([asdict(kernel) for kernel in kernels])
            shares = max(1, min(workers, len(kernels)))
            command = [str(python), "-m", PROGRAM, str(shares), arguments]
            results.append(_run_compiler(command, folder, target, environ, limit))
    return results


def _run_compiler(
    command: list[str],
    folder: Path,
    target: GpuTarget,
    environ: Mapping[str, str],
    limit: float,
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
    problem = ""
    with started(
        command,
        cwd="/",  # `python -m` would import from the current folder
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, log = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            kill(process)
            output, log = process.communicate()
            problem = f"not done within {limit:.0f} s; stopped"
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
            kernels.append(
                CompiledKernel(name, float(answer["seconds"]), str(answer["error"]))
            )
        except (ValueError, TypeError, KeyError):
            continue
    return kernels
