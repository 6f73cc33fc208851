"""The files that the Dockerfile copies before the set-up are enough for it, and are no more than it needs."""

from __future__ import annotations

import glob
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ

SETUP = "scripts/setup_runpod_environment.sh"
PREFIX = "/opt/environment/maximalcai"
# What an image is not made of: the locks are made before.
NOT_COPIED = {"lock"}


@dataclass(frozen=True)
class Copy:
    """A COPY of the Dockerfile: paths of the project, and where they lie in the image."""

    sources: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Stage:
    """A stage of the Dockerfile: what it is built on, and its instructions as they are written."""

    name: str
    parent: str
    instructions: tuple[str, ...]

    def copies(self) -> list[Copy]:
        found = []
        for instruction in self.instructions:
            word, *arguments = shlex.split(instruction)
            if word == "COPY":
                paths = [
                    argument for argument in arguments if not argument.startswith("--")
                ]
                found.append(Copy(tuple(paths[:-1]), paths[-1]))
        return found


def read_stages() -> dict[str, Stage]:
    """The stages of the Dockerfile, by name."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [
        line for line in text.splitlines() if line.strip() and not line.startswith("#")
    ]
    stages: dict[str, Stage] = {}
    name = ""
    parent = ""
    instructions: list[str] = []
    for line in [*lines, "FROM nothing AS end"]:
        if line.startswith("FROM "):
            if name:
                stages[name] = Stage(name, parent, tuple(instructions))
            parent, name = line.split()[1::2]
            instructions = []
        else:
            instructions.append(line)
    return stages


STAGES = read_stages()


def copy_into(folder: Path, *names: str) -> None:
    """What the COPY instructions of stages put into the image."""
    for name in names:
        for copy in STAGES[name].copies():
            for pattern in copy.sources:
                sources = sorted(glob.glob(str(ROOT / pattern)))
                assert sources, f"COPY {pattern}: there is no such file"
                for source in sources:
                    copy_one(Path(source), folder, copy.target)


def copy_one(source: Path, folder: Path, target: str) -> None:
    """As Docker does it: of a folder its content is copied; a target with a slash at its end is one."""
    place = folder / target
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=ignored)
        return
    if target.endswith("/"):
        place = place / source.name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, place)


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=clean_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("environment", ["default", "current"])
def test_the_set_up_runs_from_what_is_copied(environment: str, tmp_path: Path) -> None:
    copy_into(tmp_path, f"locks-{environment}", "installed")
    options = ["--environment", environment, "--prefix", tmp_path / "env", "--dry-run"]
    done = run(
        tmp_path,
        tmp_path / SETUP,
        "--cache",
        tmp_path / "cache",
        "--backend",
        "pip",
        *options,
    )
    assert done.returncode == 0, done.stdout
    assert "this was a dry run" in done.stdout
    done = run(tmp_path, sys.executable, "scripts/verify_environment.py", "--list")
    assert done.returncode == 0, done.stdout


def test_every_room_that_runs_is_copied_and_no_other(tmp_path: Path) -> None:
    copy_into(tmp_path, "installed")
    rooms = {
        path.name for path in (ROOT / "scripts/lockedenv").iterdir() if path.is_dir()
    }
    copied = {
        path.name
        for path in (tmp_path / "scripts/lockedenv").iterdir()
        if path.is_dir()
    }
    assert copied == rooms - NOT_COPIED - {"__pycache__"}
    modules = {path.name for path in (ROOT / "scripts/lockedenv").glob("*.py")}
    assert {
        path.name for path in (tmp_path / "scripts/lockedenv").glob("*.py")
    } == modules


def test_a_change_of_other_files_leaves_the_layer_of_gigabytes(tmp_path: Path) -> None:
    copy_into(tmp_path, "locks-default", "installed")
    for name in (
        "README.md",
        "scripts/lock.sh",
        "scripts/lockedenv/lock",
        "environments",
        ".github",
    ):
        assert (ROOT / name).exists(), name
        assert not (tmp_path / name).exists(), name


def test_what_changes_often_comes_after_the_set_up() -> None:
    """The environment lies in PREFIX.d, and PREFIX is a link to it: both are made by one RUN, in one layer."""
    set_ups = []
    for stage in STAGES.values():
        for instruction in stage.instructions:
            if instruction.startswith("RUN") and SETUP in instruction:
                set_ups.append(stage.name)
    assert set_ups == ["installed"]
    assert STAGES["complete"].parent == "installed"
    for name in ("image", "pod"):
        assert STAGES[name].parent == "complete"
        assert not STAGES[name].copies()
    for stage in STAGES.values():
        # Nothing is copied out of another stage: a copy would follow the link, or lose it.
        assert not any("--from" in instruction for instruction in stage.instructions)


def test_the_image_names_the_link_and_no_folder_behind_it() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert f"{PREFIX}/bin/python" in text
    assert f"{PREFIX}/activate" in text
    assert f"{PREFIX}.d" not in text
