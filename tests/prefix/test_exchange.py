"""The life of an environment: made beside the one that is used, exchanged by one rename, removed last."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.commands import ROOT, apart, sh
from lockedenv.errors import Stop
from lockedenv.host.files import write_atomically
from lockedenv.install.run import dropping_unpacked
from lockedenv.prefix.lifecycle import (
    Status,
    change_mark,
    exchange,
    find_move,
    finish_installation,
    hold,
    is_ours,
    make_successor,
    point,
    read_status,
    record_verdict,
    recover,
    refuse_place,
    settle,
)
from lockedenv.prefix.mark import (
    Level,
    MadeBy,
    Mark,
    State,
    Verdict,
    read_mark,
    write_mark,
)
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.spec.environment import MARK
from small_environment import fill, install


def verified(prefix: Prefix, passed: bool = True) -> Prefix:
    mark = read_mark(prefix.path)
    assert mark is not None
    record_verdict(prefix.path, "quick", passed, mark.made)
    return prefix


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "env"


@pytest.fixture
def used(place: Path) -> Prefix:
    """A verified environment at PREFIX."""
    new = verified(install(find_prefix(place)))
    return settle(new, True, True, print)


def test_the_statuses_of_a_place(place: Path) -> None:
    assert read_status(find_prefix(place)) is Status.ABSENT
    place.mkdir()
    assert (
        read_status(find_prefix(place)) is Status.ABSENT
    ), "an empty folder holds nothing to lose"
    (place / "thesis.tex").touch()
    assert read_status(find_prefix(place)) is Status.FOREIGN
    (place / MARK).touch()
    assert (
        read_status(find_prefix(place)) is Status.FOREIGN
    ), "an empty mark says nothing"
    mark = Mark(MadeBy.SETUP, State.MAKING, str(place))
    write_mark(place, mark)
    assert read_status(find_prefix(place)) is Status.MAKING
    write_mark(place, replace(mark, made_by=MadeBy.PEOPLE, state=State.INSTALLED))
    assert (
        read_status(find_prefix(place)) is Status.FOREIGN
    ), "post_create.sh was pointed at it"
    write_mark(place, replace(mark, state=State.INSTALLED, locks="a"))
    assert read_status(find_prefix(place), "b") is Status.CHANGED
    assert read_status(find_prefix(place), "a") is Status.INSTALLED
    record_verdict(place, "quick", True, 0)
    assert read_status(find_prefix(place), "a") is Status.VERIFIED
    record_verdict(place, "full", False, 0)
    assert read_status(find_prefix(place), "a") is Status.INSTALLED
    place.rename(place.with_name("other"))
    assert read_status(find_prefix(place.with_name("other")), "a") is Status.MOVED


def test_the_link_appears_once_the_environment_is_installed(place: Path) -> None:
    with make_successor(find_prefix(place), "pip", "default", print) as new:
        fill(new.path)
        assert not os.path.lexists(place)
        assert read_status(find_prefix(place)) is Status.MAKING
        finish_installation(new, "default", "a")
        assert place.is_symlink() and place.resolve() == new.path
        assert (
            os.readlink(place) == f"env.d/{new.path.name}"
        ), "it can be moved with its folder"
    assert find_prefix(place) == new and is_ours(new)
    assert read_status(find_prefix(place), "a") is Status.INSTALLED


def test_the_old_environment_is_used_until_the_new_one_is_verified(
    used: Prefix, place: Path
) -> None:
    new = install(find_prefix(place), locks="b")
    assert place.resolve() == used.path and new.path.is_dir()
    assert find_prefix(place) == new, "the next run goes on with it"
    said: list[str] = []
    assert settle(verified(new), True, True, said.append) == new
    assert place.resolve() == new.path and not used.path.exists()
    assert said == [f"removing the old environment {used.path}"]


def test_a_new_environment_that_does_not_verify_is_removed(
    used: Prefix, place: Path
) -> None:
    new = verified(install(find_prefix(place)), passed=False)
    (new.path / "results.csv").write_text("years of work")
    said: list[str] = []
    assert settle(new, False, True, said.append) == used
    assert place.resolve() == used.path and not new.path.exists()
    kept = next(place.parent.glob("env.kept-*"))
    assert (kept / "results.csv").read_text() == "years of work"
    assert said[1:] == [f"1 file or folder of yours is now in {kept}:", "  results.csv"]


def test_the_old_one_stays_until_all_that_was_asked_for_is_there(
    used: Prefix, place: Path
) -> None:
    new = verified(install(find_prefix(place)))
    settle(new, True, False, print)
    assert place.resolve() == new.path and used.path.is_dir()
    change_mark(new, lacking=("flash-attn",))
    recover(find_prefix(place), print)
    assert used.path.is_dir()
    change_mark(new, lacking=())
    settle(find_prefix(place), True, True, print)
    assert not used.path.exists()


def test_a_passed_but_incomplete_environment_is_not_left_for_one_that_fails(
    used: Prefix, place: Path
) -> None:
    change_mark(used, lacking=("flash-attn",))
    new = verified(install(find_prefix(place)), passed=False)
    assert settle(new, False, True, print) == used and not new.path.exists()


def test_of_two_that_do_not_verify_both_stay_and_the_new_one_is_used(
    used: Prefix, place: Path
) -> None:
    verified(used, passed=False)
    new = verified(install(find_prefix(place)), passed=False)
    said: list[str] = []
    settle(new, False, True, said.append)
    assert place.resolve() == new.path and used.path.is_dir()
    assert "neither the new environment nor the old one is verified" in said[0]


def test_an_unfinished_one_is_removed_and_the_old_one_never_left_its_place(
    used: Prefix, place: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        with make_successor(find_prefix(place), "pip", "default", print) as new:
            fill(new.path)
            (new.path / "results").mkdir()
            (new.path / "results/loss.csv").write_text("years of work")
            raise KeyboardInterrupt
    assert place.resolve() == used.path and not new.path.exists()
    kept = next(place.parent.glob("env.kept-*"))
    assert (kept / "results/loss.csv").read_text() == "years of work"


def test_what_a_killed_run_left_is_put_right(used: Prefix, place: Path) -> None:
    new = Prefix(place, place).successor()
    new.path.mkdir()
    write_mark(
        new.path, Mark(MadeBy.SETUP, State.MAKING, str(new.path), new.path.name, made=1)
    )
    link = place.with_name("env.d") / ".env.0123456789abcdef"
    link.symlink_to(f"env.d/{used.path.name}")
    place.unlink()
    said: list[str] = []
    recover(find_prefix(place), said.append)
    assert (
        place.resolve() == used.path and not new.path.exists() and not link.is_symlink()
    )
    assert said == [f"{place} leads to the environment {used.path} again"]


def made_by_version_2_0(place: Path) -> Prefix:
    """A folder at PREFIX, as version 2.0 made it: a mark without an id, and no inventory."""
    fill(place)
    mark = Mark(MadeBy.SETUP, State.INSTALLED, str(place), made=1, locks="a")
    write_mark(place, mark.with_verdict(Level.QUICK, Verdict(True)))
    return find_prefix(place)


def test_a_folder_of_version_2_0_is_exchanged_for_a_link_once_the_new_one_is_verified(
    place: Path,
) -> None:
    old = made_by_version_2_0(place)
    assert old == Prefix(place) and read_status(old, "a") is Status.VERIFIED
    (place / "mine.txt").write_text("mine")
    new = verified(install(old))
    assert place.is_dir() and not place.is_symlink()
    settle(new, True, True, print)
    assert place.resolve() == new.path
    assert [path.name for path in place.with_name("env.d").iterdir()] == [new.path.name]
    assert (next(place.parent.glob("env.kept-*")) / "mine.txt").read_text() == "mine"


def test_where_a_disk_cannot_exchange_names_the_old_folder_is_emptied_first(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a folder of an image's lower layer, which cannot be renamed."""
    old = made_by_version_2_0(place)
    (place / "mine.txt").write_text("mine")
    new = verified(install(old))
    monkeypatch.setattr("lockedenv.prefix.lifecycle._swap", lambda *_: False)
    settle(new, True, True, print)
    assert place.resolve() == new.path
    assert (next(place.parent.glob("env.kept-*")) / "mine.txt").read_text() == "mine"


