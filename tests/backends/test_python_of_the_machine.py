"""The pip backend's Python: the machine's, or one that uv fetches; where there is none, one line says what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.backends import pip
from lockedenv.backends.base import Job, Sources
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop
from lockedenv.host.places import default_cache
from lockedenv.install.facts import make_job
from lockedenv.install.request import SetupRequest
from lockedenv.prefix.place import Prefix
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName


def job_of(folder: Path, offline: Path | None = None) -> Job:
    request = SetupRequest(folder / "env", Environment(ROOT), folder / "cache")
    return make_job(request, Prefix(request.prefix), Sources(offline=offline))


def refuse(*_: Any, **__: Any) -> str:
    raise Stop("uv says no")


@pytest.fixture(autouse=True)
def no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an air-gapped Debian 13, whose Python is another."""
    monkeypatch.setattr(pip, "find_python", lambda *a, **k: None)
    monkeypatch.setattr(pip, "run", refuse)


def test_without_a_python_there_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pip, "how_to_get", lambda *a: "apt-get install python3.11")
    with pytest.raises(Stop) as stop:
        pip.create_venv(job_of(tmp_path), Path("uv"), Steps(1, quiet=True))
    said = "no Python 3.11 here, and uv could not fetch one: apt-get install python3.11, or put any"
    assert str(stop.value).startswith(said)
    assert "use --backend conda" in str(stop.value)


def test_an_offline_folder_without_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command is named that is not known to work here."""
    monkeypatch.setattr(pip, "how_to_get", lambda *a: "")
    with pytest.raises(Stop) as stop:
        pip.create_venv(
            job_of(tmp_path, tmp_path / "offline"), Path("uv"), Steps(1, quiet=True)
        )
    said = f"no Python 3.11 here, and {tmp_path}/offline has none: put any python3.11 on PATH, or"
    assert str(stop.value).startswith(said)


def test_without_a_python_the_one_command_ends_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    prefix = tmp_path / "env"
    program = ROOT / "tests/prefix/programs/set_up_with.py"
    places = ["--prefix", prefix, "--cache", default_cache()]
    command = ["python3", program, "python=3.19", "--backend", "pip", *places]
    environ = clean_environ(PYTHONPATH=str(ROOT / "scripts"), PYTHONUTF8="1")
    done = sh(*command, check=False, env=environ)
    assert done.returncode == 1, done.stdout
    assert "no Python 3.19 here, and uv could not fetch one: " in done.stdout
    assert "Traceback" not in done.stdout
    assert not os.path.lexists(prefix)
    folder = tmp_path / "offline"
    (folder / "wheels").mkdir(parents=True)
    for pin in Environment(ROOT).wheels(BackendName.PIP):
        name = pin.name.replace("-", "_")
        (folder / "wheels" / f"{name}-{pin.version}-py3-none-any.whl").touch()
    for wheel in default_cache().glob("wheels/uv-*.whl"):
        (folder / "wheels" / wheel.name).symlink_to(wheel)
    done = sh(*command, "--offline", folder, check=False, env=environ)
    assert done.returncode == 1, done.stdout
    assert f"no Python 3.19 here, and {folder} has none: " in done.stdout
    assert not os.path.lexists(prefix)
