"""Which index uv asks, which pip fetches it, and what is said meanwhile."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
from fixtures.listener import Listener
from lockedenv.backends import index, uv_program
from lockedenv.cli import setup
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop
from lockedenv.host.process import CommandResult


def test_pips_further_places_are_asked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """extra-index-url and find-links were ignored."""
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    found = index.index_settings(dict(os.environ))
    assert found["UV_EXTRA_INDEX_URL"] == "http://127.0.0.1:9/simple"
    assert found["UV_FIND_LINKS"] == str(tmp_path / "links")


@pytest.mark.parametrize("quiet", ["PIP_QUIET=1", "pip.conf"])
def test_a_pip_that_is_told_to_be_quiet_still_tells_its_index(
    quiet: str, no_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set-up went past a company's index, in silence."""
    (tmp_path / "pip.conf").write_text(
        f"[global]\nindex-url = http://mine.example/simple\n{'quiet = 1' * (quiet == 'pip.conf')}\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    if quiet == "PIP_QUIET=1":
        monkeypatch.setenv("PIP_QUIET", "1")
    theirs = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("UV_") and name != "PIP_INDEX_URL"
    }
    assert (
        index.index_settings(theirs)["UV_DEFAULT_INDEX"] == "http://mine.example/simple"
    )


def test_what_goes_on_is_shown_while_uv_tries_the_first_index_alone() -> None:
    """For minutes nothing was said, where pip.conf names further indexes."""
    listener = Listener()
    command = [sys.executable, "-c", "import time; print('uv says'); time.sleep(0.2)"]
    uv_program.run_uv(
        command,
        {**os.environ, "UV_EXTRA_INDEX_URL": "http://127.0.0.1:9/simple"},
        "installing",
        listener,
    )
    assert "installing, 0 s" in listener.states
    assert listener.lines == ["uv says"], "a detail"


@pytest.fixture
def no_memory() -> Iterator[None]:
    index.pip_command.cache_clear()
    yield
    index.pip_command.cache_clear()


def this_python_is(monkeypatch: pytest.MonkeyPatch, executable: str, base: str) -> None:
    """For the module that looks for pip alone: programs are still started by the real one."""
    python = SimpleNamespace(executable=executable, _base_executable=base)
    monkeypatch.setattr(index, "sys", python)


def test_a_virtual_environment_without_pip_asks_the_python_that_it_was_made_of(
    no_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = sys._base_executable  # type: ignore[attr-defined]
    this_python_is(monkeypatch, "/bin/false", base)
    assert index.pip_command()[0] == base
    this_python_is(monkeypatch, "/bin/false", "/bin/false")
    monkeypatch.setenv("PATH", "/nowhere")
    index.pip_command.cache_clear()
    with pytest.raises(
        Stop,
        match="no pip here to fetch uv with; install it with: apt-get install python3-pip",
    ):
        uv_program.bring_uv(tmp_path, Steps(1, True))


@pytest.mark.parametrize(
    "command",
    ["--backend pip --prefix {0}/env --cache {0}/cache", "--download-only {0}/cache"],
)
def test_without_pip_that_is_said_before_anything_is_done(
    command: str,
    no_memory: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was said in the second step; --download-only said it after three gigabytes."""
    this_python_is(monkeypatch, "/bin/false", "/bin/false")
    monkeypatch.setenv("PATH", "/nowhere")
    arguments = setup.parser().parse_args(command.format(tmp_path).split())
    with pytest.raises(
        Stop,
        match="no pip here to fetch uv with; install it with: apt-get install python3-pip",
    ):
        setup.work(arguments)
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "env").exists()


def test_the_wheels_of_debians_ensurepip_are_a_source_of_pip(
    no_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its python3-venv keeps them elsewhere, in a folder that the configuration names."""
    (tmp_path / "pip-1-py3-none-any.whl").touch()
    (tmp_path / "pip.py").write_text("raise ImportError\n")
    (tmp_path / "ensurepip.py").touch()
    (tmp_path / "python3").write_text(
        f"#!{sys.executable}\nimport sys, sysconfig\nsys.path.insert(0, {str(tmp_path)!r})\n"
        f"sysconfig.get_config_vars()['WHEEL_PKG_DIR'] = {str(tmp_path)!r}\nexec(sys.argv[2])\n"
    )
    (tmp_path / "python3").chmod(0o755)
    python = str(tmp_path / "python3")
    this_python_is(monkeypatch, python, python)
    assert index.pip_command() == [
        str(tmp_path / "python3"),
        f"{tmp_path}/pip-1-py3-none-any.whl/pip",
    ]


def test_pip_is_asked_once_for_its_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It takes as long to start as all else that a set-up does before uv installs."""
    said: list[Any] = []

    def ask(command: Any, **options: Any) -> CommandResult:
        said.append(command)
        return CommandResult(0, "global.index-url='https://pypi.example/simple'\n")

    monkeypatch.setattr(index, "ask", ask)
    monkeypatch.setattr(index, "pip_command", lambda: ["pip"])
    environ = {"HOME": str(tmp_path)}
    found = [
        uv_program.uv_environment(tmp_path, tmp_path / name, dict(environ))[
            "UV_DEFAULT_INDEX"
        ]
        for name in "ab"
    ]
    assert found == ["https://pypi.example/simple"] * 2
    assert len(said) == 1
    uv_program.uv_environment(tmp_path, tmp_path, {**environ, "PIP_INDEX_URL": "x"})
    assert len(said) == 2, "of other variables it has other settings"