def test_a_folder_that_appeared_meanwhile_is_not_touched(place: Path) -> None:
    with make_successor(find_prefix(place), "pip", "default", print) as new:
        fill(new.path)
        place.mkdir()
        (place / "results.csv").write_text("years of work")
        finish_installation(new, "default", "a")
        with pytest.raises(Stop, match="appeared while the environment was made"):
            point(new, new.path)
    assert (place / "results.csv").read_text() == "years of work"
    (place / "results.csv").unlink()
    recover(find_prefix(place), print)
    assert place.resolve() == new.path


def test_a_backup_is_somebodys(used: Prefix, place: Path) -> None:
    """The mark is copied along; `cp -a PREFIX PREFIX.old` was deleted with what was added to it."""
    backup = used.path.with_name("backup")
    shutil.copytree(used.path, backup, symlinks=True)
    (backup / "thesis.tex").write_text("years of work")
    beside = place.with_name("env.old")
    shutil.copytree(used.path, beside, symlinks=True)
    settle(verified(install(find_prefix(place))), True, True, print)
    assert (backup / "thesis.tex").exists() and (beside / MARK).exists()
    assert (
        not is_ours(find_prefix(beside))
        and read_status(find_prefix(beside)) is Status.MOVED
    )


def test_a_link_that_people_made_keeps_the_environment(
    used: Prefix, place: Path
) -> None:
    """`cp -a PREFIX PREFIX.old` copies the link alone."""
    backup = place.with_name("env.old")
    backup.symlink_to(os.readlink(place))
    said: list[str] = []
    settle(verified(install(find_prefix(place))), True, True, said.append)
    assert backup.resolve() == used.path and used.path.is_dir()
    assert (
        said[-1] == f"{used.path} is no longer used and stays: {backup} is a link to it"
    )


