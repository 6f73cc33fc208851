"""Killed or interrupted anywhere: PREFIX is the old environment or the new one, whole, and nothing is left running."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from fixtures.conda_environment import CondaEnvironment
from fixtures.machine import Machine
from one_command import SITE, change_mark


def kill_and_recover(machine: Machine, kills: int) -> int:
    """Kills a run that replaces an old environment at random moments: install, verify, roll-back, removal.

    After each, the old one or the new one is there, whole, and nothing of the user's own folders beside it is gone.
    """
    foreign = machine.folder / "env.making"
    foreign.mkdir()
    (foreign / "results.csv").write_text("years of work")
    good = (machine.project / "conda-lock.yml").read_text()
    chance = random.Random(3)
    killed = 0
    started = time.monotonic()
    machine.assert_verified(machine.setup("--force"))
    whole = time.monotonic() - started
    while killed < kills:
        (machine.prefix / "mine.txt").write_text(str(killed))
        if killed % 3 == 0:
            # Every third new one does not verify: the kill may meet the roll-back.
            machine.refuse_all()
        process = subprocess.Popen(
            machine.command("--force"),
            env=machine.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(chance.uniform(0.1, whole * 1.05))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        assert change_mark(machine.prefix)["state"] == "installed"
        sh(machine.prefix / "bin/python", "-c", "import numpy")
        machine.empty_user_site()
        machine.assert_verified(machine.setup())
        mine = [
            machine.prefix / "mine.txt",
            *machine.folder.glob("env.kept-*/mine.txt"),
        ]
        assert str(killed - 1 if process.returncode == -9 else killed) in [
            p.read_text() for p in mine if p.exists()
        ], "a file of the user's"
        assert (machine.project / "conda-lock.yml").read_text() == good
        assert (foreign / "results.csv").read_text() == "years of work"
        for kept in machine.folder.glob("env.kept-*"):
            shutil.rmtree(kept)
    return killed


def test_killed_while_an_old_environment_is_replaced(
    machine: Machine, installed: None
) -> None:
    assert kill_and_recover(machine, 3) == 3


@pytest.mark.long
def test_killed_at_forty_moments_while_an_old_environment_is_replaced(
    machine: Machine, installed: None
) -> None:
    print(f"\n{kill_and_recover(machine, 40)} kills, wrong outcomes: 0")


@pytest.mark.parametrize(
    "number, status",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interrupt_during_verify_removes_nothing_and_leaves_nothing_running(
    number: int, status: int, machine: Machine
) -> None:
    machine.environ["TMPDIR"] = str(machine.folder / "tmp")
    (machine.folder / "tmp").mkdir()
    machine.hang_in_checks()
    process, said = machine.until("Verify", "--level", "full")
    machine.wait_for("lockedenv.verify", process)
    process.send_signal(number)
    started = time.monotonic()
    rest = process.communicate(timeout=30)[0]
    print(f"ended after {time.monotonic() - started:.2f} s")
    assert process.returncode == status, rest
    assert rest.count("interrupted; run it again to go on") == 1
    assert "Traceback" not in rest
    assert not machine.runs("")
    left = [path.name for path in (machine.folder / "tmp").iterdir()]
    assert not [name for name in left if not name.startswith("uv-")]
    assert change_mark(machine.prefix)["state"] == "installed"
    sh(machine.prefix / "bin/python", "-c", "import numpy")
    machine.empty_user_site()
    machine.assert_verified(machine.setup())


@pytest.mark.parametrize(
    "number, status",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interrupted_verifier_leaves_nothing_running(
    number: int, status: int, machine: Machine, installed: None
) -> None:
    """Ctrl-C took 30 s and ended in a traceback; SIGTERM orphaned the checks."""
    tokenizers = machine.prefix / SITE / "tokenizers"
    tokenizers.mkdir()
    (tokenizers / "__init__.py").write_text("import time\n\ntime.sleep(600)\n")
    program = machine.project / "scripts/verify_environment.py"
    process = subprocess.Popen(
        [machine.prefix / "bin/python", program, "--only", "tokenizers"],
        env=machine.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    machine.wait_for("verify.child tokenizers", process)
    process.send_signal(number)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == status, said
    assert said.count("interrupted; run it again to go on") == 1
    assert "Traceback" not in said
    assert not machine.runs("verify.child tokenizers")


def test_the_verifier_run_by_another_python_says_which_one_it_is(
    conda_environment: CondaEnvironment,
) -> None:
    done = sh(
        "/usr/bin/python3",
        ROOT / "scripts/verify_environment.py",
        check=False,
        env=clean_environ(),
    )
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert (
        "this is /usr/bin/python3, where no lock was installed; run the environment's own"
        in done.stdout
    ), done.stdout


def test_a_reader_that_goes_away_is_no_traceback(
    conda_environment: CondaEnvironment,
) -> None:
    program = conda_environment.project / "scripts/verify_environment.py"
    script = f"{conda_environment.prefix}/bin/python {program} --level quick | head -n 1; echo ${{PIPESTATUS[0]}}"
    said = sh("bash", "-c", script, env=clean_environ()).stdout.splitlines()
    assert len(said) == 2, said
    assert said[1] in ("0", "141"), said
    assert not list((conda_environment.project / "scripts").rglob("__pycache__"))
