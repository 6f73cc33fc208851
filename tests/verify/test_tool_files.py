"""Files of pip's and uv's that `activate` cannot overrule are found, with the setting that leads elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from lockedenv.verify import tool_files
from lockedenv.verify.tool_files import find_elsewhere


@pytest.fixture(autouse=True)
def without_the_machines_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_files, "MACHINE_UV", tmp_path / "machine.toml")


@pytest.mark.parametrize(
    "line, found",
    [
        ("system = true", "system = true"),
        ('target = "/data"', "target = /data"),
        ('  python="/usr/bin/python3"  # ours', "python = /usr/bin/python3"),
        ("system = false", ""),
        ("# system = true", ""),
        ("no-binary = ['x']", ""),
    ],
)
@pytest.mark.parametrize("place", ["home", "xdg", "named", "machine"])
def test_a_uv_toml(line: str, found: str, place: str, tmp_path: Path) -> None:
    paths = {
        "home": tmp_path / ".config/uv/uv.toml",
        "xdg": tmp_path / "xdg/uv/uv.toml",
        "named": tmp_path / "named.toml",
        "machine": tmp_path / "machine.toml",
    }
    environ = {"HOME": str(tmp_path)}
    if place == "xdg":
        environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    if place == "named":
        environ["UV_CONFIG_FILE"] = str(paths["named"])
    paths[place].parent.mkdir(parents=True, exist_ok=True)
    paths[place].write_text(f'index-url = "https://example.com"\n[pip]\n{line}\n')
    expected = [f"{found} in {paths[place]}"] if found else []
    assert find_elsewhere(environ) == expected
    assert find_elsewhere({**environ, "UV_NO_CONFIG": "1"}) == []


def test_the_file_that_pip_config_file_names(tmp_path: Path) -> None:
    conf = tmp_path / "pip.conf"
    conf.write_text(
        "[global]\nindex-url = https://example.com\n[install]\ntarget: /data\n"
    )
    environ = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": str(conf)}
    assert find_elsewhere(environ) == [f"target = /data in {conf}"]
    conf.write_text("[download]\ntarget = /data\n[global]\ntarget =\n")
    assert find_elsewhere(environ) == []
    for nothing in ("/dev/null", "/dev/zero", str(tmp_path / "none"), str(tmp_path)):
        assert find_elsewhere({**environ, "PIP_CONFIG_FILE": nothing}) == []