def test_through_a_link_of_peoples_own_and_by_the_folder_itself(
    used: Prefix, place: Path
) -> None:
    theirs = place.with_name("theirs")
    theirs.symlink_to("env")
    assert find_prefix(theirs) == used == find_prefix(used.path) == find_prefix(place)
    circle = place.with_name("circle")
    circle.symlink_to("circle")
    with pytest.raises(Stop, match="lead in a circle"):
        find_prefix(circle)


def test_a_moved_environment_names_where_it_was_made(used: Prefix, place: Path) -> None:
    elsewhere = place.parent / "elsewhere"
    elsewhere.mkdir()
    place.rename(elsewhere / "env")
    place.with_name("env.d").rename(elsewhere / "env.d")
    moved = find_prefix(elsewhere / "env")
    assert read_status(moved) is Status.MOVED and find_move(moved) == str(place)


def test_a_verdict_is_not_written_into_another_environments_mark(used: Prefix) -> None:
    before = (used.path / MARK).read_text()
    record_verdict(used.path, "full", True, made=1)
    assert (used.path / MARK).read_text() == before


def test_a_damaged_mark_keeps_an_environment_from_being_touched(
    used: Prefix, place: Path
) -> None:
    (used.path / MARK).write_text(json.dumps({"verdicts": []}))
    assert read_status(find_prefix(place)) is Status.FOREIGN
    install(find_prefix(place))
    assert (used.path / "bin/python").is_symlink()


@pytest.mark.parametrize("name", ["with:colon", "with'quote", "a\nb"])
def test_names_that_path_cannot_hold_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Stop, match="in its name"):
        refuse_place(Prefix(tmp_path / name), tmp_path / "cache")


def test_a_cache_in_the_environments_is_refused(used: Prefix, place: Path) -> None:
    for cache in (
        place / "cache",
        place.with_name("env.d") / "cache",
        used.path / "x/cache",
    ):
        with pytest.raises(Stop, match="lies in the prefix"):
            refuse_place(used, cache)


def test_an_exchange_of_a_folder_that_became_somebodys_is_refused(place: Path) -> None:
    new = install(made_by_version_2_0(place))
    (place / MARK).unlink()
    with pytest.raises(Stop, match="is not an environment of this set-up any more"):
        exchange(new, print)


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
    assert (container / "deadbeef").is_file() and (container / "link").is_symlink()
    assert (container / "cafebabe/mine.txt").is_file()


