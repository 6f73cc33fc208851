"""`maximalcai` inside an environment: it finds its clone, and starts the scripts for this environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.commands import ROOT, VERIFIED, clean_environ, sh
from fixtures.conda_environment import copy_environment
from lockedenv.host.pythons import find_python
from lockedenv.prefix.activation import write_command
from lockedenv.prefix.lifecycle import change_mark
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.mark import MadeBy
from lockedenv.prefix.place import Prefix
from lockedenv.prefix.records import COMMAND

ECHO = '#!/bin/sh\necho "$0 $*"\necho "in $PWD"\nexit ${STATUS-0}\n'
VERIFY = "scripts/verify_environment.py"
POST_CREATE = "scripts/post_create.sh"
SETUP = "scripts/setup_runpod_environment.sh"


@dataclass
class Place:
    """A prefix with the command, and the clone that it names, whose scripts say how they were called."""

    prefix: Path
    clone: Path

    def run(self, *words: object, **environ: str) -> "subprocess.CompletedProcess[str]":
        """What the command says when it is called from another folder."""
        command = [self.prefix / COMMAND, *words]
        return sh(*command, check=False, cwd="/usr", env=clean_environ(**environ))


def write_program(path: Path, text: str = ECHO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    prefix = tmp_path / "my env"
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts/lockedenv", clone / "scripts/lockedenv")
    shutil.copy2(ROOT / "scripts/maximalcai.py", clone / "scripts")
    write_program(prefix / "bin/python")
    for script in (POST_CREATE, SETUP):
        write_program(clone / script)
    write_command(prefix)
    change_mark(Prefix(prefix), environment="current", clone=str(clone))
    return Place(prefix, clone)


@pytest.mark.parametrize(
    "words, expected",
    [
        (["verify", "--level", "quick"], "{verify} --level quick"),
        (["verify", "--help"], "{verify} --help"),
        (["manifest", "a b.json"], "{verify} --manifest a b.json"),
        (["compare", "a", "b"], "{verify} --compare a b"),
        (["certificate", "c"], "{verify} --certificate c"),
        (["report", "r"], "{verify} --report r"),
        (["repair", "--offline", "d"], "{post_create} --prefix {prefix} --offline d"),
        (["uninstall", "--dry-run"], "{setup} --prefix {prefix} --uninstall --dry-run"),
    ],
)
def test_a_word_starts_the_script_for_this_environment_in_the_same_folder(
    words: list[str], expected: str, place: Place
) -> None:
    done = place.run(*words)
    line = expected.format(
        verify=f"{place.prefix}/bin/python {place.clone / VERIFY}",
        post_create=place.clone / POST_CREATE,
        setup=place.clone / SETUP,
        prefix=place.prefix,
    )
    assert done.stdout.splitlines() == [line, "in /usr"]
    assert done.returncode == 0
    assert place.run(*words, STATUS="3").returncode == 3


def test_the_doctor_looks_at_the_machine_and_at_the_environment(place: Place) -> None:
    write_program(place.prefix / "bin/python", "#!/bin/sh\necho $*; exit 1\n")
    done = place.run("doctor", "--gpu", "off")
    assert done.stdout.splitlines() == [
        "The machine",
        f"{place.clone / SETUP} --prefix {place.prefix} --check-pod",
        "in /usr",
        "The environment",
        f"{place.clone / VERIFY} --level quick --gpu off",
    ]
    assert done.returncode == 1


def test_the_version_says_which_clone_and_which_environment(place: Place) -> None:
    said = place.run("version").stdout.splitlines()
    assert said[0].startswith("maximalcai ")
    assert said[0].endswith(f", in {place.clone}")
    assert said[1] == f"environment current in {place.prefix}"


def test_the_help_has_every_word_and_a_wrong_one_is_usage(place: Place) -> None:
    done = place.run("--help")
    words = "verify doctor repair manifest compare certificate report uninstall version"
    for word in words.split():
        assert f"\n  {word} " in done.stdout
    assert done.returncode == 0
    assert place.run().stdout == done.stdout
    done = place.run("verfy")
    assert done.returncode == 2, done.stdout
    assert "did you mean verify?" in done.stdout, done.stdout


def test_a_clone_that_has_moved_is_said_with_what_to_do(
    place: Place, tmp_path: Path
) -> None:
    moved = place.clone.rename(tmp_path / "moved")
    done = place.run("version")
    mark = place.prefix / "maximalcai.json"
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert (
        f"{place.clone}, which {mark} names, has no scripts/maximalcai.py"
        in done.stdout
    )
    assert "\nexport MAXIMALCAI_CLONE=/path/to/the/clone\n" in done.stdout
    assert f"\nscripts/post_create.sh --prefix {place.prefix}\n" in done.stdout
    assert f", in {moved}\n" in place.run("version", MAXIMALCAI_CLONE=str(moved)).stdout
    done = place.run("version", MAXIMALCAI_CLONE="/nowhere")
    assert done.returncode == 1
    assert "/nowhere, which $MAXIMALCAI_CLONE names, has no" in done.stdout


@pytest.mark.parametrize("mark", ["", "[]", "{}", '{"clone": 3}', "\xff"])
def test_a_mark_that_names_no_clone_is_no_traceback(mark: str, place: Place) -> None:
    (place.prefix / "maximalcai.json").write_text(mark, encoding="latin-1")
    done = place.run("version")
    assert done.returncode == 1
    assert "names no clone. Say where the clone is:" in done.stdout


def test_an_environment_whose_python_is_gone_is_said_with_the_remedy(
    place: Place,
) -> None:
    (place.prefix / "bin/python").unlink()
    for word in ("verify", "doctor"):
        done = place.run(word)
        assert done.returncode == 1
        assert "bin/python does not start (No such file" in done.stdout
        assert "rebuild it: " in done.stdout
        assert "--force" in done.stdout


@pytest.mark.parametrize("version", ["3.9", "3.12"])
def test_it_starts_with_any_python_that_is_first_on_path(
    version: str, place: Place, tmp_path: Path
) -> None:
    python = find_python(version, os.environ)
    if python is None:
        pytest.skip(f"no Python {version} here")
    (tmp_path / "first").mkdir()
    (tmp_path / "first/python3").symlink_to(python)
    # A module of this name in the current folder or on PYTHONPATH is not imported.
    (tmp_path / "first/json.py").write_text("raise SystemExit('json of others')")
    path = f"{tmp_path / 'first'}:{os.environ['PATH']}"
    done = place.run("version", PATH=path, PYTHONPATH=str(tmp_path / "first"))
    assert done.returncode == 0, done.stdout
    assert "environment current" in done.stdout, done.stdout
    assert not list(place.clone.rglob("__pycache__"))


def test_it_is_in_the_inventory_as_a_program(place: Place) -> None:
    entries = take_inventory(place.prefix, [], with_interpreter=False).entries_by_path()
    assert entries[COMMAND].executable
    assert entries[COMMAND].sha256


def test_from_any_folder_of_an_environment_that_was_entered(
    pip_environment: Path, tmp_path: Path
) -> None:
    """It is no stray; what the verifier says is what its script says."""
    script = f"source {pip_environment}/activate; cd {tmp_path}; maximalcai "
    done = sh("bash", "-c", f"{script} verify --level quick", env=clean_environ())
    assert VERIFIED in done.stdout, done.stdout
    sh("bash", "-c", f"{script} manifest m.json --only place", env=clean_environ())
    assert json.loads((tmp_path / "m.json").read_text())["environment"]


def test_it_is_repaired_and_removed_with_the_environment(
    pip_environment: Path, tmp_path: Path
) -> None:
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    command = prefix / COMMAND
    command_of_original = pip_environment / COMMAND
    text = command.read_text()
    command.unlink()
    command.write_text("edited")
    verify = [
        prefix / "bin/python",
        ROOT / VERIFY,
        "--level",
        "quick",
        "--only",
        "present",
    ]
    done = sh(*verify, check=False, env=clean_environ())
    assert done.returncode == 1, done.stdout
    assert f"{COMMAND}" in done.stdout, done.stdout
    options = ["--level", "quick", "--flash-attn", "none"]
    sh(ROOT / POST_CREATE, "--prefix", prefix, *options, env=clean_environ())
    assert command.read_text() == text
    assert os.access(command, os.X_OK)
    # By its path: the copy's `activate` enters the environment that it is a copy of.
    sh(command, "uninstall", cwd="/", env=clean_environ())
    assert not prefix.exists()
    assert command_of_original.exists()


@pytest.mark.parametrize("entered", ["env", "env.d/0123abcd"])
def test_from_the_folder_that_the_prefix_leads_to_it_names_the_prefix(
    entered: str, place: Place, tmp_path: Path
) -> None:
    """`repair` named PREFIX.d/ID, and so did the scripts' messages."""
    prefix = tmp_path / "env"
    folder = tmp_path / "env.d/0123abcd"
    folder.parent.mkdir()
    place.prefix.rename(folder)
    prefix.symlink_to("env.d/0123abcd")
    change_mark(
        Prefix(folder, prefix), made_by=MadeBy.SETUP, id=folder.name, path=str(prefix)
    )
    started = Place(tmp_path / entered, place.clone)
    script = place.clone / POST_CREATE
    assert started.run("repair").stdout.startswith(f"{script} --prefix {prefix}\n")
    script = place.clone / SETUP
    assert f"{script} --prefix {prefix} --uninst" in started.run("uninstall").stdout
    assert f"{script} --prefix {prefix} --check" in started.run("doctor").stdout
    assert f"environment current in {prefix}\n" in started.run("version").stdout


