"""Programs that end with the one that started them, and what they have of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ
from fixtures.listener import Listener
from lockedenv.errors import Stop
from lockedenv.host.process import CommandResult, ask, run, started

PROGRAMS = ROOT / "tests/host/programs"
ENVIRON = clean_environ(PYTHONPATH=str(ROOT / "scripts"), PYTHONDONTWRITEBYTECODE="1")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until_it_ends(pid: int) -> None:
    deadline = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_program_ends_with_the_one_that_started_it(number: int) -> None:
    command = [sys.executable, PROGRAMS / "start_and_wait.py"]
    with subprocess.Popen(
        command, env=ENVIRON, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(number)
    wait_until_it_ends(pid)


def test_what_it_has_started_in_its_group_ends_with_the_block() -> None:
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    with started(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_running(pid)
        assert os.getpgid(pid) == process.pid
        process.stdout.close()
    wait_until_it_ends(pid)


@pytest.mark.parametrize(
    "program, why",
    [
        ("/nowhere/program", "No such file or directory"),
        ("no-such-program", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("/etc", "Permission denied"),
    ],
)
def test_a_program_that_cannot_be_started_is_an_error(program: str, why: str) -> None:
    assert ask([program, "x"]) == CommandResult(None, error=why)
    with pytest.raises(OSError, match=why) as caught:
        with started([program]):
            raise AssertionError("it is started")
    assert caught.value.filename == program


def test_a_script_without_its_interpreter_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/nowhere/python\n")
    script.chmod(0o755)
    assert ask([script]) == CommandResult(None, error="No such file or directory")
    script.write_text("neither script nor program\n")
    assert ask([script]) == CommandResult(None, error="Exec format error")


def test_a_program_has_the_environment_that_it_is_given_and_no_more() -> None:
    assert ask(
        ["env"], env={"PATH": os.environ["PATH"], "A": "b c"}
    ).output.splitlines() == [f"PATH={os.environ['PATH']}", "A=b c"]
    assert ask(["/usr/bin/env"], env={}) == CommandResult(0)
    assert ask(["/usr/bin/env"], env={"LC_CTYPE": "C"}).output == "LC_CTYPE=C\n"


def test_a_program_has_no_file_and_no_ignored_signal_of_ours() -> None:
    descriptors = ask(["ls", "/proc/self/fd"]).output.split()
    assert sorted(descriptors) == ["0", "1", "2", "3"]  # 3 is the folder that ls reads
    ignored = ask(["grep", "SigIgn", "/proc/self/status"]).output.split()[1]
    assert int(ignored, 16) & (1 << (signal.SIGPIPE - 1)) == 0
    assert ask(["sh", "-c", "yes | head -1"]).output == "y\n"


def test_a_file_that_is_passed_on_is_there(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        number = file.fileno()
        assert (
            ask(["bash", "-c", f"echo text >&{number}"], pass_fds=[number]).status == 0
        )
    assert (tmp_path / "file").read_text() == "text\n"


def test_many_threads_start_programs_at_once() -> None:
    def add(number: int) -> str:
        return ask(["sh", "-c", f"echo $(({number} + 1))"]).output.strip()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(add, range(40))) == [
            str(number + 1) for number in range(40)
        ]


def test_arguments_are_passed_as_they_are() -> None:
    words = ["a b", "", "--option", "$HOME", "ä", "\udcff", "'\"", Path("/a b")]
    out = ask(["printf", "%s\\n", *words]).output
    assert out.encode(errors="replace").count(b"\n") == len(words)
    assert out.splitlines()[:5] == ["a b", "", "--option", "$HOME", "ä"]


def test_programs_start_after_the_environment_of_this_python_was_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/bin/python3")
    assert ask(["echo", "text"]) == CommandResult(0, "text\n")


def test_no_answer_in_time_is_told() -> None:
    assert ask(["sleep", "600"], timeout=0.2) == CommandResult(
        None, error="no answer within 0 s"
    )


def test_a_long_command_shows_that_it_runs() -> None:
    listener = Listener()
    run(
        ["sh", "-c", "echo one; sleep 0.3"],
        {"PATH": os.environ["PATH"]},
        "waiting",
        listener,
        on_line=lambda line: f"has said {line}",
    )
    assert re.fullmatch(r"has said one, \d s", listener.states[-1])


def test_a_command_that_fails_tells_its_last_lines() -> None:
    environ = {"PATH": os.environ["PATH"]}
    assert run(["sh", "-c", "echo a; echo b >&2"], environ, "speaking") == "a\nb"
    with pytest.raises(Stop, match=r"speaking failed \(exit 3\): last words"):
        run(["sh", "-c", "echo last words; exit 3"], environ, "speaking")
    with pytest.raises(Stop, match=r"speaking failed \(signal 9\)"):
        run(["sh", "-c", "kill -9 $$"], environ, "speaking")
    with pytest.raises(Stop, match="No space left on device. Free some disk"):
        run(["sh", "-c", "echo 'os error 28'; exit 1"], environ, "writing")
