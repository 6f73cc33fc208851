"""Checks that are forks of one process with the stack imported: here a stack of empty modules, and checks that misbehave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from conftest import ROOT, clean_environ
from lockedenv.host import process as processes
from lockedenv.verify import child
from lockedenv.verify.checks import Check, Result

CHECKS = """
import ctypes, os, subprocess, sys, tempfile, time
from lockedenv.verify.checklist import CHECKS
from lockedenv.verify.checks import Check, passed
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p

def how(device):
    return passed("forked" if "torch" in sys.modules else "fresh", pid=os.getpid())

def crash(device):
    print("last words", file=sys.stderr)
    ctypes.string_at(0)

def hang(device):
    sleep = subprocess.Popen(["sleep", "600"])
    open(f"{os.environ['MARKS']}/{os.getpid()}", "w").write(str(sleep.pid))
    time.sleep(600)

def leave(device):
    sys.exit("left")

def see(device):
    seen = {**os.environ, "cwd": os.getcwd(), "temp": tempfile.gettempdir(), "group": os.getpgrp() == os.getpid()}
    os.environ["CUDA_VISIBLE_DEVICES"] = "5"
    seen["now"] = libc.getenv(b"CUDA_VISIBLE_DEVICES").decode()
    return passed("seen", **seen)

for number in range(4):
    for function in (how, crash, hang, leave, see):
        name = function.__name__ + str(number or "")
        CHECKS.append(Check(name, name, function, child=True))
"""


@pytest.fixture
def environ(tmp_path: Path) -> Dict[str, str]:
    """The environment of a Python that has the modules of the stack, all empty, and the checks of CHECKS."""
    stack, marks = tmp_path / "stack", tmp_path / "marks"
    marks.mkdir()
    for name in child.STACK:
        for depth in range(len(name.split("."))):
            (stack / Path(*name.split(".")[: depth + 1])).mkdir(parents=True, exist_ok=True)
            (stack / Path(*name.split(".")[: depth + 1]) / "__init__.py").touch()
    (stack / "sitecustomize.py").write_text(CHECKS)
    return clean_environ(
        PYTHONPATH=f"{stack}:{ROOT / 'scripts'}",
        MARKS=str(marks),
        CUDA_VISIBLE_DEVICES="3",
        CHECKS_TEST="1",
    )


def run(environ: Dict[str, str], *names: str, limit: int = 60) -> List[Result]:
    """The checks' results, two at a time."""
    python = Path(sys.executable)
    with child.forking(python, "cpu", environ) as fork, ThreadPoolExecutor(2) as pool:
        checks = [Check(name, name, print, child=True, timeout=limit) for name in names]
        return list(
            pool.map(lambda check: child.run_child(check, python, "cpu", environ, fork), checks)
        )


def left(environ: Dict[str, str]) -> List[str]:
    """The commands that still run with the environment of a test."""
    found, mark = [], f"MARKS={environ['MARKS']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_fork_that_crashes_hangs_or_leaves_is_its_own_result_alone(
    environ: Dict[str, str],
) -> None:
    before, crash, hang, leave, after = run(
        environ, "how", "crash", "hang", "leave", "how1", limit=5
    )
    assert (
        before.summary == after.summary == "forked"
        and before.measured["pid"] != after.measured["pid"]
    )
    assert crash.summary == "killed by SIGSEGV: it crashed" and "last words" in crash.details
    assert any(
        "Segmentation fault" in line for line in crash.details
    ), "faulthandler's lines are in the check's own log"
    assert hang.summary == "no answer within 5 s; stopped" and "--only hang;" in hang.remedy
    assert leave.summary == "ended without an answer (exit 1): left"
    wait_for(lambda: not left(environ))  # what the one that hung had started, too


def test_a_fork_has_the_variables_and_the_folder_of_a_process_of_its_own(
    environ: Dict[str, str],
) -> None:
    """Not those of the imports; and a variable that it sets, as trainer-resume does, is set for CUDA, which is C."""
    (seen,) = run({**environ, "TORCH_WARM_POOL": "mine"}, "see")
    assert seen.summary == "seen"
    ours = {name: seen.measured[name] for name in environ if name not in ("TMPDIR", "LC_CTYPE")}
    assert ours == {name: value for name, value in environ.items() if name in ours}
    assert (
        "PYTORCH_NVML_BASED_CUDA_CHECK" not in seen.measured
        and seen.measured["TORCH_WARM_POOL"] == "mine"
    )
    assert (
        seen.measured["temp"]
        == seen.measured["cwd"]
        == seen.measured["TMPDIR"]
        != environ.get("TMPDIR")
    )
    assert seen.measured["group"] is True and seen.measured["now"] == "5"


MAPPED = "import mmap; file = open(__file__[:-11] + 'libcuda.so.1'); kept = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)"


