"""How a script begins and ends: its streams, signals and exit status, and never a traceback."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from typing import Callable

from lockedenv.errors import Stop, disk_text
from lockedenv.host.process import Interrupted, end_on_interrupts
from lockedenv.host.repository import describe_version
from lockedenv.redaction import redact

BROKEN_PIPE = 141  # as a shell says it of a program that SIGPIPE has ended
BY_SIGNAL = 128  # 130: Ctrl-C; 143: SIGTERM


def run_script(name: str, work: Callable[[], int]) -> int:
    """Runs a script's work; gives its exit status.

    What stops it is told in one message. What was not foreseen is written to a log file.
    """
    open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a Latin-1 terminal
    end_on_interrupts()
    # Some supervisors ignore SIGCHLD, and their programs inherit that: the kernel then reaps every
    # child itself, and Popen.wait gives 0 for whatever status it ended with.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        status = find_status(work)
        sys.stdout.flush()
        return status
    except Stop as error:
        message = str(error)
        status = error.exit_status
    except Interrupted as error:
        message = "interrupted; run it again to go on"
        status = BY_SIGNAL + int(error.args[0])
    except BrokenPipeError:
        # The reader of the output has closed it.
        discard_output()
        return BROKEN_PIPE
    except OSError as error:
        message = disk_text(error)
        status = 1
    except Exception as error:
        message = report_crash(name, error)
        status = 1
    finish_output()
    print(f"{name}: {redact(message)}", file=sys.stderr)
    return status


def find_status(work: Callable[[], int]) -> int:
    """The exit status of a script's work, also where the parser ends it: --help, wrong usage."""
    try:
        return work()
    except SystemExit as error:
        return int(error.code or 0)


def open_missing_streams() -> None:
    """Whoever started this may have closed its streams. What is written to them is then discarded.

    Otherwise the first files that are opened would take their numbers, and be written to.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest number that is free, which is this.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def finish_output() -> None:
    """What was printed comes before the error. A disk that is full must not be a second error."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()


def discard_output() -> None:
    """What is still to be written to standard output goes nowhere, also when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_crash(name: str, error: Exception) -> str:
    """Writes the log of a crash; gives the message about it."""
    kind = type(error).__name__
    try:
        path = write_crash_log(name)
    except OSError:
        return f"{kind}: {error}: please open an issue with this"
    return f"{path} has what happened ({kind}): please open an issue with it"


def write_crash_log(name: str) -> str:
    """Writes the running exception and what a report needs into a file; gives its path."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    machine = (
        f"Python {platform.python_version()} at {sys.executable}, {platform.platform()}"
    )
    lines = [
        " ".join([name, *sys.argv[1:]]),
        f"{describe_version()}, {now}",
        f"{machine}, {_read_working_folder()}",
        traceback.format_exc(),
    ]
    with tempfile.NamedTemporaryFile(
        "w",
        prefix="maximalcai-",
        suffix=".log",
        delete=False,
        encoding="utf-8",
        errors="replace",
    ) as file:
        file.write(redact("\n".join(lines)))
    return file.name


def _read_working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "a working folder that is gone"


class ShowVersion(argparse.Action):
    """The option --version, which asks git only when it is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(describe_version())
        parser.exit()
