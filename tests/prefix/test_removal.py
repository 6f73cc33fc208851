"""The one way to remove an environment: nothing of people's is lost, and nothing of others' is touched."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.commands import ROOT, apart, sh
from lockedenv.prefix import removal
from lockedenv.prefix.inventory import INVENTORY
from lockedenv.prefix.lifecycle import change_mark, give_up
from lockedenv.prefix.mark import MadeBy, State, read_mark, write_mark
from lockedenv.prefix.ownership import own_paths
from lockedenv.prefix.place import Prefix
from lockedenv.prefix.removal import RemovalRefused, remove_environment
from lockedenv.spec.environment import MARK
from small_environment import SITE, add_wheel, contents, put_own_files

REMOVE = """\
import sys
from pathlib import Path
from lockedenv.prefix.place import Prefix
from lockedenv.prefix.removal import remove_environment

folder = Path(sys.argv[1])
remove_environment(Prefix(folder), folder)
"""


def test_an_untouched_environment_leaves_nothing_behind(prefix: Prefix) -> None:
    (prefix.path / SITE / "idna/__pycache__").mkdir()
    (prefix.path / SITE / "idna/__pycache__/core.cpython-311.pyc").touch()
    (prefix.path / ".lock").touch()
    assert own_paths(prefix.path) == []
    assert remove_environment(prefix, prefix.path) is None
    assert not prefix.path.exists()
    assert not list(prefix.public_path.parent.glob("*.kept-*"))


def test_what_people_put_in_or_edited_is_moved_and_named(prefix: Prefix) -> None:
    theirs = put_own_files(prefix.path)
    names = own_paths(prefix.path)
    whole_folder = {"results/loss.csv": "results"}
    assert names == sorted(whole_folder.get(name, name) for name in theirs)
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert sorted(kept.names) == names
    assert contents(kept.folder) == theirs
    assert (kept.folder / "results/empty").is_dir()
    assert not prefix.path.exists()


def test_an_edit_that_only_changed_the_time_is_none(prefix: Prefix) -> None:
    os.utime(prefix.path / SITE / "idna/core.py", ns=(0, 0))
    assert own_paths(prefix.path) == []


def test_more_than_twenty_names_are_counted(prefix: Prefix) -> None:
    for number in range(25):
        (prefix.path / f"run-{number:02}.log").touch()
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    lines = kept.lines()
    assert lines[0] == f"25 files or folders of yours are now in {kept.folder}:"
    assert lines[1] == "  run-00.log"
    assert lines[-1] == "  and 5 more"
    assert len(lines) == 22


def test_an_added_package_goes_and_what_was_edited_in_it_stays(prefix: Prefix) -> None:
    """It is in the list of extras, which brings it back; an edit of it is nowhere else."""
    add_wheel(
        prefix.path, "six", "1.16.0", {"six.py": b"six\n", "moves.py": b"moves\n"}
    )
    (prefix.path / SITE / "moves.py").write_text("edited\n")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert kept.names == (f"{SITE}/moves.py",)


def test_a_mount_anywhere_below_is_refused(tmp_path: Path) -> None:
    """A volume that was mounted in an unfinished prefix was emptied."""
    program = Path(__file__).with_name("remove_with_a_mount.py")
    command = [*apart("--mount"), "python3", program, tmp_path]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts:{Path(__file__).parent}"}
    output = sh(*command, env=environ).stdout
    assert output.count("is mounted in the environment") == 4, output
    assert "volume: years of work" in output


@pytest.mark.parametrize("kind", ["no mark", "people's", "a copy", "another prefix's"])
def test_what_the_set_up_did_not_make_here_is_refused(
    kind: str, prefix: Prefix, tmp_path: Path
) -> None:
    folder = prefix.path
    mark = read_mark(folder)
    assert mark is not None
    if kind == "no mark":
        (folder / MARK).unlink()
    elif kind == "people's":
        write_mark(folder, replace(mark, made_by=MadeBy.PEOPLE))
    elif kind == "a copy":
        folder = folder.with_name("copy")
        subprocess.run(["cp", "-a", prefix.path, folder], check=True)
    else:
        prefix = Prefix(tmp_path / "other", tmp_path / "other")
    before = contents(folder)
    with pytest.raises(RemovalRefused, match="it is left as it is"):
        remove_environment(prefix, folder)
    assert contents(folder) == before


def test_a_folder_that_fills_while_it_is_removed_is_said_and_nothing_is_lost(
    prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    delete = removal._delete

    def busy(folder: Path, found: object) -> bool:
        nonlocal written
        written += 1
        (folder / f"log-{written}").write_text("of a running program")
        return delete(folder, found)  # type: ignore[arg-type]

    monkeypatch.setattr(removal, "_delete", busy)
    with pytest.raises(RemovalRefused, match="something writes to it"):
        remove_environment(prefix, prefix.path)
    monkeypatch.undo()
    remove_environment(prefix, prefix.path)
    logs = [path.name for path in prefix.public_path.parent.glob("env.kept-*/log-*")]
    assert sorted(logs) == ["log-1", "log-2", "log-3", "log-4", "log-5"]


def test_a_removal_that_was_killed_goes_on(
    prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = removal._unlink
    left = 5

    def killed(path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        unlink(path)

    monkeypatch.setattr(removal, "_unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_environment(prefix, prefix.path)
    monkeypatch.undo()
    mark = read_mark(prefix.path)
    assert mark is not None
    assert mark.state is State.REMOVING
    assert (prefix.path / INVENTORY).exists()
    (prefix.path / "mine.txt").write_text("mine")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert kept.names == ("mine.txt",)
    assert not prefix.path.exists()


def test_optimised_python_refuses_too(tmp_path: Path) -> None:
    """The guard was an `assert`, which PYTHONOPTIMIZE removes."""
    (tmp_path / "thesis.tex").touch()
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts", "PYTHONOPTIMIZE": "2"}
    done = sh("python3", "-c", REMOVE, tmp_path, check=False, env=environ)
    assert "was not made by this set-up" in done.stdout
    assert (tmp_path / "thesis.tex").exists()


def test_a_removal_that_is_refused_says_why_the_environment_stays(
    prefix: Prefix,
) -> None:
    change_mark(prefix, made_by=MadeBy.PEOPLE)
    messages: list[str] = []
    give_up(prefix, prefix.path, messages.append)
    assert "is no longer used and stays: " in messages[0]
    assert prefix.path.is_dir()


def test_folders_deeper_than_python_recurses_are_kept(
    prefix: Prefix, tmp_path: Path
) -> None:
    """It ended in a RecursionError, when the environment was already marked as one that is removed."""
    deep = prefix.path / "results" / "/".join("a" * 1200)
    sh("mkdir", "-p", deep)
    (deep / "loss.csv").write_text("years of work")
    try:
        kept = remove_environment(prefix, prefix.path)
        assert kept is not None
        assert kept.names == ("results",)
    finally:
        sh("rm", "-rf", *tmp_path.glob("env.*"))  # neither can pytest


def as_somebody(folder: Path) -> list[str]:
    """What starts a Python with this code as an ordinary user who may write to a folder."""
    paths = f"{ROOT}/scripts:{Path(__file__).parent}"
    command = [
        "env",
        f"PYTHONPATH={paths}",
        "PYTHONDONTWRITEBYTECODE=1",
        "/usr/bin/python3",
    ]
    if os.getuid():
        return command
    folder.chmod(0o777)
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]


def test_what_is_protected_from_writing_is_moved_as_it_is(tmp_path: Path) -> None:
    """Its owner may rename neither a protected folder nor what is in one; root may."""
    program = Path(__file__).with_name("programs") / "remove_protected.py"
    done = sh(*as_somebody(tmp_path), program, tmp_path / "env", check=False, cwd="/")
    if "Permission denied" in done.stdout and "python3" in done.stdout:
        pytest.skip("another user cannot start this python3")
    assert done.stdout == "lib/mine 0o0\nresults 0o555\n", done.stdout


def test_names_of_any_bytes_are_moved_and_shown_in_one_line(prefix: Prefix) -> None:
    names = [b"a\xffb", b"two\nlines", b"\x1b[31mred", "größe".encode()]
    for name in names:
        (prefix.path / os.fsdecode(name)).write_text("years of work")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert len(contents(kept.folder)) == 4
    assert kept.lines()[1:] == [
        r"  \x1b[31mred",
        r"  a\udcffb",
        "  größe",
        r"  two\nlines",
    ]


def test_where_folders_cannot_be_renamed_what_is_in_them_is_moved(
    prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image's lower layer. A pipe cannot be copied, and a copy is root's."""
    (prefix.path / "results").mkdir(mode=0o750)
    (prefix.path / "results/loss.csv").write_text("years of work")
    (prefix.path / "results/last").symlink_to("loss.csv")
    os.mkfifo(prefix.path / "results/pipe")
    os.utime(prefix.path / "results", ns=(1, 1))
    rename = os.rename

    def rename_files(source: Path, target: Path) -> None:
        if os.path.isdir(source) and not os.path.islink(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_files)
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert kept.names == ("results",)
    assert contents(kept.folder) == {
        "results/last": "-> loss.csv",
        "results/loss.csv": "years of work",
    }
    status = (kept.folder / "results").stat()
    assert (kept.folder / "results/pipe").is_fifo()
    assert status.st_mode & 0o777 == 0o750
    assert status.st_mtime_ns == 1


def test_what_was_moved_before_an_error_is_named(
    prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prefix.path / "results.csv").write_text("years of work")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "lib")

    monkeypatch.setattr(removal, "_delete", fail)
    with pytest.raises(RemovalRefused) as refused:
        remove_environment(prefix, prefix.path)
    assert str(refused.value).startswith("lib: Input/output error")
    assert str(refused.value).endswith("\n  results.csv")


def test_a_full_disk_can_be_freed(tmp_path: Path) -> None:
    """The mark could not be written, and nothing was removed."""
    (tmp_path / "small").mkdir()
    program = Path(__file__).with_name("programs") / "remove_on_full_disk.py"
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts:{Path(__file__).parent}"}
    command = [*apart("--mount"), "python3", program, tmp_path / "small"]
    assert sh(*command, env=environ).stdout == "full\nremoved\n"
