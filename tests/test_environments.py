"""An environment is a folder of data: a third one costs no code, and no module knows a version that a lock can change."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from fixtures.channel import LocalChannel
from fixtures.commands import ROOT, VERIFIED, clean_environ, sh
from fixtures.machine import Machine
from lockedenv.errors import Stop
from lockedenv.spec import environment
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from rattler.index import index_fs


def test_an_environment_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment.find("default").folder == ROOT
    assert environment.find("current").argument == "current"
    assert environment.find(str(ROOT / "environments/current")).argument == "current"
    with pytest.raises(
        Stop,
        match="--environment curent: there are default and current, and any folder with an environment.yml",
    ):
        environment.find("curent")
    (tmp_path / "environment.yml").write_text("")
    assert environment.find(str(tmp_path)).argument == str(tmp_path)
    assert environment.find_by_prefix(tmp_path).folder == ROOT, "no mark says another"
    (tmp_path / environment.MARK).write_text(json.dumps({"environment": "current"}))
    assert environment.find_by_prefix(tmp_path).name == "current"
    (tmp_path / environment.MARK).write_text(
        json.dumps({"environment": str(tmp_path / "gone")})
    )
    with pytest.raises(
        Stop,
        match="gone, which is gone: bring its folder back, or rebuild the prefix with --environment NAME",
    ):
        environment.find_by_prefix(tmp_path)


def test_the_verifier_alone_compares_with_the_environment_that_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "COMPARISON", environment.ComparedEnvironment())
    assert environment.find_compared(tmp_path).name == "default"
    environment.compare_with("current")
    assert environment.find_compared(tmp_path).name == "current"
    assert environment.find_by_prefix(tmp_path).name == "default"


def test_a_clone_in_the_place_of_the_environment_is_said_to_be_the_clone(
    tmp_path: Path,
) -> None:
    """`git clone` makes ~/maximalcai, and the message told people to remove it."""
    clone = tmp_path / "maximalcai"
    clone.mkdir()
    for name in ("scripts", "locks", "environments"):
        shutil.copytree(ROOT / name, clone / name)
    for name in ("requirements.txt", "conda-lock.yml", "environment.yml"):
        shutil.copy2(ROOT / name, clone)
    done = sh(
        clone / "scripts/setup_runpod_environment.sh",
        check=False,
        env=clean_environ(HOME=str(tmp_path)),
    )
    assert done.returncode == 1
    assert (
        f"{clone} is there and was not made by this script; it is this clone: give"
        in done.stdout
    )
    assert (clone / "environment.yml").exists()


@pytest.mark.parametrize(
    "spec, flash, said",
    [
        ("dependencies: [pip]", "", "asks for no python, which both layers are for"),
        (
            "dependencies: [python=3.11]",
            "",
            "asks for no torch, which the verifier is about",
        ),
        (
            "dependencies: [python=3.11, pytorch=2.5.1]",
            "# nothing\n",
            "has to name flash-attn as a requirement",
        ),
        (
            "dependencies: [python=3.11, pytorch=2.5.1]",
            "flash-attn @ https://x/y.whl\n",
            "may name one wheel as: flash-attn @ URL",
        ),
    ],
)
def test_a_specification_that_cannot_be_locked_is_refused_in_words(
    spec: str,
    flash: str,
    said: str,
    machine: Machine,
    channel: LocalChannel,
    tmp_path: Path,
) -> None:
    for name in ("pytorch", "nvidia", "conda-forge"):
        asyncio.run(index_fs(channel.root / name))
    mine = tmp_path / "mine"
    (mine / "locks").mkdir(parents=True)
    channels = ", ".join(
        f"{machine.address}/{name}" for name in ("pytorch", "conda-forge")
    )
    (mine / "environment.yml").write_text(
        f"name: mine\nchannels: [{channels}]\n{spec}\n"
    )
    if flash:
        (mine / "locks/flash-attn.in").write_text(flash)
    (tmp_path / "mapping.json").write_text("{}")
    environ = clean_environ(
        CONDA_LOCK_SOLVER=str(machine.micromamba / "micromamba"),
        PYPI_TO_CONDA_MAPPING=(tmp_path / "mapping.json").as_uri(),
    )
    done = sh(
        machine.project / "scripts/lock.sh",
        "--environment",
        mine,
        env=environ,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert said in done.stdout, done.stdout
    assert "please open an issue" not in done.stdout, done.stdout
    assert not (mine / "conda-lock.yml").exists()


SPEC = """name: mine
channels: [{address}/pytorch, {address}/nvidia, {address}/conda-forge, nodefaults]
dependencies:
  - python=3.11
  - pytorch=2.5.1
  - libcublas
  - libblas=*=*mkl
  - mkl
  - tqdm
  - setuptools
  - uv
  - pip
  - pip: [idna]
