"""Which backend an environment was made by: the mark says so, and without one the records of conda's packages."""

from __future__ import annotations

from pathlib import Path

import pytest
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.mark import MadeBy, Mark, State, write_mark
from lockedenv.prefix.place import find_backend, find_prefix
from lockedenv.prefix.records import read_prefix
from lockedenv.prefix.removal import remove_environment
from lockedenv.spec.environment import MARK
from lockedenv.spec.layers import BackendName
from small_environment import IDNA, install


def stray_conda_meta(folder: Path, kind: str) -> None:
    (folder / "conda-meta").mkdir()
    if kind == "history":
        (folder / "conda-meta/history").touch()
    if kind == "a record":
        (folder / "conda-meta/tqdm-4.67.1-0.json").write_text("{}")


@pytest.mark.parametrize("kind", ["nothing", "history", "a record"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_folder_conda_meta_makes_no_conda_environment(
    marked: bool, kind: str, tmp_path: Path
) -> None:
    """Two rules, neither of which asked the mark: the remedy removed pyvenv.cfg and torch."""
    prefix = install(find_prefix(tmp_path / "env"))
    if not marked:
        (prefix.path / MARK).unlink()
    stray_conda_meta(prefix.path, kind)
    installed = read_prefix(prefix.path)
    assert find_backend(prefix.path) == installed.backend == "pip"
    assert not installed.conda
    assert not installed.problems
    inventory = take_inventory(prefix.path, [IDNA])
    assert "pyvenv.cfg" in inventory.entries_by_path()
    assert inventory.interpreter is not None
    if marked:
        kept = remove_environment(prefix, prefix.path)
        assert kept is None or kept.names == ("conda-meta",)
        assert (kept is None) == (kind == "nothing")


@pytest.mark.parametrize("python", [True, False])
def test_an_environment_of_condas_without_a_mark_is_known_by_its_records(
    python: bool, tmp_path: Path
) -> None:
    """With a record of Python even where somebody put a pyvenv.cfg into it."""
    (tmp_path / "conda-meta").mkdir()
    (tmp_path / "conda-meta/history").touch()
    if python:
        (tmp_path / "conda-meta/python-3.11.7-0.json").write_text("{}")
        (tmp_path / "pyvenv.cfg").touch()
    assert find_backend(tmp_path) == read_prefix(tmp_path).backend == "conda"


def test_the_mark_decides_which_backend_it_was(tmp_path: Path) -> None:
    stray_conda_meta(tmp_path, "history")
    (tmp_path / "conda-meta/python-3.11.7-0.json").write_text("{}")
    for backend in BackendName:
        write_mark(tmp_path, Mark(MadeBy.SETUP, State.INSTALLED, backend=backend))
        assert find_backend(tmp_path) == read_prefix(tmp_path).backend == backend
