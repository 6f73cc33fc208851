"""What lies beside an environment: copies, links and folders of people's stay; what a killed run unpacked is removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fixtures.commands import ROOT, apart, sh
from lockedenv.install.run import dropping_unpacked
from lockedenv.prefix.lifecycle import settle
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.prefix.recovery import recover
from lockedenv.prefix.status import PrefixStatus, is_ours, read_status
from lockedenv.spec.environment import MARK
from small_environment import install, verified

RECOVER_BESIDE_A_MOUNT = """\
import subprocess, sys
from pathlib import Path
from lockedenv.prefix.recovery import recover
from lockedenv.prefix.place import find_prefix

place = Path(sys.argv[1])
mounted = place.with_name("env.d") / "12345678"
mounted.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
recover(find_prefix(place), print)
print(mounted.is_mount())
"""


def test_a_backup_is_somebodys(used: Prefix, place: Path) -> None:
    """The mark is copied along; `cp -a PREFIX PREFIX.old` was deleted with what was added to it."""
    backup = used.path.with_name("backup")
    shutil.copytree(used.path, backup, symlinks=True)
    (backup / "thesis.tex").write_text("years of work")
    beside = place.with_name("env.old")
    shutil.copytree(used.path, beside, symlinks=True)
    settle(verified(install(find_prefix(place))), True, True, print)
    assert (backup / "thesis.tex").exists()
    assert (beside / MARK).exists()
    assert not is_ours(find_prefix(beside))
    assert read_status(find_prefix(beside)) is PrefixStatus.MOVED


def test_a_link_that_people_made_keeps_the_environment(
    used: Prefix, place: Path
) -> None:
    """`cp -a PREFIX PREFIX.old` copies the link alone."""
    backup = place.with_name("env.old")
    backup.symlink_to(os.readlink(place))
    messages: list[str] = []
    settle(verified(install(find_prefix(place))), True, True, messages.append)
    assert backup.resolve() == used.path
    assert used.path.is_dir()
    expected = f"{used.path} is no longer used and stays: {backup} is a link to it"
    assert messages[-1] == expected


def test_what_others_keep_in_the_folder_of_environments_stays(
    used: Prefix, place: Path
) -> None:
    """A file with the name of an id ended the run; a link into PREFIX.d went."""
    container = used.container
    (container / "deadbeef").write_text("years of work")
    (container / "cafebabe").mkdir()
    (container / "cafebabe/mine.txt").write_text("mine")
    (container / "link").symlink_to("env.d/elsewhere")
    recover(find_prefix(place), print)
    assert (container / "deadbeef").is_file()
    assert (container / "link").is_symlink()
    assert (container / "cafebabe/mine.txt").is_file()


def test_what_is_mounted_in_the_folder_of_environments_does_not_end_the_run(
    tmp_path: Path,
) -> None:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts"}
    command = [*apart("--mount"), "python3", "-c", RECOVER_BESIDE_A_MOUNT]
    done = sh(*command, tmp_path / "env", env=environ)
    assert done.stdout == "True\n"


def test_what_a_killed_run_unpacked_is_removed_by_the_next(used: Prefix) -> None:
    ours = [used.container / "0123abcd.maximalcai-uv", used.beside("maximalcai-pkgs")]
    theirs = [used.container / "mine.maximalcai-uv", used.container / "0123abcd.mine"]
    for folder in [*ours, *theirs]:
        folder.mkdir()
    recover(used, print)
    for folder in ours:
        assert not folder.exists()
    for folder in theirs:
        assert folder.exists()
    assert used.path.is_dir()


def test_what_is_unpacked_goes_also_where_the_disk_is_full(used: Prefix) -> None:
    unpacked = Prefix(used.path).beside("maximalcai-uv")
    with pytest.raises(OSError, match="full"):
        with dropping_unpacked(used):
            unpacked.mkdir()
            raise OSError("full")
    assert not unpacked.exists()
