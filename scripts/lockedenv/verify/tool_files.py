"""Files of pip's and uv's that send an installation out of an entered environment,
and that `activate` cannot overrule.

PREFIX/pip.conf overrules the user's and the machine's pip.conf. It does not overrule the file that
PIP_CONFIG_FILE names, and uv has no file of an environment's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lockedenv.host.files import FileRefused, read_regular

LIMIT = 1_000_000  # bytes of such a file
MACHINE_UV = Path("/etc/uv/uv.toml")
# The sections of each file, and the settings in them that choose another place or Python.
PIP_SECTIONS = ("global", "install")
PIP_SETTINGS = ("target", "prefix", "root", "python")
UV_SECTIONS = ("pip",)
UV_SETTINGS = ("target", "prefix", "python", "system")
OFF = ("", "false", "no", "off", "0")


def find_elsewhere(environ: Mapping[str, str]) -> list[str]:
    """The settings, each with its file, such as "target = /data in /etc/uv/uv.toml"."""
    found: list[str] = []
    named = environ.get("PIP_CONFIG_FILE")
    if named:
        found += _find_settings(Path(named), PIP_SECTIONS, PIP_SETTINGS)
    for path in _list_uv_files(environ):
        found += _find_settings(path, UV_SECTIONS, UV_SETTINGS)
    return found


def _list_uv_files(environ: Mapping[str, str]) -> list[Path]:
    if environ.get("UV_NO_CONFIG", "").lower() not in OFF:
        return []
    if environ.get("UV_CONFIG_FILE"):
        return [Path(environ["UV_CONFIG_FILE"])]
    home = environ.get("HOME") or os.path.expanduser("~")
    folder = Path(environ.get("XDG_CONFIG_HOME") or Path(home, ".config"))
    return [folder / "uv/uv.toml", MACHINE_UV]


def _find_settings(
    path: Path, sections: tuple[str, ...], settings: tuple[str, ...]
) -> Iterator[str]:
    """Both formats have `[section]` and `name = value`, each in a line of its own."""
    try:
        text = read_regular(path, LIMIT).decode(errors="replace")
    except (OSError, FileRefused):
        return
    section = ""
    for line in text.splitlines():
        header = re.match(r"\s*\[([\w.-]+)\]", line)
        if header:
            section = header[1]
        setting = re.match(r"\s*([\w-]+)\s*[=:]\s*(.*)", line)
        if not setting or section not in sections or setting[1] not in settings:
            continue
        value = setting[2].split("#")[0].strip().strip("\"'")
        if value.lower() not in OFF:
            yield f"{setting[1]} = {value} in {path}"
