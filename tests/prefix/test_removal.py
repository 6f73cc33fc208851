"""The one way to remove an environment: nothing of people's is lost, and nothing of others' is touched."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.commands import ROOT, apart, sh
from lockedenv.prefix import removal
from lockedenv.prefix.inventory import INVENTORY
from lockedenv.prefix.lifecycle import change_mark, give_up, make_successor
from lockedenv.prefix.mark import MadeBy, Mark, State, read_mark, write_mark
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.prefix.removal import RemovalRefused, keep_edited, own_paths, remove_environment
from lockedenv.spec.environment import MARK
from small_environment import SITE, add_wheel, contents, fill, install


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    return install(find_prefix(tmp_path / "env"))


def kept_of(prefix: Prefix) -> dict[str, str]:
    folders = sorted(prefix.name.parent.glob(f"{prefix.name.name}.kept-*"))
    return contents(folders[-1]) if folders else {}


def put_own_files(folder: Path) -> dict[str, str]:
    """What people put into an environment; gives where it must be found afterwards."""
    (folder / "results").mkdir()
    (folder / "results/loss.csv").write_text("years of work")
    (folder / "results/empty").mkdir()
    (folder / "data").symlink_to("/nowhere")
    (folder / SITE / "idna/mine.py").write_text("mine")
    (folder / SITE / "idna/core.py").write_text("two, edited\n")
    (folder / "activate").write_text("export MINE=1\n")
    (folder / "pip.conf.old").write_text("[global]\n")
    (folder / "lib64").unlink()
    (folder / "lib64").symlink_to("elsewhere")
    return {
        "results/loss.csv": "years of work",
        "data": "-> /nowhere",
        f"{SITE}/idna/mine.py": "mine",
        f"{SITE}/idna/core.py": "two, edited\n",
        "activate": "export MINE=1\n",
        "pip.conf.old": "[global]\n",
        "lib64": "-> elsewhere",
    }


def test_an_untouched_environment_leaves_nothing_behind(prefix: Prefix) -> None:
    (prefix.path / SITE / "idna/__pycache__").mkdir()
    (prefix.path / SITE / "idna/__pycache__/core.cpython-311.pyc").touch()
    (prefix.path / ".lock").touch()
    assert own_paths(prefix.path) == []
    assert remove_environment(prefix, prefix.path) is None
    assert not prefix.path.exists() and not list(prefix.name.parent.glob("*.kept-*"))


def test_what_people_put_in_or_edited_is_moved_and_named(prefix: Prefix) -> None:
    theirs = put_own_files(prefix.path)
    names = own_paths(prefix.path)
    assert names == sorted(["results", *(name for name in theirs if "results" not in name)])
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None and sorted(kept.names) == names
    assert contents(kept.folder) == theirs and (kept.folder / "results/empty").is_dir()
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
    assert lines[1] == "  run-00.log" and lines[-1] == "  and 5 more" and len(lines) == 22


def test_an_added_package_goes_and_what_was_edited_in_it_stays(prefix: Prefix) -> None:
    """It is in the list of extras, which brings it back; an edit of it is nowhere else."""
    add_wheel(prefix.path, "six", "1.16.0", {"six.py": b"six\n", "moves.py": b"moves\n"})
    (prefix.path / SITE / "moves.py").write_text("edited\n")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None and kept.names == (f"{SITE}/moves.py",)


def test_an_unfinished_environment_gives_back_what_people_put_in(tmp_path: Path) -> None:
    """kill -9 in step 4, a file put into results, run again: it was gone."""
    place = find_prefix(tmp_path / "env")
    with pytest.raises(KeyboardInterrupt):
        with make_successor(place, "pip", "default", print) as new:
            fill(new.path)
            theirs = put_own_files(new.path)
            half = new.path / SITE / "torch"
            half.mkdir()
            (tmp_path / "cache.py").write_text("of a wheel that is half installed")
            os.link(tmp_path / "cache.py", half / "module.py")
            raise KeyboardInterrupt
    kept = kept_of(new)
    assert not new.path.exists() and "torch" not in str(kept)
    for name, content in theirs.items():
        if name != "lib64":
            assert kept[name] == content, name


def test_a_mount_anywhere_below_is_refused(tmp_path: Path) -> None:
    """A volume that was mounted in an unfinished prefix was emptied."""
    program = Path(__file__).with_name("remove_with_a_mount.py")
    command = [*apart("--mount"), "python3", program, tmp_path]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts:{Path(__file__).parent}"}
    said = sh(*command, env=environ).stdout
    assert said.count("is mounted in the environment") == 4, said
    assert "volume: years of work" in said


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
    logs = [path.name for path in prefix.name.parent.glob("env.kept-*/log-*")]
    assert sorted(logs) == ["log-1", "log-2", "log-3", "log-4", "log-5"]


def test_a_removal_that_was_killed_goes_on(prefix: Prefix, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert mark is not None and mark.state is State.REMOVING and (prefix.path / INVENTORY).exists()
    (prefix.path / "mine.txt").write_text("mine")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None and kept.names == ("mine.txt",) and not prefix.path.exists()


def test_optimised_python_refuses_too(tmp_path: Path) -> None:
    """The guard was an `assert`, which PYTHONOPTIMIZE removes."""
    (tmp_path / "thesis.tex").touch()
    program = (
        "import sys; from pathlib import Path; from lockedenv.prefix.removal import remove_environment;"
        "from lockedenv.prefix.place import Prefix; remove_environment(Prefix(Path(sys.argv[1])), Path(sys.argv[1]))"
    )
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts", "PYTHONOPTIMIZE": "2"}
    done = sh("python3", "-c", program, tmp_path, check=False, env=environ)
    assert "was not made by this set-up" in done.stdout and (tmp_path / "thesis.tex").exists()


def test_edited_files_of_a_package_that_is_installed_again_are_kept(prefix: Prefix) -> None:
    """post_create.sh wrote over them without naming them."""
    (prefix.path / SITE / "idna/core.py").write_text("two, edited\n")
    assert keep_edited(prefix, ["certifi"]) is None
    kept = keep_edited(prefix, ["idna"])
    assert kept is not None and kept.names == (f"{SITE}/idna/core.py",)
    assert (kept.folder / SITE / "idna/core.py").read_text() == "two, edited\n"
    assert keep_edited(prefix, ["idna"]) is None


def test_no_list_of_kept_files_is_written_over(prefix: Prefix) -> None:
    put_own_files(prefix.path)
    first = removal.kept_folder(prefix)
    first.mkdir()
    second = removal.kept_folder(prefix)
    assert second != first


def test_an_environment_of_version_2_0_keeps_what_was_edited(tmp_path: Path) -> None:
    """It has no inventory: the records of the packages, and its own notes, say what was edited."""
    place = fill(tmp_path / "env")
    mark = Mark(MadeBy.SETUP, State.INSTALLED, str(place), other={"activate": "0" * 64})
    write_mark(place, mark)
    (place / "maximalcai-installed.json").write_text(
        '{"files": {"pyvenv.cfg": "' + "0" * 64 + '"}}'
    )
    (place / SITE / "idna/core.py").write_text("two, edited\n")
    prefix = find_prefix(place)
    kept = remove_environment(prefix, place)
    assert kept is not None
    assert sorted(kept.names) == ["activate", f"{SITE}/idna/core.py", "pip.conf", "pyvenv.cfg"]


def test_a_removal_that_is_refused_says_why_the_environment_stays(prefix: Prefix) -> None:
    change_mark(prefix, made_by=MadeBy.PEOPLE)
    said: list[str] = []
    give_up(prefix, prefix.path, said.append)
    assert "is no longer used and stays: " in said[0] and prefix.path.is_dir()
