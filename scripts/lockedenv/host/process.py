"""Every program that the scripts start ends with them, however they end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from lockedenv.errors import FULL_DISK_TEXT, Stop
from lockedenv.redaction import redact
from lockedenv.reporter import Reporter

STARTER = Path(__file__).with_name("die_with_parent.py")
# Bytes free under which a disk counts as full: a file that did not fit may already be gone again.
FULL_DISK_FREE = 4_000_000
DISK_WORDS = re.compile(r"No space left on device|os error 28|Errno 28")
SHOWN = 8  # last lines of a command that failed, in the error
GENTLY = 1.5  # seconds that a program has to end what it has started itself

# The programs that run, and whether each is to be ended gently.
_running: dict[subprocess.Popen[Any], bool] = {}
# The signals that this program was interrupted by. From then on nothing new is started.
_stopped_by: list[int] = []


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the argument is the signal's number."""


def kill(process: subprocess.Popen[Any]) -> None:
    """Ends a program of `started`, and all that it has started in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def started(
    command: Sequence[object], gentle: bool = False, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """A program in a group of its own, which ends with the block, an interrupt and this program.

    `gentle`: an interrupt ends it by SIGTERM, and 1.5 s later by SIGKILL. `options` are those of
    Popen; standard input is empty if none is given. Raises OSError if it cannot be started.
    """
    _stop_if_interrupted()
    words = [str(word) for word in command]
    process, failures = _start(words, options)
    _running[process] = gentle
    try:
        # An interrupt may have come while this thread was starting it. That has ended what was in
        # the list by then, and not this.
        _stop_if_interrupted()
        _raise_if_not_started(process, failures, words[0])
        yield process
    finally:
        os.close(failures)
        kill(process)
        process.wait()
        del _running[process]


def _stop_if_interrupted() -> None:
    if _stopped_by:
        raise Interrupted(_stopped_by[0])


def _start(
    words: Sequence[str], options: dict[str, Any]
) -> tuple[subprocess.Popen[Any], int]:
    """The process that becomes the program, and a pipe with the errno if it cannot."""
    reading, writing = os.pipe()
    environ = options.get("env")
    if environ is None:
        environ = os.environ
    # Where there is no locale, Python sets LC_CTYPE for itself (PEP 538). The program has ours.
    locale = environ.get("LC_CTYPE", "")
    starter = [
        _find_interpreter(),
        "-I",
        "-S",
        str(STARTER),
        str(os.getpid()),
        str(writing),
        locale,
    ]
    options = {"stdin": subprocess.DEVNULL, **options}
    options["pass_fds"] = [*options.get("pass_fds", ()), writing]
    try:
        process = subprocess.Popen(
            [*starter, *words], start_new_session=True, **options
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, reading


def _find_interpreter() -> str:
    """This Python; the machine's where the set-up has removed the environment of this one."""
    if sys.executable and os.access(sys.executable, os.X_OK):
        return sys.executable
    return shutil.which("python3") or "python3"


def _raise_if_not_started(
    process: subprocess.Popen[Any], failures: int, program: str
) -> None:
    """Waits until the program is started. Raises the OSError with which that failed."""
    number = os.read(failures, 16)
    if not number:
        return
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    raise OSError(int(number), os.strerror(int(number)), program)


@dataclass(frozen=True)
class CommandResult:
    """How a command ended, and what it wrote to its two outputs.

    `status`: None if it cannot start, or did not end in time; `error` says then why.
    """

    status: int | None
    output: str = ""
    error: str = ""