# It refuses, as pyenv's shims do.
SHIM = '#!/bin/bash\ncd "$PWD" || exit 1\nPATH=$PATH_BEHIND exec python3 "$@"\n'


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("with_shim", [True, False])
def test_a_current_folder_that_was_removed_is_named_where_no_python_starts_from_it(
    with_shim: bool, shell: str, place: Place, tmp_path: Path
) -> None:
    """Only the shim's own message was there."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} here")
    first = tmp_path / "first"
    first.mkdir()
    (first / "sh").symlink_to(found)
    if with_shim:
        write_program(first / "python3", SHIM)
    environ = clean_environ(PATH_BEHIND=os.environ["PATH"])
    environ["PATH"] = f"{first}:{os.environ['PATH']}"
    start = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$1" version'
    removed = tmp_path / "removed"
    command = place.prefix / COMMAND
    done = sh("bash", "-c", start, removed, command, check=False, env=environ)
    if not with_shim:
        assert done.returncode == 0, done.stdout
        assert len(done.stdout.splitlines()) == 2, done.stdout
        return
    assert done.returncode == 1
    [line] = done.stdout.splitlines()
    assert line.startswith("maximalcai: the current folder was removed")
    assert line.endswith("go to another one: cd ~")


@pytest.mark.parametrize("word", ["verify", "doctor"])
def test_a_python_that_this_user_may_not_run_is_said_as_that(
    word: str, place: Place, tmp_path: Path
) -> None:
    """A rebuild was named, which is refused to who may not write there."""
    program = tmp_path / "private/python3"
    write_program(program)
    program.chmod(0o644)
    (place.prefix / "bin/python").unlink()
    (place.prefix / "bin/python").symlink_to(program)
    done = place.run(word)
    assert done.returncode == 1
    assert "--force" not in done.stdout
    line = done.stdout.splitlines()[-1]
    assert (
        f"{place.prefix}/bin/python is {program}, which this user may not run" in line
    )
    assert f"{place.clone / SETUP} --prefix DIR --environment current" in line
