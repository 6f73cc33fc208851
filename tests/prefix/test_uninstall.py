"""setup_runpod_environment.sh --uninstall: lists first, removes what the set-up made, leaves what is people's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.prefix.place import Prefix, find_prefix
from small_environment import SITE, contents, fill, install


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    """An environment with a predecessor, its lock, a log, a cache, and a list of extras."""
    install(find_prefix(tmp_path / "env"))
    new = install(find_prefix(tmp_path / "env"))
    (tmp_path / "env").unlink()
    (tmp_path / "env").symlink_to(f"env.d/{new.path.name}")
    (tmp_path / "env.maximalcai-lock").touch()
    (tmp_path / "tmp").mkdir()
    log = f"setup_runpod_environment.sh --prefix {new.name}\nTraceback"
    (tmp_path / "tmp/maximalcai-1.log").write_text(log)
    other = f"setup_runpod_environment.sh --prefix {new.name}2\nTraceback"
    (tmp_path / "tmp/maximalcai-2.log").write_text(other)
    (tmp_path / "cache/wheels").mkdir(parents=True)
    (tmp_path / "cache/mine.txt").write_text("mine")
    (tmp_path / "env.maximalcai-extras-1.txt").write_text("six\n")
    (new.path / "results").mkdir()
    (new.path / "results/loss.csv").write_text("years of work")
    (new.path / SITE / "idna/core.py").write_text("edited\n")
    return new


def uninstall(prefix: Prefix, *options: str) -> "subprocess.CompletedProcess[str]":
    folder = prefix.name.parent
    command = [ROOT / "scripts/setup_runpod_environment.sh", "--uninstall", "--prefix", prefix.name]
    environ = clean_environ(TMPDIR=str(folder / "tmp"))
    return sh(*command, "--cache", folder / "cache", *options, check=False, env=environ)


def test_a_dry_run_lists_all_of_it_and_changes_nothing(prefix: Prefix) -> None:
    folder = prefix.name.parent
    before = contents(folder)
    done = uninstall(prefix, "--dry-run")
    assert done.returncode == 0 and contents(folder) == before, done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == f"removed  {prefix.name}, the link"
    assert sum(line.endswith(", an environment") for line in lines) == 2
    assert f"moved    results, yours, to {prefix.name}.kept-*" in lines
    assert f"moved    {SITE}/idna/core.py, yours, to {prefix.name}.kept-*" in lines
    assert f"removed  {folder}/env.maximalcai-lock" in lines
    assert f"removed  {folder}/tmp/maximalcai-1.log" in lines
    assert f"left     {folder}/env.maximalcai-extras-1.txt" in lines
    assert f"left     {folder}/cache" in lines
    assert "maximalcai-2.log" not in done.stdout, "another prefix's"
    assert lines[-1] == "this was a dry run: nothing was changed"


def test_it_removes_what_it_lists_and_leaves_what_is_peoples(prefix: Prefix) -> None:
    folder = prefix.name.parent
    done = uninstall(prefix)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "uninstalled", done.stdout
    [kept] = folder.glob("env.kept-*")
    assert contents(kept) == {
        "results/loss.csv": "years of work",
        f"{SITE}/idna/core.py": "edited\n",
    }
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["cache", kept.name, "env.maximalcai-extras-1.txt", "tmp"]
    assert [path.name for path in (folder / "tmp").iterdir()] == ["maximalcai-2.log"]
    done = uninstall(prefix)
    assert done.returncode == 0 and "there is nothing of this set-up at" in done.stdout


def test_the_cache_goes_only_when_it_is_named_and_without_what_is_peoples(prefix: Prefix) -> None:
    folder = prefix.name.parent
    assert uninstall(prefix, "--cache-too").returncode == 0
    assert [path.name for path in (folder / "cache").iterdir()] == ["mine.txt"]


def test_an_environment_that_people_made_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "env")
    (tmp_path / "tmp").mkdir()
    before = contents(tmp_path)
    done = uninstall(Prefix(tmp_path / "env"))
    assert done.returncode == 1 and "was not made by this set-up" in done.stdout
    assert contents(tmp_path) == before


def test_a_copy_beside_it_stays(prefix: Prefix) -> None:
    copy = prefix.path.with_name("backup")
    shutil.copytree(prefix.path, copy, symlinks=True)
    assert uninstall(prefix).returncode == 0
    assert (copy / "results/loss.csv").exists()


@pytest.mark.parametrize("options", [["--force"], ["--check-pod"]])
def test_other_options_are_wrong_usage(options: list[str], prefix: Prefix) -> None:
    done = uninstall(prefix, *options)
    assert done.returncode == 2 and prefix.name.is_symlink()
