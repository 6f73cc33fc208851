"""What a check is and what it is told. One file for each kind of thing that can be wrong.

A check is a function with a decorator. One with @check runs in the verifier, on the standard
library alone, and gets the Context. One with @child_check or @check_each_gpu runs in a process of
its own in the prefix's interpreter, and gets the device ("cuda" or "cpu"). The list of all checks,
in the order in which they are reported, is lockedenv/verify/checklist.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Generic, TypeVar

from lockedenv.host.disks import GIB
from lockedenv.host.gpus import Gpu
from lockedenv.prefix.records import Installed, hash_record
from lockedenv.spec.environment import DEV, Environment
from lockedenv.spec.level import Level
from lockedenv.spec.locks import CondaPackage, LockError, PipPackage, read_pip_lock
from lockedenv.spec.variables import handed_on
from lockedenv.verify.contents import PrefixContents
from lockedenv.verify.drift import PackageFinding, conda_findings, pip_findings
from lockedenv.verify.remedies import verify_command
from lockedenv.verify.result import (
    COMPILED,
    FAIL,
    PASS,
    SKIP,
    WARN,
    CheckOutcome,
    Result,
    compiled,
    damaged,
    exit_status,
    failed,
    first,
    passed,
    skipped,
    verdict,
    warned,
)
from lockedenv.verify.strays import Stray, find_strays

__all__ = [
    "COMPILED",
    "FAIL",
    "PASS",
    "SKIP",
    "WARN",
    "AnyCheck",
    "Check",
    "CheckOutcome",
    "Context",
    "CheckGroup",
    "Result",
    "check",
    "check_each_gpu",
    "child_check",
    "compiled",
    "damaged",
    "exit_status",
    "failed",
    "first",
    "lacks_gpus",
    "no_gpu",
    "passed",
    "relative",
    "skipped",
    "verdict",
    "warned",
    "within",
]

# The checks whose failure explains why a library does not work.
DAMAGE = ("present", "files", "variables")
TIMEOUT = 120  # seconds of a check
MEMORY = 2 * GIB
COMPARE_WITH_LOCK = (
    f"compare with the lock: {verify_command(Path(sys.prefix), '--level', Level.QUICK.value)}; "
    "if that passes, report it with --json"
)


class CheckGroup(Enum):
    """What a check is about: the report has one line for each group, in this order."""

    PACKAGES = "packages"
    FILES = "files"
    CUDA = "CUDA"
    TORCH = "torch"
    ATTENTION = "attention"
    TRAINING = "training"
    DATA = "data"
    MACHINE = "machine"


@dataclass
class Context:
    """What the checks are about: a prefix, the locks, this machine."""

    installed: Installed
    environment: Environment
    gpu_mode: str = "auto"
    conda_lock: list[CondaPackage] = field(default_factory=list)
    pip_lock: list[PipPackage] = field(default_factory=list)
    lock_error: str = ""
    gpus: list[Gpu] = field(default_factory=list)
    gpu_error: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def callers_environ(self) -> dict[str, str]:
        """The variables with those that our shell scripts started without."""
        return {**self.environ, **handed_on(self.environ)}

    @property
    def cuda(self) -> str:
        """The CUDA that the locked torch is built for; empty if the locks cannot be read."""
        if self.lock_error:
            return ""
        return self.environment.cuda(self.installed.backend)

    @property
    def device(self) -> str:
        """What the checks compute on: "cuda" where there is, or should be, a GPU."""
        if self.gpu_mode != "off" and (self.gpus or self.gpu_error):
            return "cuda"
        return "cpu"

    @cached_property
    def flash_attn(self) -> PipPackage | None:
        """The locked flash-attn, where it is installed in the locked version."""
        if self.lock_error:
            return None
        locked = self.environment.flash_attn()
        if locked and self.installed.version(locked.name) == locked.version:
            return locked
        return None

    @cached_property
    def locked(self) -> set[str]:
        """The names of the locked packages; of all that are installed
        if the locks cannot be read."""
        if self.lock_error:
            names = set()
            for record in self.installed.conda:
                names.add(record.name)
            for dist in self.installed.dists:
                names.add(dist.name)
            return names
        names = self._find_locked_tools()
        for conda_package in self.conda_lock:
            names.add(conda_package.name)
        for wheel in self.pip_lock:
            names.add(wheel.name)
        if self.flash_attn:
            names.add(self.flash_attn.name)
        return names

    def _find_locked_tools(self) -> set[str]:
        """The packages of requirements-dev.txt that are installed as it locks them."""
        if self.installed.backend.has_conda_layer:
            return set()
        try:
            locked = read_pip_lock(self.environment.folder / DEV)
        except LockError:
            return set()
        pins = {}
        for pin in locked:
            pins[pin.name] = pin
        names = set()
        for dist in self.installed.dists:
            pinned = pins.get(dist.name)
            if pinned and pinned.version == dist.version and pinned.record_sha256:
                if hash_record(dist) == pinned.record_sha256:
                    names.add(dist.name)
        return names

    @cached_property
    def contents(self) -> PrefixContents:
        """The paths of the prefix, compared with what should be there."""
        return PrefixContents(self.installed, self.locked)

    @cached_property
    def conda_findings(self) -> list[PackageFinding]:
        """What differs between the conda layer and its lock."""
        return conda_findings(self.conda_lock, self.installed, self.contents.inventory)

    @cached_property
    def pip_findings(self) -> list[PackageFinding]:
        """What differs between the wheels and their lock."""
        return pip_findings(self.pip_lock, self.installed, self.contents.inventory)

    @cached_property
    def strays(self) -> list[Stray]:
        """What lies in the prefix and is of no locked package."""
        return find_strays(self.contents)

    @cached_property
    def locked_modules(self) -> set[str]:
        """SITE/NAME of each module and package at the top of site-packages that is locked."""
        found = set()
        for entry in self.contents.expected.entries:
            for lead in self.contents.sites:
                if entry.path.startswith(lead) and entry.path.endswith((".py", ".so")):
                    name = entry.path[len(lead) :].partition("/")[0].partition(".")[0]
                    found.add(f"{lead}{name}")
        return found


About = TypeVar("About")
Function = Callable[[About], Result]


@dataclass(frozen=True)
class Check(Generic[About]):
    """A check of what its function takes: a Context, or a device. `proves` is what a pass means.

    `remedy` is for a crash or an error that the check did not foresee.
    `child`: it runs in a process of its own. `gpu`: it has no CPU path. `gpus`: how many GPUs
    it needs then; where there are fewer, the runner skips it.
    `each_gpu`: it runs once on each GPU, as torch's current device.
    `alone`: it measures, so nothing may run beside it.
    `timeout`: seconds that it may take on each GPU. `compile_timeout`: seconds on top of them for
    all GPUs together, for what is compiled when it is first used. `memory`: bytes that its process
    needs at most.
    `explained_by`: the checks whose failure probably is the cause where this one fails too.
    `speaks`: its summary stands in the line of its group, where it passed. `yields_to`: the check
    that speaks in its place, where that has passed too.
    `brief`: its details are shown only where it is asked for by name, or with --verbose.
    """

    name: str
    proves: str
    function: Function[About]
    level: Level = Level.QUICK
    remedy: str = COMPARE_WITH_LOCK
    child: bool = False
    gpu: bool = False
    gpus: int = 1
    each_gpu: bool = False
    alone: bool = False
    timeout: int = TIMEOUT
    compile_timeout: int = 0
    memory: int = MEMORY
    explained_by: tuple[str, ...] = ()
    speaks: bool = False
    yields_to: str = ""
    brief: bool = False
    group: CheckGroup = CheckGroup.MACHINE

    def __call__(self, about: About) -> Result:
        """Runs it here: on a device, or a Context."""
        return self.function(about)


AnyCheck = Check[Any]


# The decorators. Each names its options, so that a type checker sees a wrong one.


def check(
    name: str,
    proves: str,
    level: Level = Level.QUICK,
    *,
    explained_by: tuple[str, ...] = (),
    speaks: bool = False,
    yields_to: str = "",
    brief: bool = False,
) -> Callable[[Function[Context]], Check[Context]]:
    """Makes a check of a function of the Context, which runs in the verifier."""

    def make_check(function: Function[Context]) -> Check[Context]:
        return Check(
            name,
            proves,
            function,
            level,
            explained_by=explained_by,
            speaks=speaks,
            yields_to=yields_to,
            brief=brief,
        )

    return make_check


def child_check(
    name: str,
    proves: str,
    level: Level = Level.FULL,
    *,
    remedy: str = COMPARE_WITH_LOCK,
    gpu: bool = False,
    gpus: int = 1,
    each_gpu: bool = False,
    alone: bool = False,
    timeout: int = TIMEOUT,
    compile_timeout: int = 0,
    memory: int = MEMORY,
    speaks: bool = False,
) -> Callable[[Function[str]], Check[str]]:
    """Makes a check of a function of the device, which runs in a process of its own: once, or
    with `each_gpu` on each GPU.
    """

    def make_check(function: Function[str]) -> Check[str]:
        return Check(
            name,
            proves,
            function,
            level,
            remedy,
            child=True,
            gpu=gpu,
            gpus=gpus,
            each_gpu=each_gpu,
            alone=alone,
            timeout=timeout,
            compile_timeout=compile_timeout,
            memory=memory,
            explained_by=DAMAGE,
            speaks=speaks,
        )

    return make_check


def check_each_gpu(
    name: str,
    proves: str,
    level: Level = Level.FULL,
    *,
    remedy: str = COMPARE_WITH_LOCK,
    compile_timeout: int = 0,
    memory: int = MEMORY,
) -> Callable[[Function[str]], Check[str]]:
    """Makes a check of a function of the device, which runs on each GPU, in one process."""
    return child_check(
        name,
        proves,
        level,
        remedy=remedy,
        each_gpu=True,
        compile_timeout=compile_timeout,
        memory=memory,
    )


def no_gpu(context: Context) -> str:
    """Why a check of the GPU has nothing to look at; empty if it has."""
    if context.device == "cuda":
        return ""
    if context.gpu_mode == "off":
        return "--gpu off"
    return "no NVIDIA GPU on this machine"


def lacks_gpus(check: AnyCheck, context: Context) -> str:
    """Why a check cannot run on the GPUs that are here; empty if it can, or needs none."""
    if not check.gpu:
        return ""
    reason = no_gpu(context)
    if reason:
        return f"{reason}, and this has no CPU path"
    # After an error their number is unknown: the check runs, and says what it finds.
    if context.gpu_error or len(context.gpus) >= check.gpus:
        return ""
    return f"needs {check.gpus} GPUs; this machine has {len(context.gpus)}"


def relative(got: Any, exact: Any) -> float:
    """The norm of the difference of two tensors over that of the second."""
    return float(((got - exact).norm() / exact.norm()).item())


def within(
    errors: Mapping[str, tuple[float, float]], where: str, remedy: str
) -> Result:
    """The verdict on (error, bound) by name: a failure names each above its bound.

    NaN is above any bound.
    """
    texts = {}
    measured = {}
    wrong = []
    for name, (error, bound) in errors.items():
        texts[name] = f"{name} {error:.1e} (bound {bound:.1e})"
        measured[f"{name} error"] = error
        if not error <= bound:
            wrong.append(texts[name])
    if wrong:
        return failed(f"{where}: {first(wrong)}", remedy, wrong[1:], **measured)
    if len(errors) <= 6:
        return passed(f"{where}: {'; '.join(texts.values())}", **measured)
    nearest = max(errors, key=lambda name: errors[name][0] / errors[name][1])
    return passed(
        f"{where}: {len(errors)} cases; nearest the bound: {texts[nearest]}", **measured
    )