"""


def test_a_python_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/lib/python3.9").mkdir(parents=True)
    (tmp_path / "env/bin/python").touch()
    done = sh(
        ROOT / "scripts/post_create.sh",
        "--prefix",
        tmp_path / "env",
        check=False,
        env=clean_environ(),
    )
    said = "has Python 3.9, and the environment default is for 3.11; choose another --prefix, or --environment"
    assert done.returncode == 1, done.stdout
    assert said in done.stdout, done.stdout
    assert not (tmp_path / "env" / environment.MARK).exists()


def test_a_third_environment_costs_no_code(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    """Specified over the local channel, locked by lock.sh, set up, verified, broken; beside the default one."""
    for name in ("pytorch", "nvidia", "conda-forge"):
        asyncio.run(index_fs(channel.root / name))
    mine = tmp_path / "mine"
    mapping = tmp_path / "mapping.json"
    mine.mkdir()
    (mine / "environment.yml").write_text(SPEC.format(address=machine.address))
    mapping.write_text("{}")
    lock = machine.project / "scripts/lock.sh"
    environ = clean_environ(
        CONDA_LOCK_SOLVER=str(machine.micromamba / "micromamba"),
        PYPI_TO_CONDA_MAPPING=mapping.as_uri(),
    )
    done = sh(lock, "--environment", mine, env=environ)
    assert "mine: locked 9 conda and 1 pip packages" in done.stdout, done.stdout
    assert {p.name for p in mine.rglob("*.*")} == {
        "environment.yml",
        "conda-lock.yml",
        "requirements.txt",
        "requirements-dev.txt",
        "pip.txt",
    }
    assert (
        "the locks are current"
        in sh(lock, "--environment", mine, "--check", env=environ).stdout
    )
    locked = Environment(mine)
    assert (
        locked.torch(BackendName.PIP),
        locked.cuda(BackendName.CONDA),
        locked.flash_attn(),
    ) == ("2.5.1", "12.4", None)
    done = machine.setup("--environment", mine)
    assert done.returncode == 0, done.stdout
    assert VERIFIED in done.stdout, done.stdout
    assert "mine, conda backend: " in done.stdout, done.stdout
    assert "not part of this environment: it has no locks/flash-attn.txt" in done.stdout
    assert "environment mine" in machine.verify(
        "--level", "quick"
    ), "the prefix says which environment it is of"
    assert "it is verified again" in machine.setup().stdout, "so it does to the set-up"
    assert (
        json.loads((machine.prefix / "maximalcai-manifest.json").read_text())[
            "environment"
        ]
        == "mine"
    )
    next(
        machine.prefix.glob("lib/python3.11/site-packages/idna-*.dist-info/METADATA")
    ).unlink()
    broken = machine.verify("--level", "quick")
    assert "FAILED: " in broken
    assert "idna" in broken
    against = machine.verify("--level", "quick", "--environment", "default")
    assert "FAILED: " in against
    assert "environment default" in against
    # A package that was added to the specification is not hidden by locking another anew.
    (mine / "environment.yml").write_text(
        SPEC.format(address=machine.address).replace(
            "  - tqdm\n", "  - tqdm\n  - packaging\n"
        )
    )
    done = sh(lock, "--environment", mine, "--update", "idna", env=environ, check=False)
    assert done.returncode == 1
    assert (
        "has changed since it was locked; run scripts/lock.sh without --update"
        in done.stdout
    )
    (mine / "environment.yml").write_text(SPEC.format(address=machine.address))
    # Neither script makes another environment of it in passing.
    done = machine.setup("--environment", "default")
    assert done.returncode == 1
    assert (
        f"{machine.prefix} is of the environment {mine}, not default; choose another"
        in done.stdout
    )
    post_create = [
        machine.project / "scripts/post_create.sh",
        "--prefix",
        machine.prefix,
        "--environment",
    ]
    done = sh(*post_create, "default", env=environ, check=False)
    assert done.returncode == 1
    assert f"{machine.prefix} is of the environment {mine}, not default" in done.stdout
    assert json.loads((machine.prefix / environment.MARK).read_text())[
        "verdicts"
    ], "another's locks give no verdict on it"
    # The spec changes: the lock is said to be stale, locked anew with one package more, and the prefix is rebuilt.
    (mine / "environment.yml").write_text(
        SPEC.format(address=machine.address).replace(
            "  - tqdm\n", "  - tqdm\n  - packaging\n"
        )
    )
    done = sh(lock, "--environment", mine, "--check", env=environ, check=False)
    assert done.returncode == 1
    assert "has changed since it was locked" in done.stdout
    assert "locked 10 conda" in sh(lock, "--environment", mine, env=environ).stdout
    done = machine.setup()
    assert done.returncode == 0, done.stdout
    assert "(rebuilt: the locks have changed)" in done.stdout, done.stdout
    # A folder that is gone is named.
    mine.rename(tmp_path / "elsewhere")
    done = machine.setup()
    assert done.returncode == 1, done.stdout
    assert f"is of the environment {mine}, which is gone" in done.stdout, done.stdout