def test_what_is_mounted_in_the_folder_of_environments_does_not_end_the_run(
    tmp_path: Path,
) -> None:
    program = (
        "import subprocess, sys; from pathlib import Path; from lockedenv.prefix.place import find_prefix;"
        "from lockedenv.prefix.lifecycle import recover; place = Path(sys.argv[1]);"
        "mounted = place.with_name('env.d') / '12345678'; mounted.mkdir(parents=True);"
        "subprocess.run(['mount', '-t', 'tmpfs', 'none', mounted], check=True);"
        "recover(find_prefix(place), print); print(mounted.is_mount())"
    )
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts"}
    done = sh(
        *apart("--mount"), "python3", "-c", program, tmp_path / "env", env=environ
    )
    assert done.stdout == "True\n"


@pytest.mark.parametrize("kind", ["a link", "a file", "a mount"])
def test_a_folder_of_environments_that_is_none_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a link the environment was not known again; from a mount no link can be renamed."""
    container = tmp_path / "env.d"
    if kind == "a link":
        (tmp_path / "disk").mkdir()
        container.symlink_to("disk")
    elif kind == "a file":
        container.touch()
    else:
        container.mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == container)
    expected = "is a mount point" if kind == "a mount" else "is not a folder"
    with pytest.raises(Stop, match=expected):
        refuse_place(find_prefix(tmp_path / "env"), tmp_path / "cache")


def test_what_a_killed_run_unpacked_is_removed_by_the_next(used: Prefix) -> None:
    ours = [used.container / "0123abcd.maximalcai-uv", used.beside("maximalcai-pkgs")]
    theirs = [used.container / "mine.maximalcai-uv", used.container / "0123abcd.mine"]
    for folder in [*ours, *theirs]:
        folder.mkdir()
    recover(used, print)
    assert not any(folder.exists() for folder in ours)
    assert all(folder.exists() for folder in theirs) and used.path.is_dir()


def test_what_is_unpacked_goes_also_where_the_disk_is_full(used: Prefix) -> None:
    unpacked = Prefix(used.path).beside("maximalcai-uv")
    with pytest.raises(OSError, match="full"):
        with dropping_unpacked(used):
            unpacked.mkdir()
            raise OSError("full")
    assert not unpacked.exists()


@pytest.mark.parametrize("letter", ["x", "ö"])
def test_a_name_beside_which_there_is_no_room_for_others_is_refused(
    letter: str, tmp_path: Path
) -> None:
    """`File name too long` came from the lock, after a dry run that had promised that all was well."""
    longest = 217 // len(letter.encode())
    refuse_place(Prefix(tmp_path / (letter * longest)), tmp_path / "cache")
    too_long = tmp_path / (letter * (longest + 1))
    with pytest.raises(Stop) as refused:
        refuse_place(Prefix(too_long), tmp_path / "cache")
    said = str(refused.value)
    assert "at most 217" in said and "\n" not in said
    assert said.endswith(
        f"choose a shorter one, such as --prefix {tmp_path / 'maximalcai'}"
    )


@pytest.mark.parametrize("letter", ["x", "ö"])
def test_all_that_lies_beside_a_prefix_has_a_name_that_a_disk_can_have(
    letter: str, tmp_path: Path
) -> None:
    name = letter * (217 // len(letter.encode()))
    prefix = install(find_prefix(tmp_path / name))
    listed = prefix.beside("maximalcai-extras-20260101-000000.txt")
    write_atomically(listed, "six\n")
    with hold(prefix, print):
        exchange(install(prefix), print)
    assert listed.is_file() and prefix.name.is_symlink()


def test_a_name_that_no_disk_can_have_is_refused_by_name_too(tmp_path: Path) -> None:
    with pytest.raises(Stop, match="choose a shorter one, such as --prefix"):
        refuse_place(find_prefix(tmp_path / ("x" * 300)), tmp_path / "cache")


def test_a_lock_whose_name_would_be_too_long_is_refused_in_one_line(
    tmp_path: Path,
) -> None:
    """post_create.sh and --uninstall said `File name too long`."""
    with pytest.raises(Stop, match="choose a shorter one, such as --prefix"):
        with hold(Prefix(tmp_path / ("x" * 245)), print):
            pass
