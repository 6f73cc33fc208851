"""The pip backend's Python: the machine's, or one that uv fetches; where there is none, one line says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.commands import ROOT
from lockedenv.backends import pip
from lockedenv.backends.base import Job, Sources
from lockedenv.errors import Stop
from lockedenv.install.facts import installation_of
from lockedenv.install.request import Request
from lockedenv.spec.environment import Environment


def job_of(folder: Path, offline: Path | None = None) -> Job:
    request = Request(folder / "env", Environment(ROOT), folder / "cache")
    return installation_of(request, Sources(offline=offline))


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
        pip.create_venv(job_of(tmp_path), Path("uv"))
    said = "no Python 3.11 here, and uv could not fetch one: apt-get install python3.11, or put any"
    assert str(stop.value).startswith(said) and "use --backend conda" in str(stop.value)


def test_an_offline_folder_without_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command is named that is not known to work here."""
    monkeypatch.setattr(pip, "how_to_get", lambda *a: "")
    with pytest.raises(Stop) as stop:
        pip.create_venv(job_of(tmp_path, tmp_path / "offline"), Path("uv"))
    said = f"no Python 3.11 here, and {tmp_path}/offline has none: put any python3.11 on PATH, or"
    assert str(stop.value).startswith(said)
