"""How a script ends: one message, the right status, no traceback, whatever its streams are."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.commands import ROOT, clean_environ

PROGRAM = ROOT / "tests/cli/programs/run_work.py"
ENVIRON = clean_environ(PYTHONPATH=str(ROOT / "scripts"), PYTHONDONTWRITEBYTECODE="1")


def run(work: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The program, with both its outputs as one text."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
    options.setdefault("env", ENVIRON)
    return subprocess.run(
        [sys.executable, PROGRAM, work], text=True, timeout=60, **options
    )


def run_in_shell(work: str, redirections: str) -> subprocess.CompletedProcess[str]:
    """The program with its streams as a shell's redirections make them."""
    command = f'"$0" "$1" "$2" {redirections}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, str(PROGRAM), work],
        text=True,
        timeout=60,
        env=ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize(
    "work, status, message",
    [
        ("stop", 1, "program: there is no disk; add one\n"),
        ("misuse", 2, "program: unknown name `tset`; did you mean `test`?\n"),
        ("speak", 0, "a line\n"),
        ("drop_an_interrupt", 143, "program: interrupted; run it again to go on\n"),
    ],
)
def test_what_stops_a_script_is_one_message(
    work: str, status: int, message: str
) -> None:
    done = run(work)
    assert (done.returncode, done.stdout) == (status, message)


def test_a_full_disk_is_told_as_one() -> None:
    done = run("fill")
    assert done.returncode == 1
    assert done.stdout.startswith(
        "program: /some/file: No space left on device. Free some disk"
    )


def test_what_was_not_foreseen_is_a_log_without_secrets(tmp_path: Path) -> None:
    done = run("crash", env={**ENVIRON, "TMPDIR": str(tmp_path)})
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    match = re.search(
        r"(\S+/maximalcai-\S+\.log) has what happened \(KeyError\)", done.stdout
    )
    assert match, done.stdout
    assert "please open an issue with it" in done.stdout, done.stdout
    log = Path(match[1]).read_text()
    assert "Traceback" in log
    assert "run_work.py" in log
    assert "maximalcai" in log
    assert "s3cret" not in log
    assert "***@index.example" in log


def test_a_crash_whose_log_cannot_be_written_is_still_told(tmp_path: Path) -> None:
    environ = {**ENVIRON, "TMPDIR": str(tmp_path / "none")}
    command = [sys.executable, PROGRAM, "crash"]
    options: dict[str, Any] = {"env": environ, "stdout": subprocess.PIPE}
    # tempfile then tries /tmp, /var/tmp and the current folder.
    limits = ["prlimit", "--fsize=0"]
    done = subprocess.run(
        [*limits, *command], stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 1
    assert "KeyError" in done.stdout
    assert "Traceback" not in done.stdout
    assert "s3cret" not in done.stdout


@pytest.mark.parametrize("redirections", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-"])
@pytest.mark.parametrize(
    "work, status", [("speak", 0), ("stop", 1), ("fail_to_ask", 0)]
)
def test_a_closed_stream_is_no_error(work: str, status: int, redirections: str) -> None:
    done = run_in_shell(work, redirections)
    assert done.returncode == status, done.stdout
    assert "open an issue" not in done.stdout
    assert "Traceback" not in done.stdout


def test_a_full_output_is_one_message() -> None:
    done = run_in_shell("speak_much", ">/dev/full")
    assert done.returncode == 1
    assert "No space left on device" in done.stdout
    assert "Traceback" not in done.stdout
    assert "Exception ignored" not in done.stdout
    done = run_in_shell("speak", ">/dev/full")
    assert done.returncode == 1, done.stdout
    assert "Exception ignored" not in done.stdout, done.stdout


SETUP = ["scripts/setup_runpod_environment.sh"]
POST_CREATE = ["scripts/post_create.sh"]
VERIFIER = [sys.executable, "scripts/verify_environment.py"]
COMMAND = [sys.executable, "scripts/maximalcai.py", "/nowhere"]


@pytest.mark.parametrize(
    "words",
    [
        [*SETUP, "--help"],
        [*SETUP, "--help-all"],
        [*SETUP, "--version"],
        [*POST_CREATE, "--help"],
        [*POST_CREATE, "--help-all"],
        [*POST_CREATE, "--version"],
        [*VERIFIER, "--help"],
        [*VERIFIER, "--version"],
        [*COMMAND, "--help"],
    ],
    ids=lambda words: " ".join(words[-2:]),
)
def test_a_help_that_cannot_be_written_is_one_message(words: list[str]) -> None:
    """It was "Exception ignored", and the exit status was 120."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT
        )
    assert done.returncode == 1, done.stderr
    [line] = done.stderr.splitlines()
    assert "No space left on device" in line


def test_a_reader_that_has_left_is_no_error() -> None:
    done = run_in_shell("speak_much", "| head -1")
    assert done.stdout == "a line\n"


@pytest.mark.parametrize(
    "action", [signal.SIG_IGN, signal.SIG_DFL], ids=["ignored", "default"]
)
def test_a_childs_status_is_seen_where_sigchld_is_ignored(action: Any) -> None:
    """Popen.wait gives 0 for every child otherwise."""
    before = signal.signal(signal.SIGCHLD, action)
    try:
        done = subprocess.Popen(
            [sys.executable, PROGRAM, "fail_to_ask"],
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRON,
        )
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert done.stdout is not None
    with done:
        assert done.stdout.read() == "1\n"


def test_version_names_the_commit() -> None:
    program = ROOT / "scripts/verify_environment.py"
    done = subprocess.run(
        [sys.executable, program, "--version"],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRON,
    )
    assert re.fullmatch(r"maximalcai [\d.]+\S*, commit \S+\n", done.stdout), done.stdout
    # A hook of another repository names that one.
    environ = {**ENVIRON, "GIT_DIR": "/nowhere", "GIT_INDEX_FILE": "/nowhere"}
    again = subprocess.run(
        [sys.executable, program, "--version"],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    assert again.stdout == done.stdout
    assert os.path.isdir(ROOT)
