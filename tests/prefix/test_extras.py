"""A package from a repository comes back as the same code: at its commit, from its folder there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fixtures.commands import clean_environ, sh
from lockedenv.backends.wheels import find_damage
from lockedenv.prefix.extras import list_added
from lockedenv.spec.locks import PipPackage
from small_environment import SITE

# Builds a wheel of one module without anything from an index.
BACKEND = """
import zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "theirs-1.0-py3-none-any.whl"
    info = "theirs-1.0.dist-info"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.write("theirs.py")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: theirs\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
PROJECT = (
    '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
)


def commit(repository: Path, text: str) -> str:
    """Commits a package in a folder of a repository; gives the commit."""
    package = repository / "python/theirs"
    package.mkdir(parents=True, exist_ok=True)
    (package / "pyproject.toml").write_text(PROJECT)
    (package / "backend.py").write_text(BACKEND)
    (package / "theirs.py").write_text(text)
    git = [
        "git",
        "-C",
        repository,
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
    ]
    sh(*git, "add", "--all")
    sh(*git, "commit", "--quiet", "--message", text)
    return sh(*git, "rev-parse", "HEAD").stdout.strip()


def install(folder: Path, line: str, cache: Path) -> str:
    """Installs a requirement into a new environment; gives the text of the package's module."""
    sh(sys.executable, "-m", "venv", "--without-pip", folder)
    requirements = folder / "requirements.txt"
    requirements.write_text(line + "\n")
    command = ["uv", "--cache-dir", cache, "pip", "install", "--offline", "--no-config"]
    sh(
        *command,
        "--python",
        folder / "bin/python",
        "-r",
        requirements,
        env=clean_environ(),
    )
    return next(folder.glob("lib/python3.*/site-packages/theirs.py")).read_text()


@pytest.mark.parametrize("revision", ["", "@main", "@v1"])
def test_a_package_from_a_repository_comes_back_at_its_commit(
    revision: str, tmp_path: Path
) -> None:
    """Without the commit and the folder, other code was installed in silence, or nothing could be."""
    repository = tmp_path / "repository"
    sh("git", "init", "--quiet", "--initial-branch", "main", repository)
    first = commit(repository, "ONE = 1\n")
    sh("git", "-C", repository, "tag", "v1")
    address = f"git+file://{repository}"
    line = f"theirs @ {address}{revision}#subdirectory=python/theirs"
    assert install(tmp_path / "env", line, tmp_path / "cache") == "ONE = 1\n"
    commit(repository, "TWO = 2\n")
    sh("git", "-C", repository, "tag", "--force", "v1")
    lines = list_added(tmp_path / "env")
    assert lines == [f"theirs @ {address}@{first}#subdirectory=python/theirs"]
    assert (
        install(tmp_path / "new", lines[0], tmp_path / "another-cache") == "ONE = 1\n"
    )


def test_a_query_for_damage_changes_nothing(tmp_path: Path) -> None:
    """It deleted a dist-info without a RECORD, in an environment that people made, too."""
    info = tmp_path / SITE / "idna-3.10.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: idna\nVersion: 3.10\n")
    (info / "mine.txt").write_text("mine")
    damage = find_damage(tmp_path, [PipPackage("idna", "3.10", "a" * 64)])
    assert damage.reinstall == ["idna"]
    assert damage.without_record == [info]
    assert (info / "mine.txt").read_text() == "mine"