def ask(
    command: Sequence[object], timeout: float = 30, input: str = "", **options: Any
) -> CommandResult:
    """Runs a command that answers in `timeout` seconds; `input` goes to its standard input."""
    # `python -m` would import from the current folder.
    options.setdefault("cwd", "/")
    pipe: Any = subprocess.PIPE
    pipes = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
    try:
        with started(command, **pipes, **options) as process:
            try:
                # An argument or a path of other bytes than UTF-8 is passed on as it came.
                content = input.encode(errors="surrogateescape")
                out, err = process.communicate(content, timeout)
            except subprocess.TimeoutExpired:
                kill(process)
                process.communicate()
                error = f"no answer within {timeout:.0f} s"
                return CommandResult(None, error=error)
    except OSError as problem:
        return CommandResult(None, error=problem.strerror or str(problem))
    return CommandResult(
        process.returncode,
        output=out.decode(errors="replace"),
        error=err.decode(errors="replace"),
    )


def run(
    command: Sequence[object],
    environ: Mapping[str, str],
    what: str,
    reporter: Reporter | None = None,
    cwd: Path | str = "/",
    disk: Path | None = None,
    on_line: Callable[[str], str | None] | None = None,
) -> str:
    """Runs a command to its end; returns what it says.

    Its lines go to `on_line`, or are details of the reporter's running step. Meanwhile the progress
    shows `what`, or what `on_line` gave last, and the seconds. Without a reporter nothing is shown.
    `disk`: where it writes.

    Raises Stop if it fails, with its last lines, or says that the disk is full.
    """
    lines: list[str] = []
    doing = what
    least_free = FULL_DISK_FREE + 1
    began = time.monotonic()

    def take_line(line: str) -> None:
        nonlocal doing
        lines.append(line)
        if on_line is not None:
            doing = on_line(line) or doing
        elif reporter is not None:
            reporter.note(line)

    def look() -> None:
        nonlocal least_free
        if disk is not None:
            # micromamba 2.5.0 only says "Write failed".
            least_free = min(least_free, shutil.disk_usage(disk).free)
        if reporter is not None:
            reporter.progress(lambda: f"{doing}, {time.monotonic() - began:.0f} s")

    pipe = subprocess.PIPE
    with started(
        command, env=environ, cwd=cwd, stdout=pipe, stderr=subprocess.STDOUT
    ) as process:
        status = follow(process, take_line, look)
    if status == 0:
        return "\n".join(lines)
    if least_free <= FULL_DISK_FREE or DISK_WORDS.search("\n".join(lines)):
        raise Stop(f"{what}: {FULL_DISK_TEXT}")
    ended = f"exit {status}" if status > 0 else f"signal {-status}"
    tail = "\n  ".join(lines[-SHOWN:])
    raise Stop(f"{what} failed ({ended}): {tail if tail else 'it said nothing'}")


def follow(
    process: subprocess.Popen[Any],
    take_line: Callable[[str], None],
    look: Callable[[], None],
) -> int:
    """Waits for a program that writes into a pipe; gives its exit status.

    `take_line` gets each line as it comes, without secrets; `look` is called all the while.
    """

    def forward(output: Any) -> None:
        with output:
            for raw in output:
                take_line(redact(raw.decode(errors="replace").rstrip()))

    reader = threading.Thread(target=forward, args=[process.stdout], daemon=True)
    reader.start()
    while process.poll() is None:
        look()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    reader.join(5)
    return process.wait()


def end_on_interrupts() -> None:
    """From here on Ctrl-C and SIGTERM end what runs, and raise Interrupted in this thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    _stopped_by.append(number)
    # Python drops what is raised in a finalizer, and shows it; `started` raises it again.
    sys.unraisablehook = _show_nothing
    # Whoever waits for one of these, in whatever thread, goes on at once.
    for process, gentle in list(_running.items()):
        if gentle:
            _end_gently(process)
        kill(process)
    raise Interrupted(number)


def _show_nothing(unraisable: object) -> None:
    pass


def _end_gently(process: subprocess.Popen[Any]) -> None:
    """Waits for a program to end what it has started in groups of their own."""
    process.terminate()
    deadline = time.monotonic() + GENTLY
    while time.monotonic() < deadline:
        # WNOWAIT: the status is left for whoever waits for it.
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        if os.waitid(os.P_PID, process.pid, options) is not None:
            return
        time.sleep(0.02)
