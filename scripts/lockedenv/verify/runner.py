"""Runs checks: those of the files here, those that load native code in processes of their own,
side by side."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from lockedenv.host.gpus import find_gpu_nodes
from lockedenv.host.launchers import child_environment
from lockedenv.host.limits import cpu_limit, read_memory
from lockedenv.verify.checks import AnyCheck, Context, lacks_gpus
from lockedenv.verify.child import LOG, ChildTask, read_result, run_fresh
from lockedenv.verify.forks import CannotFork, ForkServer, fork_server
from lockedenv.verify.result import FAIL, Result, failed, skipped

FEW = 3  # children whose own imports take no longer than the whole stack's
LOOK = 0.01  # seconds between two looks at a running check


class Listener(Protocol):
    """What the runner tells its progress to."""

    def result(self, result: Result) -> None:
        """A result, in the order of the report."""

    def running(self, text: Callable[[], str], begins: bool = False) -> None:
        """What is running; `begins`: it has just begun."""


@dataclass(frozen=True)
class Children:
    """How checks are started in processes of their own.

    `environment` names the locks as --environment does; empty for the prefix's own.
    """

    python: Path
    device: str
    environ: Mapping[str, str]
    environment: str = ""
    server: ForkServer | None = None

    def run(self, check: AnyCheck) -> Result:
        """The check's result, whatever becomes of its process: a fork,
        or else a fresh interpreter."""
        limit = check.timeout
        if check.each_gpu and self.device == "cuda":
            limit *= max(1, len(find_gpu_nodes()))
        limit += check.compile_timeout
        with tempfile.TemporaryDirectory(prefix="verify-") as folder:
            subject = ChildTask(check.name, self.device, self.environment, Path(folder))
            (subject.folder / LOG).touch()
            if self.server:
                with contextlib.suppress(CannotFork):
                    ended = self.server.run(check.name, folder, limit)
                    return read_result(check, subject, ended, limit)
            try:
                ended = run_fresh(self.python, subject, dict(self.environ), limit)
            except OSError as error:
                return failed(
                    f"{self.python} does not start: {error.strerror}", check.remedy
                )
            return read_result(check, subject, ended, limit)


def run_timed(check: AnyCheck, function: Callable[[], Result]) -> Result:
    """What a function of a check finds, with the check's name and its seconds;
    a crash is a result."""
    began = time.monotonic()
    try:
        result = function()
    except Exception as error:
        text = f"the check itself failed: {type(error).__name__}: {error}"
        result = failed(text, check.remedy)
    seconds = result.seconds or time.monotonic() - began
    return replace(result, check=check.name, seconds=seconds)


def run_checks(
    context: Context,
    checks: Sequence[AnyCheck],
    listener: Listener,
    environment: str = "",
) -> list[Result]:
    """Runs the checks, children side by side where CPUs and memory allow,
    and reports them in order."""
    results: list[Result] = []
    failures: set[str] = set()
    with contextlib.closing(_run_all(context, checks, listener, environment)) as found:
        for result in found:
            cause = result.follows_from or _find_cause(checks, result, failures)
            result = replace(result, follows_from=cause)
            if result.verdict is FAIL:
                failures.add(result.check)
            results.append(result)
            listener.result(result)
    return results


def _find_cause(checks: Iterable[AnyCheck], result: Result, failures: set[str]) -> str:
    """The failed check that probably is the cause of this failure; empty if none is."""
    if result.verdict is not FAIL:
        return ""
    for check in checks:
        if check.name == result.check:
            for name in check.explained_by:
                if name in failures:
                    return name
    return ""


def _run_all(
    context: Context, checks: Sequence[AnyCheck], listener: Listener, environment: str
) -> Generator[Result, None, None]:
    """The results in order: checks here, children side by side, children that measure alone."""
    here = []
    side_by_side = []
    alone = []
    for check in checks:
        if not check.child:
            here.append(check)
        elif check.alone:
            alone.append(check)
        else:
            side_by_side.append(check)
    children = []
    for check in (*side_by_side, *alone):
        if not lacks_gpus(check, context):
            children.append(check)
    with contextlib.ExitStack() as stack:  # an interrupt ends the children
        starter = _prepare_children(context, children, environment, stack)
        threads = ThreadPoolExecutor(_count_side_by_side(children))
        pool = ChildPool(starter, stack.enter_context(threads))
        if starter.server:
            stack.callback(starter.server.stop)
        children.sort(key=attrgetter("timeout"), reverse=True)  # the longest first
        for check in children:
            if not check.alone:
                pool.start(check)
        for check in here:
            listener.running(partial(str, check.name), begins=True)
            yield run_timed(check, partial(check.function, context))
        for check in (*side_by_side, *alone):
            reason = lacks_gpus(check, context)
            if reason:
                yield run_timed(check, partial(skipped, reason))
            else:
                yield _await(pool.start(check), pool, listener)


class ChildPool:
    """Children, each with a thread that waits for it; as many run as `threads` has.

    `since`: the checks that run now, and since when.
    """

    def __init__(self, starter: Children, threads: ThreadPoolExecutor) -> None:
        self.starter = starter
        self.threads = threads
        self.futures: dict[str, Future[Result]] = {}
        self.since: dict[str, float] = {}

    def start(self, check: AnyCheck) -> Future[Result]:
        """The result to come of a check, which is started where it was not yet."""
        if check.name not in self.futures:
            self.futures[check.name] = self.threads.submit(self._run, check)
        return self.futures[check.name]

    def _run(self, check: AnyCheck) -> Result:
        self.since[check.name] = time.monotonic()
        try:
            return run_timed(check, partial(self.starter.run, check))
        finally:
            del self.since[check.name]

    def describe(self) -> str:
        """What runs now, such as "torch 3 s, qlora 12 s"."""
        now = time.monotonic()
        parts = []
        for name, began in list(self.since.items()):
            parts.append(f"{name} {now - began:.0f} s")
        return ", ".join(parts)


def _prepare_children(
    context: Context,
    children: list[AnyCheck],
    environment: str,
    stack: contextlib.ExitStack,
) -> Children:
    python = context.installed.python
    environ = child_environment(
        context.installed.prefix, context.device, context.environ
    )
    server = None
    if len(children) > FEW and python.exists():
        server = stack.enter_context(
            fork_server(python, context.device, environment, environ)
        )
    return Children(python, context.device, environ, environment, server)


def _count_side_by_side(children: list[AnyCheck]) -> int:
    """How many children the CPUs and the memory allow at a time."""
    largest = max((check.memory for check in children), default=1)
    by_memory = read_memory().total // largest
    return max(1, min(int(cpu_limit()), by_memory))


def _await(future: Future[Result], pool: ChildPool, listener: Listener) -> Result:
    while not future.done():
        listener.running(pool.describe)
        time.sleep(LOOK)
    return future.result()
