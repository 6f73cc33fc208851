"""lock.sh --diff: what changed in the locks since a revision."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from fixtures.commands import ROOT, sh
from fixtures.lock_damage import copy_locks, replaced, version_of
from lockedenv.errors import UsageError
from lockedenv.lock.diff import changes_text, find_changes
from lockedenv.spec import locks
from lockedenv.spec.environment import Environment


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose first commit is empty, and whose second has a conda-lock.yml of another layout."""
    copy_locks(tmp_path)
    lock = tmp_path / "conda-lock.yml"
    text = lock.read_text()
    lock.write_text(yaml.safe_dump(yaml.safe_load(text), sort_keys=False))
    git = ["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x"]
    sh(*git, "init", "-q")
    sh(*git, "commit", "-q", "--allow-empty", "-m", "0")
    sh(*git, "add", ".")
    sh(*git, "commit", "-q", "-m", "1")
    lock.write_text(text)
    return tmp_path


def difference(repository: Path, revision: str) -> str:
    return changes_text(find_changes([Environment(repository)], revision))


def test_another_layout_is_no_change(repository: Path) -> None:
    assert difference(repository, "HEAD") == "No lock changed."


def test_every_change_is_a_row(repository: Path) -> None:
    packages = locks.read_conda_lock(ROOT / "conda-lock.yml").packages
    [mkl] = [package for package in packages if package.name == "mkl"]
    replaced("conda-lock.yml", version_of("mkl"), '"mkl", "version": "2024.1.0"')(
        repository
    )
    replaced("conda-lock.yml", f"/mkl-{mkl.version}-", "/mkl-2024.1.0-")(repository)
    replaced("locks/pip.txt", "peft==[0-9.]+", "peft==0.5.0")(repository)
    head, rule, *rows = difference(repository, "HEAD").splitlines()
    assert head == "| environment | layer | package | before | after |"
    assert rule == "|---|---|---|---|---|"
    name = repository.name
    change = f"{mkl.version} {mkl.build} | 2024.1.0 {mkl.build}"
    assert rows[0] == f"| {name} | conda | mkl | {change} |"
    assert re.fullmatch(r"\| .* \| pip \| peft \| [\d.]+ \| 0\.5\.0 \|", rows[1])
    assert len(rows) == 2
    whole = difference(repository, "HEAD~")
    assert f"| {name} | conda | mkl |  | 2024.1.0 {mkl.build} |" in whole


def test_a_revision_that_does_not_exist_is_refused(repository: Path) -> None:
    with pytest.raises(UsageError, match="--diff no-such-tag: .* has no such revision"):
        difference(repository, "no-such-tag")


def test_a_folder_that_is_in_no_repository_has_no_revision(tmp_path: Path) -> None:
    copy_locks(tmp_path)
    with pytest.raises(UsageError, match="has no such revision"):
        difference(tmp_path, "HEAD")


def test_a_lock_that_is_cut_short_is_named(repository: Path) -> None:
    lock = repository / "conda-lock.yml"
    lock.write_text(lock.read_text()[:-300])
    with pytest.raises(locks.LockError, match="is cut short"):
        difference(repository, "HEAD")
