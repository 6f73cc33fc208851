"""The checks, what they find, and how they are registered: one file per kind of thing that can be wrong.

A check is a function with the decorator @check. One with `child=True` runs in a process of its own in the prefix's interpreter
and gets the device ("cuda" or "cpu"); any other runs in the verifier, on the standard library, and gets the Context.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from lockedenv.host.machine import GIB, Gpu
from lockedenv.prefix.records import Installed
from lockedenv.spec.environment import Environment
from lockedenv.spec.locks import CondaPackage, PipPackage

QUICK, FULL = "quick", "full"
PASS, WARN, FAIL, SKIP = "pass", "warn", "fail", "skip"


@dataclass
class Result:
    """`summary`, one line: what was measured or is wrong; `remedy`: what to do about it; `measured`: name with unit -> figure."""

    verdict: str
    summary: str
    remedy: str = ""
    details: List[str] = field(default_factory=list)
    measured: Dict[str, Any] = field(default_factory=dict)
    check: str = ""
    seconds: float = 0.0


def passed(summary: str, **measured: Any) -> Result:
    return Result(PASS, summary, measured=measured)


def failed(summary: str, remedy: str, details: Sequence[str] = (), **measured: Any) -> Result:
    return Result(FAIL, summary, remedy, list(details), measured)


def warned(summary: str, remedy: str, details: Sequence[str] = (), **measured: Any) -> Result:
    return Result(WARN, summary, remedy, list(details), measured)


def skipped(reason: str) -> Result:
    return Result(SKIP, reason)


def first(items: List[str]) -> str:
    """The first of one line or more, and how many there are beside it, for a summary."""
    return items[0] + f" (and {len(items) - 1} more)" * (len(items) > 1)


def verdict(wrong: List[str], remedy: str, good: str) -> Result:
    """A failure that lists what is wrong, or a pass that says `good` if nothing is."""
    return failed(first(wrong), remedy, wrong[1:]) if wrong else passed(good)


def exit_status(results: List[Result], strict: bool = False) -> int:
    """0 if nothing failed, otherwise 1; with `strict`, a warning counts as a failure. Skipped is neither."""
    return int(
        any(result.verdict == FAIL or (strict and result.verdict == WARN) for result in results)
    )


@dataclass
class Context:
    """What the checks are about: a prefix, the locks, this machine."""

    installed: Installed
    environment: Environment
    gpu_mode: str = "auto"
    conda_lock: List[CondaPackage] = field(default_factory=list)
    pip_lock: List[PipPackage] = field(default_factory=list)
    lock_error: str = ""
    gpus: List[Gpu] = field(default_factory=list)
    gpu_error: str = ""
    environ: Dict[str, str] = field(default_factory=dict)

    @property
    def cuda(self) -> str:
        return self.environment.cuda(self.installed.backend) if not self.lock_error else ""

    @property
    def device(self) -> str:
        return "cuda" if (self.gpus or self.gpu_error) and self.gpu_mode != "off" else "cpu"


@dataclass(frozen=True)
class Check:
    """`proves` is what a pass means. `remedy` is for a crash or an error that the check did not foresee.

    `gpu`: it has no CPU path. `each_gpu`: it runs once on each GPU, as torch's current device. `alone`: it measures, so
    nothing may run beside it. `timeout` in seconds on each GPU, `memory` in bytes: what the child needs at most.
    """

    name: str
    proves: str
    function: Callable[[Any], Result]
    level: str = QUICK
    remedy: str = (
        "compare with the lock: scripts/verify_environment.py --level quick; if that passes, report it with --json"
    )
    child: bool = False
    gpu: bool = False
    each_gpu: bool = False
    alone: bool = False
    timeout: int = 120
    memory: int = 2 * GIB


REGISTRY: Dict[str, Check] = {}


def check(
    name: str, proves: str, level: str = QUICK, **options: Any
) -> Callable[[Callable[[Any], Result]], Any]:
    """Registers a function as a check; `options` are fields of Check."""

    def register(function: Callable[[Any], Result]) -> Callable[[Any], Result]:
        REGISTRY[name] = Check(name, proves, function, level, **options)
        return function

    return register


check_each_gpu = partial(check, level=FULL, child=True, each_gpu=True)


def load() -> Dict[str, Check]:
    """All checks by name, in the order in which they are reported."""
    for module in "layers files libraries surroundings gpu compute kernels training data".split():
        importlib.import_module(f"lockedenv.verify.checks.{module}")
    return REGISTRY


def no_gpu(context: Context) -> str:
    """Why a check of the GPU has nothing to look at; empty if it has."""
    return (
        ""
        if context.device == "cuda"
        else "--gpu off" if context.gpu_mode == "off" else "no NVIDIA GPU on this machine"
    )


def relative(got: Any, exact: Any) -> float:
    """The norm of the difference of two tensors over that of the second."""
    return float(((got - exact).norm() / exact.norm()).item())


def within(errors: Mapping[str, Tuple[float, float]], where: str, remedy: str) -> Result:
    """The verdict on (error, bound) by name: a failure names each above its bound, and NaN is above any."""
    said = {
        name: f"{name} {error:.1e} (bound {bound:.1e})" for name, (error, bound) in errors.items()
    }
    measured = {f"{name} error": error for name, (error, _) in errors.items()}
    wrong = [said[name] for name, (error, bound) in errors.items() if not error <= bound]
    if wrong:
        return failed(f"{where}: {first(wrong)}", remedy, wrong[1:], **measured)
    near = max(errors, key=lambda name: errors[name][0] / errors[name][1])
    few = (
        f"{len(errors)} cases; nearest the bound: {said[near]}"
        if len(errors) > 6
        else "; ".join(said.values())
    )
    return passed(f"{where}: {few}", **measured)
