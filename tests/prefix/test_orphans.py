"""What a killed run has left working is ended; what other people or other programs do is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Iterator

import pytest
from fixtures.commands import ROOT, apart, sh
from lockedenv.host.orphans import end_orphans

SLEEP = shutil.which("sleep") or "/bin/sleep"


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that a test started; all are ended afterwards."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def ended(process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return True
        time.sleep(0.02)
    return False


def test_what_micromamba_started_with_an_empty_environment_is_ended(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    """It compiles bytecode with PREFIX/bin/python and no environment: 7 of 11 next runs failed."""
    unfinished = tmp_path / "env.d/1"
    (unfinished / "bin").mkdir(parents=True)
    shutil.copy2(SLEEP, unfinished / "bin/python3.11")
    program = subprocess.Popen([unfinished / "bin/python3.11", "60"], env={})
    works_there = subprocess.Popen([SLEEP, "60"], cwd=unfinished, env={})
    marked = subprocess.Popen([SLEEP, "60"], env={"A": "1", "WORKS": "/env"})
    a_shell_of_peoples = subprocess.Popen([SLEEP, "60"], cwd=unfinished)
    elsewhere = subprocess.Popen([SLEEP, "60"], env={})
    beside = tmp_path / "env.d/12"
    shutil.copytree(unfinished, beside)
    trains = subprocess.Popen([beside / "bin/python3.11", "60"])
    started += [program, works_there, marked, a_shell_of_peoples, elsewhere, trains]
    time.sleep(0.2)
    end_orphans("WORKS=/env", [unfinished])
    assert ended(program)
    assert ended(works_there)
    assert ended(marked)
    assert a_shell_of_peoples.poll() is None
    assert elsewhere.poll() is None
    assert trains.poll() is None


@pytest.mark.parametrize("option", ["hidepid=1", "hidepid=2"])
def test_a_proc_that_hides_others_does_not_stop_the_run(option: str) -> None:
    """An ordinary user's run ended at once in "/proc/8855/status: No such file or directory"."""
    if os.getuid() != 0:
        pytest.skip("only root mounts /proc anew")
    program = "from lockedenv.host.orphans import end_orphans; end_orphans('NO_SUCH=1', []); print('went on')"
    script = f'mount -t proc -o {option} proc /proc && exec setpriv --reuid 65534 --clear-groups python3 -c "$0"'
    command = [*apart("--mount")[:1], "--mount", "bash", "-c", script, program]
    scripts = Path("/tmp") / f"prefix-hidepid-{os.getpid()}"
    shutil.copytree(ROOT / "scripts", scripts)
    try:
        sh("chmod", "-R", "a+rX", scripts)
        done = sh(
            *command,
            check=False,
            env={**os.environ, "PYTHONPATH": str(scripts)},
            cwd="/",
        )
    finally:
        shutil.rmtree(scripts)
    if "Permission denied" in done.stdout and "python3" in done.stdout:
        pytest.skip("another user cannot start this python3")
    assert done.stdout == "went on\n", done.stdout


def test_this_program_and_what_it_was_started_by_are_not_ended() -> None:
    program = "from lockedenv.host.orphans import end_orphans; end_orphans('MINE=1', []); print('went on')"
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts", "MINE": "1"}
    done = sh("bash", "-c", 'python3 -c "$0"; echo still here', program, env=environ)
    assert done.stdout == "went on\nstill here\n"
