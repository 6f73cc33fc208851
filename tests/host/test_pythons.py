"""A Python that is not first on PATH is found, and where there is none, the remedy is one that works here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from lockedenv.host import pythons
from lockedenv.host.process import CommandResult
from lockedenv.host.pythons import find_python, how_to_get

VERSION = "3.19"  # of no Python yet


def make_python(
    folder: Path, version: str = VERSION, name: str = f"python{VERSION}"
) -> Path:
    """A program that says of itself what a Python of the version says."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho {version}\necho {program}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    "place",
    [
        ".pyenv/versions/3.19.1/bin",
        ".local/share/uv/python/cpython-3.19.0-linux-x86_64-gnu/bin",
        ".asdf/installs/python/3.19.1/bin",
        ".local/share/mise/installs/python/3.19.1/bin",
        "miniconda3/bin",
        "miniforge3/envs/mine/bin",
        "path/bin",
    ],
)
def test_a_python_is_found_where_its_tool_keeps_it(place: str, tmp_path: Path) -> None:
    python = make_python(tmp_path / place)
    environ = {"HOME": str(tmp_path), "PATH": f"/usr/bin:/bin:{tmp_path}/path/bin"}
    assert find_python(VERSION, environ) == python


@pytest.mark.parametrize(
    "variable, place",
    [
        ("PYENV_ROOT", "pyenv/versions/3.19.1/bin"),
        ("UV_PYTHON_INSTALL_DIR", "cpython-3.19.0-linux-x86_64-gnu/bin"),
        ("XDG_DATA_HOME", "uv/python/cpython-3.19.0-linux-x86_64-gnu/bin"),
    ],
)
def test_a_python_is_found_where_a_variable_says(
    variable: str, place: str, tmp_path: Path
) -> None:
    root = tmp_path / "elsewhere"
    python = make_python(root / place)
    value = root / "pyenv" if variable == "PYENV_ROOT" else root
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", variable: str(value)}
    assert find_python(VERSION, environ) == python


def test_a_python_of_another_version_is_not_taken(tmp_path: Path) -> None:
    make_python(tmp_path / "path", version="3.18")
    make_python(tmp_path / "path", version="3.18", name="python3")
    assert (
        find_python(VERSION, {"HOME": str(tmp_path), "PATH": str(tmp_path / "path")})
        is None
    )


def test_a_python3_of_the_version_is_taken(tmp_path: Path) -> None:
    python = make_python(tmp_path / "path", name="python3")
    assert (
        find_python(VERSION, {"HOME": str(tmp_path), "PATH": str(tmp_path / "path")})
        == python
    )


def test_the_prefix_that_is_made_anew_gives_no_python(tmp_path: Path) -> None:
    make_python(tmp_path / "env/bin")
    environ = {"HOME": str(tmp_path), "PATH": str(tmp_path / "env/bin")}
    assert find_python(VERSION, environ, without=[tmp_path / "env"]) is None


def test_the_interpreter_below_a_virtual_environment_is_taken() -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    base = getattr(sys, "_base_executable")
    found = find_python(version, {"PATH": os.path.dirname(sys.executable), "HOME": "/"})
    assert found == Path(os.path.realpath(base))


def test_the_remedy_is_a_package_that_the_distribution_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Debian 12 it was `apt-get install python3.12`, which it does not have."""
    answers = {
        "python3.11": "  Candidate: 3.11.2-6\n",
        "python3.12": "  Candidate: (none)\n",
    }
    monkeypatch.setattr(
        pythons, "ask", lambda command, *a: CommandResult(0, answers[command[-1]])
    )
    (tmp_path / "apt-cache").touch(mode=0o755)
    environ = {"PATH": str(tmp_path)}
    assert how_to_get("3.11", environ) == "apt-get install python3.11"
    assert how_to_get("3.12", environ) == ""
    (tmp_path / "uv").touch(mode=0o755)
    assert how_to_get("3.12", environ) == "uv python install 3.12"
