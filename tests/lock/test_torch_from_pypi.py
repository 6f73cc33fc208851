"""An environment that has torch in its pip section, on both backends, real ones: the full level passes, and they compute the same."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Dict, Set, Tuple

import pytest
from fixtures.channel import LocalChannel
from fixtures.commands import ROOT, VERIFIED, clean_environ, sh
from fixtures.machine import Machine
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName, Layer
from rattler.index import index_fs


def specification(address: str) -> str:
    """current's environment.yml over the local channel: its Python is 3.11, and it has no compilers."""
    text = (ROOT / "environments/current/environment.yml").read_text()
    text = re.sub(r"(?m)^  - (gcc|gxx|ninja)\b.*\n", "", text)
    text = text.replace("- python=3.12", "- python=3.11")
    return text.replace("  - conda-forge\n", f"  - {address}/conda-forge\n")


def set_up(machine: Machine, mine: Path, backend: str) -> Path:
    """The prefix that the one command makes of `mine` from an empty cache, verified at the full level."""
    folder = mine.parent / backend
    places = ["--prefix", folder / "env", "--cache", folder / "cache"]
    done = machine.setup(
        "--environment", mine, "--backend", backend, *places, "--level", "full"
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert VERIFIED in done.stdout
    assert re.search(r"PASS +torch-origin +torch \S+ from pip", done.stdout)
    for used in (folder / "env", folder / "cache"):
        size = sh(
            "du", "--summarize", "--block-size=1000000", f"{used}/"
        ).stdout.split()[0]
        print(f"{used}: {size} MB")
    return folder / "env"


def describe(machine: Machine, prefix: Path, *options: str) -> Path:
    """The certificate or manifest of a prefix."""
    file = prefix.parent / f"{options[-1]}.json"
    program = machine.project / "scripts/verify_environment.py"
    print(
        sh(prefix / "bin/python", program, *options, file, env=clean_environ()).stdout
    )
    return file


def wheels_of(manifest: Path) -> Set[Tuple[str, str, str]]:
    """Each wheel's name, version and digest."""
    document: Dict[str, Any] = json.loads(manifest.read_text())
    print(f"{manifest}: fingerprint {document['fingerprint']}")
    rows = [package for package in document["packages"] if package["manager"] == "pip"]
    return {(row["name"], row["version"], row["hash"]) for row in rows}


@pytest.mark.long
def test_torch_from_pypi_is_the_same_on_both_backends(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    """Fetches 3.5 GB and installs 6.4, twice."""
    asyncio.run(index_fs(channel.root / "conda-forge"))
    mine = tmp_path / "mine"
    (mine / "locks").mkdir(parents=True)
    (mine / "environment.yml").write_text(specification(machine.address))
    (tmp_path / "mapping.json").write_text("{}")
    environ = clean_environ(
        CONDA_LOCK_SOLVER=str(machine.micromamba / "micromamba"),
        PYPI_TO_CONDA_MAPPING=(tmp_path / "mapping.json").as_uri(),
    )
    print(
        sh(
            machine.project / "scripts/lock.sh", "--environment", mine, env=environ
        ).stdout
    )
    env = Environment(mine)
    assert env.torch_layer(BackendName.CONDA) is Layer.PIP
    assert env.cuda(BackendName.CONDA) == env.cuda(BackendName.PIP)

    prefixes = [set_up(machine, mine, backend) for backend in ("conda", "pip")]
    manifests = [
        describe(machine, prefix, "--level", "quick", "--manifest")
        for prefix in prefixes
    ]
    by_conda, by_pip = [wheels_of(manifest) for manifest in manifests]
    assert by_conda == {
        (pin.name, pin.version, pin.record_sha256)
        for pin in env.wheels(BackendName.CONDA)
    }
    assert by_conda < by_pip, "PyPI gives the same wheels, and Python's tools as well"
    certificates = [describe(machine, prefix, "--certificate") for prefix in prefixes]
    program = machine.project / "scripts/verify_environment.py"
    compared = sh(
        prefixes[0] / "bin/python",
        program,
        "--compare",
        *certificates,
        env=clean_environ(),
    )
    print(compared.stdout)
    assert "they compute the same, bit for bit\n" in compared.stdout
