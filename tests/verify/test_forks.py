"""Checks that are forks of one process with the stack imported: here a stack of empty modules, and checks that misbehave."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from fixtures.commands import ROOT, clean_environ
from lockedenv.host import process as processes
from lockedenv.verify import forks
from lockedenv.verify.checks import Check, Result
from lockedenv.verify.child import LOG
from lockedenv.verify.forks import fork_server
from lockedenv.verify.runner import Children

HERE = Path(__file__).parent
PYTHON = Path(sys.executable)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that has the modules of the stack, all empty, and the misbehaving checks."""
    stack = tmp_path / "stack"
    marks = tmp_path / "marks"
    marks.mkdir()
    for name in forks.STACK:
        folder = stack
        for part in name.split("."):
            folder = folder / part
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
    shutil.copy(HERE / "misbehaving_checks.py", stack / "sitecustomize.py")
    return clean_environ(
        PYTHONPATH=f"{stack}:{ROOT / 'scripts'}",
        MARKS=str(marks),
        CUDA_VISIBLE_DEVICES="3",
        CHECKS_TEST="1",
    )


def run(environ: dict[str, str], *names: str, limit: int = 60) -> list[Result]:
    """The checks' results, two at a time."""
    checks = [Check(name, name, print, child=True, timeout=limit) for name in names]
    with (
        fork_server(PYTHON, "cpu", "", environ) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        return list(pool.map(Children(PYTHON, "cpu", environ, "", server).run, checks))


def find_left(environ: dict[str, str]) -> list[str]:
    """The commands that still run with the environment of a test."""
    found = []
    mark = f"MARKS={environ['MARKS']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_fork_that_crashes_hangs_or_leaves_is_its_own_result_alone(
    environ: dict[str, str],
) -> None:
    names = ("how", "crash", "hang", "leave", "how1")
    before, crash, hang, leave, after = run(environ, *names, limit=5)
    assert before.summary == after.summary == "forked"
    assert before.measured["pid"] != after.measured["pid"]
    assert crash.summary == "killed by SIGSEGV: it crashed"
    assert "last words" in crash.details
    # faulthandler's lines are in the check's own log
    assert any("Segmentation fault" in line for line in crash.details)
    assert hang.summary == "no answer within 5 s; stopped"
    assert "--only hang;" in hang.remedy
    assert leave.summary == "ended without an answer (exit 1): left"
    wait_for(lambda: not find_left(environ))  # what the one that hung had started, too


@pytest.mark.parametrize("forked", [True, False])
def test_a_child_that_ends_well_and_has_written_no_result_has_not_passed(
    forked: bool, environ: dict[str, str]
) -> None:
    if forked:
        (result,) = run(environ, "claim")
    else:
        result = Children(PYTHON, "cpu", environ).run(
            Check("claim", "", print, child=True)
        )
    assert result.verdict == "fail"
    assert result.summary.startswith("ended without an answer (exit 0)")


def test_a_fork_has_the_variables_and_the_folder_of_a_process_of_its_own(
    environ: dict[str, str],
) -> None:
    """Not those of the imports; and a variable that it sets, as trainer-resume does, is set for CUDA, which is C."""
    (result,) = run({**environ, "TORCH_WARM_POOL": "mine"}, "see")
    assert result.summary == "seen"
    seen = result.measured
    names = [name for name in environ if name not in ("TMPDIR", "LC_CTYPE")]
    assert {name: seen[name] for name in names} == {
        name: environ[name] for name in names
    }
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in seen
    assert seen["TORCH_WARM_POOL"] == "mine"
    assert seen["temp"] == seen["cwd"] == seen["TMPDIR"] != environ.get("TMPDIR")
    assert seen["group"] is True
    assert seen["now"] == "5"


MAPPED = (
    "import mmap; file = open(__file__[:-11] + 'libcuda.so.1'); "
    "kept = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)"
)


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
    module: str, code: str, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "stack" / module / "libcuda.so.1").write_text("CUDA")
    (tmp_path / "stack" / module / "__init__.py").write_text(code)
    summaries = [
        result.summary for result in run(environ, "how", "how1", "crash", limit=5)
    ]
    assert summaries == ["fresh", "fresh", "killed by SIGSEGV: it crashed"]


