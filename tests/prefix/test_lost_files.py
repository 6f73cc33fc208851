"""What version 2.0 lost of people's. Each test failed there: it was run on that code as it stands here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from fixtures.commands import apart, sh
from fixtures.conda_environment import remark
from fixtures.machine import Machine

SITE = "lib/python3.11/site-packages"
TEXT = "years of work"


def places(machine: Machine, text: str) -> list[str]:
    """The files with this text, wherever they are now; in the cache and the project is nothing of people's."""
    skipped = ["--exclude-dir=cache", "--exclude-dir=project"]
    found = sh("grep", "-rlF", *skipped, text, machine.folder, check=False)
    return found.stdout.splitlines()


def environment_in_state(machine: Machine, state: str) -> Path:
    """The environment of this machine that is in a state; version 2.0 has no PREFIX.d."""
    name = machine.prefix.name
    marks = [
        *machine.folder.glob(f"{name}.d/*/maximalcai.json"),
        *machine.folder.glob(f"{name}*/maximalcai.json"),
    ]
    for mark in marks:
        if json.loads(mark.read_text())["state"] == state:
            return mark.parent
    raise AssertionError(f"no environment is {state}: {marks}")


def kill_during(machine: Machine, step: str, *options: str) -> None:
    process, said = machine.until(step, *options)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert f"] {step}" in said, said


def make_volume(machine: Machine) -> Path:
    volume = machine.folder / "volume"
    volume.mkdir()
    (volume / "thesis.tex").write_text(TEXT)
    return volume


def set_up_beside_mount(
    machine: Machine, mounted: Path
) -> "subprocess.CompletedProcess[str]":
    """A run while a volume is mounted there, as a container mounts it again at every start."""
    volume = make_volume(machine)
    mounted.mkdir()
    return machine.setup_mounted(f"mount --bind {volume} {mounted}")


def post_create(machine: Machine) -> "subprocess.CompletedProcess[str]":
    program = machine.project / "scripts/post_create.sh"
    options = ["--prefix", machine.prefix, "--cache", machine.cache, "--level", "quick"]
    return sh(program, *options, check=False, env=machine.environ)


def replace_text(path: Path, text: str) -> None:
    """As an editor does: the file in the cache that it was a link to stays."""
    path.unlink()
    path.write_text(text)


def test_a_volume_in_what_a_killed_rebuild_was_making_is_not_emptied(
    machine: Machine, installed: None
) -> None:
    kill_during(machine, "Install the wheels", "--force")
    done = set_up_beside_mount(
        machine, environment_in_state(machine, "making") / "data"
    )
    assert (machine.folder / "volume/thesis.tex").exists(), done.stdout
    assert "is mounted in the environment" in done.stdout, done.stdout


def test_a_volume_in_what_a_killed_run_was_removing_is_not_emptied(
    machine: Machine, installed: None
) -> None:
    old = machine.prefix.resolve()
    kill_during(machine, "Verify", "--force")
    if not old.samefile(machine.prefix):
        old = machine.folder / "env.old"  # of version 2.0
    remark(old, state="removing")
    done = set_up_beside_mount(machine, old / "data")
    assert (machine.folder / "volume/thesis.tex").exists(), done.stdout
    assert "is mounted in the environment" in done.stdout, done.stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_own_files_in_an_unfinished_environment_are_kept_and_named(
    number: signal.Signals, machine: Machine
) -> None:
    process, said = machine.until("Install the wheels")
    results = environment_in_state(machine, "making") / "results"
    results.mkdir()
    (results / "loss.csv").write_text(TEXT)
    os.killpg(process.pid, number)
    said += process.communicate()[0]
    if number is signal.SIGKILL:
        said += machine.setup().stdout
    assert places(machine, TEXT), said
    assert "of yours is now in" in said, said
    assert "  results" in said, said


def test_an_edited_package_file_that_is_installed_again_is_kept_and_named(
    machine: Machine, installed: None
) -> None:
    replace_text(machine.prefix / SITE / "idna/core.py", TEXT)
    said = post_create(machine).stdout
    assert places(machine, TEXT), said
    assert "of yours is now in" in said, said
    assert "idna/core.py" in said, said


@pytest.mark.parametrize("source", ["env", "env/."])
def test_a_backup_and_what_was_added_to_it_stay(
    source: str, machine: Machine, installed: None
) -> None:
    """`cp -a PREFIX` copies a link today; `cp -a PREFIX/.` copies the environment."""
    backup = machine.folder / "env.old"
    sh("cp", "-a", machine.folder / source, backup)
    (backup / "thesis.tex").write_text(TEXT)
    done = machine.setup("--force")
    assert done.returncode == 0, done.stdout
    assert (backup / "thesis.tex").exists(), done.stdout
    assert (backup / "bin/python").exists(), done.stdout


def test_each_pip_conf_that_people_wrote_is_kept(
    machine: Machine, installed: None
) -> None:
    for number in (1, 2):
        (machine.prefix / "pip.conf").write_text(f"[global]\ntimeout = {number}000\n")
        post_create(machine)
    assert places(machine, "timeout = 1000")
    assert places(machine, "timeout = 2000")


def test_an_environment_in_a_lower_layer_of_an_image_can_be_rebuilt(
    machine: Machine, installed: None, tmp_path: Path
) -> None:
    """A folder there cannot be renamed: it ended every time in "Invalid cross-device link"."""
    (machine.prefix / "results").mkdir()
    (machine.prefix / "results/loss.csv").write_text(TEXT)
    layers = f"lowerdir={machine.folder},upperdir={tmp_path}/upper,workdir={tmp_path}/work,userxattr"
    script = f"""
    mkdir {tmp_path}/upper {tmp_path}/work && mount -t overlay overlay -o {layers} {machine.folder} || exit 77
    cd / && "$@"; echo "status: $?"; cat {machine.prefix}.kept-*/results/loss.csv
    """
    command = ["bash", "-c", script, "bash", *machine.command("--force")]
    done = sh(*apart("--mount"), *command, check=False, env=machine.environ)
    if done.returncode == 77:
        pytest.skip(f"no overlay can be mounted here: {done.stdout}")
    assert "status: 0" in done.stdout, done.stdout
    assert done.stdout.endswith(TEXT), done.stdout
