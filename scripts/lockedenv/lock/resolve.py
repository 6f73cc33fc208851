"""The wheels: uv resolves them, and of each package the best fitting file is chosen."""

from __future__ import annotations

import functools
import tomllib
from typing import Any, Iterable

from lockedenv.errors import Stop
from lockedenv.host.versions import version_tuple
from lockedenv.lock.tools import run_tool
from lockedenv.lock.wheel_files import WheelFile
from lockedenv.spec.locks import PipPackage, canonical
from lockedenv.spec.platform_tags import GLIBC, PLATFORM
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

WHEELS_ONLY = ("--only-binary", ":all:")
# The platform tags of before PEP 600, by the minor version of glibc.
LEGACY_PLATFORMS = {
    17: "manylinux2014_x86_64",
    12: "manylinux2010_x86_64",
    5: "manylinux1_x86_64",
}


def compile_requirements(python: str, *arguments: object) -> str:
    """What uv resolves the given requirements to. Raises Stop."""
    command = ["uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header"]
    command += ["--python-version", python, "--python-platform", PLATFORM]
    for argument in arguments:
        command.append(str(argument))
    return run_tool(*command)


def resolve(python: str, *arguments: object) -> dict[str, dict[str, Any]]:
    """uv's resolution as the entries of a pylock.toml, by name. Raises Stop."""
    text = compile_requirements(python, "--format", "pylock.toml", *arguments)
    entries = tomllib.loads(text).get("packages", [])
    return {canonical(entry["name"]): entry for entry in entries}


@functools.lru_cache()
def list_tags(python: str) -> list[Tag]:
    """The wheel tags that fit a CPython on x86_64 Linux with the locked glibc, the best first."""
    platforms = []
    for minor in range(int(GLIBC.split(".")[1]), 4, -1):
        platforms.append(f"manylinux_2_{minor}_x86_64")
        if minor in LEGACY_PLATFORMS:
            platforms.append(LEGACY_PLATFORMS[minor])
    platforms.append("linux_x86_64")
    version = version_tuple(python)
    interpreter = f"cp{python.replace('.', '')}"
    tags = list(cpython_tags(version, platforms=platforms))
    tags += compatible_tags(version, interpreter, platforms)
    return tags


def rank_wheel(filename: str, python: str) -> int | None:
    """How well a wheel fits: 0 is best, None is not at all."""
    try:
        tags = parse_wheel_filename(filename)[3]
    except InvalidWheelFilename:
        return None
    for rank, tag in enumerate(list_tags(python)):
        if tag in tags:
            return rank
    return None


def choose_file(entry: dict[str, Any], python: str) -> dict[str, Any]:
    """The one file of a pylock entry to install: the best fitting wheel, else the sdist.

    Raises Stop.
    """
    ranked = []
    for file in entry.get("wheels", []):
        rank = rank_wheel(_address(file).rsplit("/", 1)[1], python)
        if rank is not None:
            ranked.append((rank, file["hashes"]["sha256"], file))
    if ranked:
        best: dict[str, Any] = min(ranked, key=lambda choice: choice[:2])[2]
        return best
    source: dict[str, Any] | None = entry.get("sdist")
    if not source:
        raise Stop(
            f"{entry['name']} {entry['version']}: PyPI has no wheel for Python {python}, "
            f"glibc {GLIBC}"
        )
    return source


def pin(entry: dict[str, Any], python: str) -> PipPackage:
    """The chosen file of a pylock entry, without the digest of its RECORD. Raises Stop."""
    file = choose_file(entry, python)
    return PipPackage(
        name=canonical(entry["name"]),
        version=entry["version"],
        sha256=file["hashes"]["sha256"],
        size=file.get("size", 0),
    )


def list_wheel_files(
    entries: Iterable[dict[str, Any]], python: str
) -> dict[str, WheelFile]:
    """sha256 -> where the index keeps it, of the wheels that these pylock entries mean.

    Raises Stop.
    """
    wheels = {}
    for entry in entries:
        file = choose_file(entry, python)
        wheel = WheelFile(_address(file), file["hashes"]["sha256"], file.get("size", 0))
        if wheel.filename.endswith(".whl"):
            wheels[wheel.sha256] = wheel
    return wheels


def _address(file: dict[str, Any]) -> str:
    """The address of a file, or its path where the index is a folder."""
    return str(file.get("url") or file["path"])