@pytest.mark.parametrize(
    "module, code",
    [
        ("datasets", "import ctypes; ctypes.string_at(0)"),
        ("datasets", "raise ImportError('undefined symbol')"),
        ("datasets", "import time; time.sleep(600)"),
        ("accelerate", MAPPED),
    ],
    ids=["crashes", "fails", "hangs", "touches CUDA"],
)
def test_where_the_stack_cannot_be_imported_checks_have_interpreters_of_their_own(
    module: str, code: str, environ: Dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "stack" / module / "libcuda.so.1").write_text("CUDA")
    (tmp_path / "stack" / module / "__init__.py").write_text(code)
    summaries = [result.summary for result in run(environ, "how", "how1", "crash", limit=5)]
    assert summaries == ["fresh", "fresh", "killed by SIGSEGV: it crashed"]


def test_torch_compile_is_forked_before_the_rest_is_imported_and_outlives_its_failure(
    environ: Dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "stack/datasets/__init__.py").write_text("raise ImportError")
    with (tmp_path / "stack/sitecustomize.py").open("a") as file:
        file.write("\ndef compiling(device):\n    time.sleep(2)\n    return how(device)\n")
        file.write("CHECKS.insert(0, Check('torch-compile', '', compiling, child=True))\n")
    assert [result.summary for result in run(environ, "how", "torch-compile")] == [
        "fresh",
        "forked",
    ]


def test_a_python_that_is_gone_is_told_by_each_check(environ: Dict[str, str]) -> None:
    result = child.run_child(Check("how", "", print), Path("/nowhere/python"), "cpu", environ)
    assert result.summary == "/nowhere/python does not start: No such file or directory"


VERIFIER = """
import os, sys, types
from pathlib import Path
from lockedenv.cli.script import run_script
from lockedenv.cli import verify as command
from lockedenv.verify.checks import Check, Context
from lockedenv.verify.report import Report

command.child_environment = lambda *about: dict(os.environ)
installed = types.SimpleNamespace(python=Path(sys.executable), prefix=Path(sys.prefix))
checks = [Check(name, name, print, child=True) for name in sys.argv[1:]]
run_script("verifier", lambda: len(command.run_checks(Context(installed, None), checks, Report())))
"""


@pytest.fixture
def verifier(environ: Dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A verifier whose checks have begun, and hang."""
    command = [sys.executable, "-c", VERIFIER, "hang", "hang1", "hang2", "hang3"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_for(lambda: list(Path(environ["MARKS"]).iterdir()))
        assert (
            sum("verify.child cpu" in command for command in left(environ)) > 1
        ), "the one that forks, and forks"
        yield process
        process.kill()
        for mark in Path(
            environ["MARKS"]
        ).iterdir():  # a sleep that was not ended must not outlive the tests
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(mark.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupt_leaves_no_fork_running(
    number: int, verifier: Any, environ: Dict[str, str]
) -> None:
    verifier.send_signal(number)
    said = verifier.communicate(timeout=60)[0]
    assert "verifier: interrupted; run it again to go on" in said and "Traceback" not in said, said
    wait_for(lambda: not left(environ))


def test_forks_end_with_a_verifier_that_is_killed(verifier: Any, environ: Dict[str, str]) -> None:
    verifier.kill()
    wait_for(lambda: not [command for command in left(environ) if "sleep" not in command])


def test_a_fork_outlives_the_thread_that_asked_for_it(environ: Dict[str, str]) -> None:
    """PR_SET_PDEATHSIG is about the parent's thread."""
    python, found = Path(sys.executable), []
    with child.forking(python, "cpu", environ) as fork:
        thread = threading.Thread(target=lambda: found.append(fork("hang", environ["MARKS"], 60)))
        (Path(environ["MARKS"]) / "log").touch()
        thread.start()
        thread.join()
        wait_for((Path(environ["MARKS"]) / str(found[0])).exists)
        with child.started(found[0]) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)


def test_a_process_that_starts_while_an_interrupt_is_dealt_with_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A verifier that was interrupted in that moment waited for the check's time limit."""

    class Late(Dict[Any, bool]):
        def __setitem__(self, program: Any, gentle: bool) -> None:
            stopped_by.append(signal.SIGTERM)
            super().__setitem__(program, gentle)

    running, stopped_by = Late(), []  # type: ignore[var-annotated]
    monkeypatch.setattr(processes, "_running", running)
    monkeypatch.setattr(processes, "_stopped_by", stopped_by)
    with pytest.raises(processes.Interrupted):
        with processes.started(["sleep", "600"]):
            raise AssertionError("it goes on")
    assert not running


def test_an_interrupt_that_python_drops_is_one_line() -> None:
    """Python drops what is raised in a finalizer, and showed a traceback."""
    program = (
        "import os, signal, sys\nfrom lockedenv.host.process import ask, run_script\n"
        "class Late:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "run_script('program', lambda: (Late(), 0) and print(ask(['sleep', '600'])))\n"
    )
    command, environ = [sys.executable, "-c", program], clean_environ(
        PYTHONPATH=str(ROOT / "scripts")
    )
    done = subprocess.run(
        command,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.stdout == "program: interrupted; run it again to go on\n"