def test_torch_compile_is_forked_before_the_rest_is_imported_and_outlives_its_failure(
    environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "stack/datasets/__init__.py").write_text("raise ImportError")
    results = run({**environ, "COMPILES": "1"}, "how", "torch-compile")
    assert [result.summary for result in results] == ["fresh", "forked"]


def test_a_python_that_is_gone_is_told_by_each_check(environ: dict[str, str]) -> None:
    result = Children(Path("/nowhere/python"), "cpu", environ).run(
        Check("how", "", print)
    )
    assert result.summary == "/nowhere/python does not start: No such file or directory"


@pytest.fixture
def verifier(environ: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A verifier whose checks have begun, and hang."""
    command = [
        PYTHON,
        HERE / "run_hanging_checks.py",
        "hang",
        "hang1",
        "hang2",
        "hang3",
    ]
    with subprocess.Popen(
        command,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_for(lambda: list(Path(environ["MARKS"]).iterdir()))
        servers = [
            command for command in find_left(environ) if "verify.forks cpu" in command
        ]
        assert len(servers) > 1, "the server, and its forks"
        yield process
        process.kill()
        for mark in Path(environ["MARKS"]).iterdir():
            # a sleep that was not ended must not outlive the tests
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(mark.read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupt_leaves_no_fork_running(
    number: int, verifier: Any, environ: dict[str, str]
) -> None:
    verifier.send_signal(number)
    said = verifier.communicate(timeout=60)[0]
    assert "verifier: interrupted; run it again to go on" in said
    assert "Traceback" not in said
    wait_for(lambda: not find_left(environ))


def test_forks_and_what_they_started_end_with_a_verifier_that_is_killed(
    verifier: Any, environ: dict[str, str]
) -> None:
    verifier.kill()
    wait_for(lambda: not find_left(environ))


def test_what_a_check_started_ends_where_the_verifier_has_read_nothing(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """A verifier that was killed before it read the check's process id: the kernel tells the
    supervisor by an error, and a program of the check stayed.
    """
    (tmp_path / LOG).touch()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with fork_server(PYTHON, "cpu", "", environ) as server:
        with ours, theirs:
            server._ask("hang", str(tmp_path), theirs)
            wait_for(lambda: list(Path(environ["MARKS"]).iterdir()))
        wait_for(lambda: not [line for line in find_left(environ) if "sleep" in line])


def test_a_fork_outlives_its_server(environ: dict[str, str]) -> None:
    """An import that crashes after it has begun is none of its business."""
    check = Check("compiling", "", print, child=True, timeout=60)
    with (
        fork_server(PYTHON, "cpu", "", environ) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        children = Children(PYTHON, "cpu", environ, "", server)
        result = pool.submit(children.run, check)
        wait_for(lambda: list(Path(environ["MARKS"]).iterdir()))
        os.kill(server.process.pid, signal.SIGKILL)
        assert result.result(timeout=60).summary == "forked"


def test_a_process_that_starts_while_an_interrupt_is_dealt_with_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A verifier that was interrupted in that moment waited for the check's time limit."""
    stopped_by: list[int] = []

    class Late(dict[Any, bool]):
        def __setitem__(self, program: Any, gentle: bool) -> None:
            stopped_by.append(signal.SIGTERM)
            super().__setitem__(program, gentle)

    running = Late()
    monkeypatch.setattr(processes, "_running", running)
    monkeypatch.setattr(processes, "_stopped_by", stopped_by)
    with pytest.raises(processes.Interrupted):
        with processes.started(["sleep", "600"]):
            raise AssertionError("it goes on")
    assert not running


def test_an_interrupt_that_python_drops_is_one_line() -> None:
    """Python drops what is raised in a finalizer, and showed a traceback."""
    done = subprocess.run(
        [PYTHON, HERE / "interrupted_finalizer.py"],
        env=clean_environ(PYTHONPATH=str(ROOT / "scripts")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.stdout == "program: interrupted; run it again to go on\n"
