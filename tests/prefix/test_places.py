"""Where an environment may be, whose a folder is, and how it is entered. By the one command, on the local channel."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from fixtures.commands import clean_environ, sh
from fixtures.machine import Machine
from lockedenv.errors import Stop
from lockedenv.host.places import default_cache
from lockedenv.prefix.inventory import INVENTORY
from lockedenv.spec.environment import MARK
from one_command import change_mark, set_up_with


@pytest.mark.parametrize(
    "name, said",
    [
        ("with:colon", "has ':' in its name"),
        (
            "with'quote",
            "in its name, which PATH, a script or triton's compiler cannot hold",
        ),
        ("x" * 120 + "/" + "y" * 140, "conda packages have room for 255"),
    ],
)
def test_a_place_where_nothing_can_work_is_refused_first(
    name: str, said: str, machine: Machine
) -> None:
    machine.prefix = machine.folder / name
    before = sorted(machine.folder.rglob("*"))
    done = machine.setup()
    assert done.returncode == 1, done.stdout
    assert said in done.stdout, done.stdout
    assert len(done.stdout.splitlines()) == 1, done.stdout
    assert sorted(machine.folder.rglob("*")) == before


def test_a_cache_in_the_prefix_and_a_mount_point_are_refused(machine: Machine) -> None:
    machine.cache = machine.prefix / "cache"
    done = machine.setup()
    assert done.returncode == 1
    assert "lies in the prefix" in done.stdout
    assert not machine.prefix.exists()
    machine.cache = machine.folder / "cache"
    done = machine.setup_mounted("mkdir {prefix} && mount -t tmpfs none {prefix}")
    assert done.returncode == 1, done.stdout
    assert "is a mount point, which cannot be replaced" in done.stdout, done.stdout


def test_a_disk_that_starts_no_program_is_refused(machine: Machine) -> None:
    done = machine.setup_mounted(
        "mkdir {folder}/d && mount -t tmpfs -o noexec none {folder}/d",
        "--cache",
        machine.folder / "d/cache",
    )
    assert done.returncode == 1, done.stdout
    assert "it is mounted noexec; choose another" in done.stdout, done.stdout


def test_the_line_that_enters_it_works_as_printed(machine: Machine, zsh: str) -> None:
    machine.prefix = machine.folder / "my own env"
    done = machine.setup()
    assert done.returncode == 1
    assert "the prefix has a space in its name" in done.stdout
    machine.prefix = machine.folder / "my-own-env+1"
    done = machine.setup()
    machine.assert_verified(done)
    line = re.search(r"enter it with:  (.*)$", done.stdout, re.M)
    assert line
    shutil.rmtree(machine.cache)  # nothing but the prefix is needed
    hooks = machine.prefix / "etc/conda/activate.d"
    hooks.mkdir(parents=True, exist_ok=True)
    (hooks / "a.sh").write_text("export FROM_A_HOOK=$CONDA_PREFIX\n")
    for shell in ("bash", zsh):
        script = f"{line[1]} && command -v python && uv --version && echo $FROM_A_HOOK && deactivate && echo ${{CONDA_PREFIX-gone}}"
        said = sh(
            shell,
            "-c",
            script,
            env={"PATH": os.environ["PATH"], "HOME": str(machine.folder)},
        ).stdout.splitlines()
        assert said == [
            f"{machine.prefix}/bin/python",
            said[1],
            str(machine.prefix),
            "gone",
        ], said


def test_a_folder_of_the_users_beside_the_prefix_is_never_touched(
    machine: Machine, installed: None
) -> None:
    """PREFIX.old/results.csv vanished on a plain second run."""
    old = machine.folder / "env.old"
    old.mkdir()
    (old / "results.csv").write_text("years of work")
    machine.assert_verified(machine.setup())
    machine.assert_verified(machine.setup("--force"))
    assert [path.name for path in old.iterdir()] == ["results.csv"]
    assert (old / "results.csv").read_text() == "years of work"


def test_a_folder_put_where_a_killed_run_was_is_never_touched(machine: Machine) -> None:
    machine.assert_killed_during("Create")
    machine.prefix.mkdir()
    (machine.prefix / "results.csv").write_text("years of work")
    done = machine.setup("--force")
    assert done.returncode == 1, done.stdout
    assert "was not made by this script" in done.stdout, done.stdout
    assert (machine.prefix / "results.csv").read_text() == "years of work"


def test_an_environment_that_post_create_was_pointed_at_is_never_removed(
    machine: Machine, installed: None
) -> None:
    mine = machine.folder / "mine"
    sh("cp", "-a", machine.prefix.resolve(), mine)
    for name in (MARK, INVENTORY):
        (mine / name).unlink()
    options = ["--prefix", mine, "--cache", machine.cache, "--level", "quick"]
    done = sh(
        machine.project / "scripts/post_create.sh",
        *options,
        check=False,
        env=machine.environ,
    )
    assert change_mark(mine)["made_by"] == "you", done.stdout
    assert change_mark(mine)["state"] == "installed", done.stdout
    machine.prefix = mine
    done = machine.setup("--force")
    assert done.returncode == 1
    assert "was not made by this script" in done.stdout
    assert (mine / "bin/python").exists()


def test_a_moved_environment_is_said_to_be_moved(
    machine: Machine, installed: None
) -> None:
    made = machine.prefix
    machine.prefix = machine.folder / "elsewhere/env"
    machine.prefix.parent.mkdir()
    made.rename(machine.prefix)
    made.with_name("env.d").rename(machine.prefix.with_name("env.d"))
    verifier = [
        machine.prefix / "bin/python",
        machine.project / "scripts/verify_environment.py",
        "--level",
        "quick",
    ]
    done = sh(*verifier, check=False, env=clean_environ())
    assert done.returncode == 1
    assert (
        f"FAIL  place: the environment was made at {made} and moved to" in done.stdout
    )
    done = sh(
        "bash",
        "-c",
        'source "$0/activate"; echo "$CONDA_PREFIX"',
        machine.prefix,
        env=clean_environ(),
    )
    assert (
        done.stdout
        == f"this environment was made at {made}, and has been moved: move it back\n\n"
    )
    done = machine.setup()
    assert done.returncode == 1
    assert (
        f"was made at {made}, and its scripts name that place: move it back"
        in done.stdout
    )
    machine.assert_verified(machine.setup("--force"))


def test_the_users_files_with_likely_names_beside_the_prefix_are_not_touched(
    machine: Machine,
) -> None:
    for name in ("uv", "pkgs", "making"):
        (machine.folder / f"env.{name}").mkdir()
        (machine.folder / f"env.{name}/results.csv").write_text("years of work")
    (machine.folder / "env.lock").write_text("years of work")
    machine.assert_verified(machine.setup())
    assert (machine.folder / "env.lock").read_text() == "years of work"
    assert all(
        (machine.folder / f"env.{name}/results.csv").exists()
        for name in ("uv", "pkgs", "making")
    )


def test_what_is_mounted_in_the_prefix_is_said_before_anything_is_done(
    machine: Machine, installed: None
) -> None:
    (machine.prefix / "data").mkdir()
    done = machine.setup_mounted("mount -t tmpfs none {prefix}/data", "--force")
    assert done.returncode == 1, done.stdout
    assert (
        f"{machine.prefix}/data is mounted in the environment" in done.stdout
    ), done.stdout
    machine.assert_verified(machine.setup())


def test_from_a_folder_whose_modules_have_pythons_names_and_through_a_link(
    machine: Machine,
) -> None:
    (machine.folder / "platform.py").write_text("raise SystemExit('not yours')")
    (machine.folder / "link.sh").symlink_to(
        machine.project / "scripts/setup_runpod_environment.sh"
    )
    command = [machine.folder / "link.sh", *machine.command()[1:]]
    machine.assert_verified(
        sh(
            *command,
            check=False,
            cwd=machine.folder,
            env={**machine.environ, "CDPATH": "/usr"},
        )
    )


def test_an_output_that_is_closed_is_no_traceback(machine: Machine) -> None:
    for redirection in (">&-", "2>&-", "<&-"):
        script = f"{' '.join(machine.command('--dry-run'))} {redirection}"
        done = sh("bash", "-c", script, check=False, env=machine.environ)
        assert done.returncode == 0, done.stdout
        assert "Traceback" not in done.stdout, done.stdout


def test_without_a_home_and_with_a_missing_tmpdir_there_is_one_clear_line(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(
        Stop,
        match="HOME is not set; set it, or name both places with --prefix and --cache",
    ):
        default_cache()
    done = machine.setup(TMPDIR="/nowhere")
    assert done.returncode == 1, done.stdout
    assert (
        "TMPDIR=/nowhere is not a folder that you may write to" in done.stdout
    ), done.stdout
    assert not machine.prefix.exists()


def test_what_nobody_foresaw_ends_in_one_line_and_a_log(machine: Machine) -> None:
    secret = ["--mirror", "http://u:p@ss@m.example"]
    done = set_up_with(machine, "crash", *secret, TMPDIR=str(machine.folder))
    found = re.fullmatch(
        r"setup_runpod_environment.sh: (\S+) has what happened \(ZeroDivisionError\): .*\n",
        done.stdout,
    )
    assert done.returncode == 1, done.stdout
    assert found, done.stdout
    log = Path(found[1]).read_text()
    assert "Traceback" in log
    assert "Python 3" in log
    assert "ss@" not in log
