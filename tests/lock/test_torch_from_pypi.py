"""An environment that has torch in its pip section, on the conda backend: a real one, and the full level passes."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from fixtures.channel import LocalChannel
from fixtures.commands import ROOT, VERIFIED, clean_environ, sh
from fixtures.machine import Machine
from lockedenv.spec.environment import Environment, Layer
from rattler.index import index_fs


def specification(address: str) -> str:
    """current's environment.yml over the local channel: its Python is 3.11, and it has no compilers."""
    text = (ROOT / "environments/current/environment.yml").read_text()
    text = re.sub(r"(?m)^  - (gcc|gxx|ninja)\b.*\n", "", text)
    text = text.replace("- python=3.12", "- python=3.11")
    return text.replace("  - conda-forge\n", f"  - {address}/conda-forge\n")


@pytest.mark.long
def test_torch_from_pypi_on_the_conda_backend(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    """Fetches 3.5 GB and installs 6.4."""
    asyncio.run(index_fs(channel.root / "conda-forge"))
    mine = tmp_path / "mine"
    (mine / "locks").mkdir(parents=True)
    (mine / "environment.yml").write_text(specification(machine.address))
    (tmp_path / "mapping.json").write_text("{}")
    environ = clean_environ(
        CONDA_LOCK_SOLVER=str(machine.micromamba / "micromamba"),
        PYPI_TO_CONDA_MAPPING=(tmp_path / "mapping.json").as_uri(),
    )
    print(sh(machine.project / "scripts/lock.sh", "--environment", mine, env=environ).stdout)
    env = Environment(mine)
    assert env.torch_layer("conda") is Layer.PIP
    assert env.cuda("conda") == env.cuda("pip")
    places = ["--prefix", tmp_path / "env", "--cache", tmp_path / "cache"]
    done = machine.setup("--environment", mine, *places, "--level", "full")
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert VERIFIED in done.stdout
    assert re.search(r"PASS +torch-origin +torch \S+ from pip", done.stdout)
