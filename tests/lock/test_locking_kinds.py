"""An environment.yml of many kinds is locked over the local channel, and a name that nobody has ends in one message."""

from __future__ import annotations

import asyncio
from pathlib import Path

import yaml
from fixtures.channel import LocalChannel
from fixtures.commands import clean_environ, sh
from fixtures.machine import Machine
from lockedenv.spec import locks
from rattler.index import index_fs

MANY_KINDS = """\
channels:  # by address, and no name
  - {address}/pytorch/
  - {address}/nvidia
  - {address}/conda-forge
dependencies:
  - python 3.11.*
  - pytorch >=2.5, <3
  - libcublas
  - "tqdm  # quoted comment"
  - no-such-package  # [osx]
  - uv  # [linux]
  - setuptools
  - pip
  - pip:
      - "idna>=3  # quoted comment"
      - pywin32; sys_platform == 'win32'
"""

LOCAL_VERSION = """\
channels: ["{address}/conda-forge"]
dependencies:
  - python=3.11
  - pip: [torch==2.5.1+cu124]
"""


def prepare_locking(
    machine: Machine, channel: LocalChannel, mine: Path, text: str
) -> dict[str, str]:
    """Writes an environment.yml over the local channel; gives the variables of lock.sh."""
    for name in ("pytorch", "nvidia", "conda-forge"):
        asyncio.run(index_fs(channel.root / name))
    mine.mkdir()
    (mine / "environment.yml").write_text(text.format(address=machine.address))
    mapping = mine.with_name("mapping.json")
    mapping.write_text("{}")
    return clean_environ(
        CONDA_LOCK_SOLVER=str(machine.micromamba / "micromamba"),
        PYPI_TO_CONDA_MAPPING=mapping.as_uri(),
    )


def test_a_package_that_no_channel_has_is_named_in_one_message(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    python = "  - python=3.11\n"
    text = LOCAL_VERSION.replace(python, python + "  - no-such-package\n")
    environ = prepare_locking(machine, channel, mine, text)
    lock = machine.project / "scripts/lock.sh"
    done = sh(lock, "--environment", mine, env=environ, check=False)
    assert done.returncode == 1, done.stdout
    assert len(done.stdout.splitlines()) == 1, done.stdout
    line = done.stdout.strip()
    start = f"lock.sh: {mine}/environment.yml: the solver finds no packages for it: "
    assert line.startswith(start)
    assert "no-such-package" in line
    assert "mend the names" in line


def test_a_build_that_the_index_lacks_is_named_with_what_to_write(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    environ = prepare_locking(machine, channel, mine, LOCAL_VERSION)
    lock = machine.project / "scripts/lock.sh"
    done = sh(lock, "--environment", mine, env=environ, check=False)
    assert done.returncode == 1
    cause = "torch==2.5.1+cu124 is a build that PyPI does not have: leave out the +"
    assert f"{mine}/environment.yml: conda has solved" in done.stdout
    assert cause in done.stdout
    assert "Traceback" not in done.stdout
    assert [path.name for path in mine.iterdir()] == ["environment.yml"]


def test_a_file_of_many_kinds_locks_and_is_current(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    environ = prepare_locking(machine, channel, mine, MANY_KINDS)
    lock = machine.project / "scripts/lock.sh"
    done = sh(lock, "--environment", mine, env=environ)
    assert "mine: locked 7 conda and 1 pip packages" in done.stdout, done.stdout
    lock_file = mine / "conda-lock.yml"
    from_conda = locks.read_conda_lock(lock_file).packages
    names = {package.name for package in from_conda}
    assert {"python", "pytorch", "tqdm", "uv"} <= names
    [from_pip] = locks.read_pip_lock(mine / "locks/pip.txt")
    assert from_pip.name == "idna"
    metadata = yaml.safe_load(lock_file.read_text())["metadata"]
    assert metadata["platforms"] == ["linux-64"]
    done = sh(lock, "--environment", mine, "--check", env=environ)
    assert "the locks are current" in done.stdout
