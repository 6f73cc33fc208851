"""The conda backend on bad days: faults of the network, kills, small disks, a lock that changed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.commands import VERIFIED, apart, sh
from fixtures.fault_server import FaultServer, Handler
from fixtures.machine import Machine, relock


def test_random_network_faults_end_in_the_exact_environment(
    machine: Machine, server: FaultServer
) -> None:
    chance = random.Random(7)

    def fault(handler: Handler, content: bytes, start: int) -> bool:
        if chance.random() < 0.6 or start >= len(content):
            return False
        if chance.random() < 0.5:
            handler.send_part(content, start, start + (len(content) - start) // 3)
        else:
            handler.answer(200, bytes(len(content)))
        return True

    server.fault = fault
    machine.assert_verified(machine.setup())


def test_what_cannot_be_fetched_ends_in_a_clear_error_and_no_prefix(
    machine: Machine, server: FaultServer
) -> None:
    def fault(handler: Handler, content: bytes, start: int) -> bool:
        if "tqdm" in handler.path:
            handler.answer(200, bytes(len(content)))
            return True
        return False

    server.fault = fault
    done = machine.setup()
    assert done.returncode == 1, done.stdout
    assert re.search(
        r"1 of \d+ files could not be fetched.*\n  tqdm-\S+: 127.0.0.1\S+ sent",
        done.stdout,
    ), done.stdout
    assert "Traceback" not in done.stdout
    assert not machine.prefix.exists()
    assert not list((machine.cache / "pkgs").glob("tqdm*"))
    server.fault = None
    machine.assert_verified(machine.setup())


def run_and_kill(machine: Machine, after: float) -> bool:
    """Starts the command and kills -9 its whole process group; False if it had already ended."""
    process = subprocess.Popen(
        machine.command(),
        env=machine.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def kill_and_run_again(machine: Machine, kills: int) -> int:
    """Kills the command at random moments of a whole run, each followed by a run that ends right."""
    started = time.monotonic()
    machine.assert_verified(machine.setup())
    whole = time.monotonic() - started
    chance = random.Random(1)
    killed = 0
    while killed < kills:
        sh(
            "rm",
            "-rf",
            machine.prefix,
            f"{machine.prefix}.d",
            *([machine.cache] if killed % 2 else []),
        )
        killed += run_and_kill(machine, chance.uniform(0.1, whole))
        machine.assert_verified(machine.setup())
    return killed


def test_killed_and_run_again(machine: Machine) -> None:
    assert kill_and_run_again(machine, 3) == 3


@pytest.mark.long
def test_killed_at_twenty_four_moments(machine: Machine) -> None:
    print(f"\n{kill_and_run_again(machine, 24)} kills, wrong outcomes: 0")


def test_interrupted_it_says_so_and_goes_on(
    machine: Machine, server: FaultServer
) -> None:
    server.fault = lambda handler, content, start: handler.owner.stall() or True
    machine.environ["MAXIMALCAI_STALL_SECONDS"] = "60"
    process = subprocess.Popen(
        machine.command(),
        env=machine.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not server.requests:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 143, said
    assert "interrupted; run it again to go on" in said, said
    assert "Traceback" not in said, said
    server.fault = None
    machine.assert_verified(machine.setup())


def test_a_changed_lock_makes_the_environment_anew_and_a_failed_one_leaves_the_old(
    machine: Machine, installed: None
) -> None:
    mine = machine.prefix / "mine.txt"
    mine.write_text("the old one")
    relock(machine)
    failing = machine.folder / "micromamba"
    real = machine.micromamba / "micromamba"
    for said, script in (
        ("micromamba install failed (exit 1)", "echo boom; exit 1"),
        ("micromamba said it was done, and 13 packages are missing", "exit 0"),
    ):
        failing.write_text(f"#!/bin/sh\n{script}\n")
        machine.pin(failing)
        done = machine.setup()
        assert done.returncode == 1, done.stdout
        assert said in done.stdout, done.stdout
        assert "(rebuilt: the locks have changed)" in done.stdout
        assert "the old environment is as it was" in done.stdout
        assert mine.read_text() == "the old one"
        assert len([*(machine.folder / "env.d").iterdir()]) == 1
        sh(machine.prefix / "bin/python", "-c", "import numpy")
    machine.pin(real)
    done = machine.setup()
    machine.assert_verified(done)
    kept = re.search(r"1 file or folder of yours is now in (\S+):\n", done.stdout)
    assert kept
    assert not mine.exists()
    assert Path(kept[1], "mine.txt").read_text() == "the old one"
    assert "it is verified again" in machine.setup().stdout


def test_a_new_environment_that_does_not_verify_gives_way_to_the_old(
    machine: Machine, installed: None
) -> None:
    (machine.prefix / "mine.txt").write_text("the old one")
    relock(machine)
    # A lock that asks for another wheel of the same name and version than the index has.
    lock = machine.project / "locks/pip.txt"
    digest = re.search(r"RECORD ([0-9a-f]{64})", lock.read_text())
    assert digest
    lock.write_text(lock.read_text().replace(digest[1], digest[1][::-1]))
    done = machine.setup()
    assert done.returncode == 1, done.stdout
    assert (
        f"did not verify; {machine.prefix} is still the old one" in done.stdout
    ), done.stdout
    assert (machine.prefix / "mine.txt").exists()


def test_too_little_disk_is_said_before_anything_is_fetched(
    machine: Machine, server: FaultServer
) -> None:
    done = machine.setup_on_small_disk("20m")
    assert done.returncode == 1, done.stdout
    assert (
        "too little disk for the conda backend: room for the environment is about"
        in done.stdout
    ), done.stdout
    assert (
        "the cache is on another disk: everything is unpacked beside the environment"
        in done.stdout
    )
    assert not server.requests


def test_a_variable_that_leads_astray_is_said_before_anything_is_fetched(
    machine: Machine, server: FaultServer
) -> None:
    folder = machine.folder / "cuda-12.8"
    folder.mkdir()
    (folder / "libnvJitLink.so.12.1.105").touch()
    (folder / "libnvJitLink.so.12").symlink_to("libnvJitLink.so.12.1.105")
    for variable in ({"LD_LIBRARY_PATH": str(folder)}, {"BNB_CUDA_VERSION": "118"}):
        done = machine.setup(**variable)
        assert done.returncode == 1, done.stdout
        assert (
            f"unset {next(iter(variable))}, and run it again" in done.stdout
        ), done.stdout
    assert not machine.prefix.exists()
    assert not (machine.cache / "pkgs").exists()


@pytest.mark.parametrize("name", ["wheels/idna-*", "pkgs/tqdm-*"])
def test_a_byte_that_rots_in_a_cache_on_another_disk_is_found_and_fetched_again(
    name: str, machine: Machine
) -> None:
    """What is there is known by size and time of change; a flipped bit keeps both, and is found when it is unpacked."""
    flip = (
        "import os, sys\n"
        "stat, content = os.stat(sys.argv[1]), bytearray(open(sys.argv[1], 'rb').read())\n"
        "content[len(content) // 2] ^= 1\n"
        "open(sys.argv[1], 'wb').write(content)\n"
        "os.utime(sys.argv[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))\n"
    )
    script = (
        f'mkdir -p {machine.cache} && cd {machine.cache} && mount -t tmpfs -o size=800m none . && cd {machine.cache} && "$@" && '
        f'rm -rf {machine.prefix} {machine.prefix}.d && sha256sum {name} && python3 -c "$0" {name} && '
        f'{{ "$@" || {{ echo AGAIN; "$@"; }}; }} && sha256sum {name}'
    )
    done = sh(
        *apart("--mount"),
        "bash",
        "-c",
        script,
        flip,
        *machine.command(),
        check=False,
        env=machine.environ,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(VERIFIED) == 2, done.stdout
    assert "PASS  files" in machine.verify("--only", "files")
    before, after = re.findall(r"^[0-9a-f]{64}  ", done.stdout, re.M)
    if "AGAIN" in done.stdout:  # micromamba may fetch one itself, to where it unpacks
        assert name.startswith("pkgs"), done.stdout
        assert "Found incorrect downloads" in done.stdout, done.stdout
    assert before == after or name.startswith("pkgs") and "AGAIN" not in done.stdout


def test_a_disk_that_fills_up_in_the_middle_is_said_to_be_full(
    machine: Machine,
) -> None:
    """The estimate is made to pass; the prefix's disk then fills while it is made."""
    machine.environ["MAXIMALCAI_ANY_DISK"] = "1"
    done = machine.setup_on_small_disk("100m")
    assert done.returncode == 1, done.stdout
    assert (
        "micromamba install: No space left on device. Free some disk" in done.stdout
    ), done.stdout
