"""The checks, and how they are registered: one file per kind of thing that can be wrong.

A check is a function with the decorator @check. Those with `child=True` run in a process of their own in the prefix's
interpreter and get the device ("cuda" or "cpu"); the others run in the verifier, on the standard library, and get the
Context.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional

from lockedenv.installed import Installed
from lockedenv.locks import CondaPackage, PipPackage
from lockedenv.machine import GIB, Gpu
from lockedenv.verify.results import Result

QUICK, FULL = "quick", "full"


@dataclass
class Context:
    """What the checks are about: a prefix, the locks, this machine."""

    installed: Installed
    conda_lock: List[CondaPackage]
    pip_lock: List[PipPackage]
    lock_error: str
    gpus: List[Gpu]
    gpu_error: str
    gpu_mode: str = "auto"
    progress: Callable[[str], None] = lambda text: None
    environ: Dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cuda" if (self.gpus or self.gpu_error) and self.gpu_mode != "off" else "cpu"


@dataclass(frozen=True)
class Check:
    """`proves` is what a pass means. `remedy` is for a crash or an error that the check did not foresee.

    `timeout` in seconds, `memory` in bytes: what the child needs at most. `gpu`: it has no CPU path. `alone`: it
    measures, so nothing may run beside it.
    """

    name: str
    proves: str
    function: Callable[[Any], Result]
    level: str
    remedy: str
    child: bool
    gpu: bool
    alone: bool
    timeout: int
    memory: int


REGISTRY: Dict[str, Check] = {}
REINSTALL = "compare with the lock: scripts/verify_environment.py --level quick; if that passes, report it with --json"


def check(
    name: str,
    proves: str,
    level: str = QUICK,
    remedy: str = REINSTALL,
    child: bool = False,
    gpu: bool = False,
    alone: bool = False,
    timeout: int = 120,
    memory: int = 2 * GIB,
) -> Callable[[Callable[[Any], Result]], Callable[[Any], Result]]:
    def register(function: Callable[[Any], Result]) -> Callable[[Any], Result]:
        REGISTRY[name] = Check(name, proves, function, level, remedy, child, gpu, alone, timeout, memory)
        return function

    return register


def load() -> Dict[str, Check]:
    """All checks by name, in the order in which they are reported."""
    for module in (
        "layers",
        "files",
        "libraries",
        "surroundings",
        "gpu",
        "compute",
        "attention",
        "quantized",
        "training",
        "data",
    ):
        importlib.import_module(f"lockedenv.verify.checks.{module}")
    return REGISTRY


def first(items: List[str], otherwise: Optional[str] = None) -> str:
    """The first of some lines and how many more there are, for a summary."""
    if not items:
        return otherwise or ""
    return items[0] + (f" (and {len(items) - 1} more)" if len(items) > 1 else "")
