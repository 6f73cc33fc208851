"""The life of an environment: made beside the one that is used, exchanged by one rename, removed last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lockedenv.errors import Stop
from lockedenv.prefix.exchange import exchange, point
from lockedenv.prefix.lifecycle import (
    change_mark,
    finish_installation,
    make_successor,
    settle,
)
from lockedenv.prefix.mark import MadeBy, Mark, RecordedVerdict, State, write_mark
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.prefix.recovery import recover
from lockedenv.prefix.status import PrefixStatus, is_ours, read_status
from lockedenv.spec.environment import MARK
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level
from small_environment import fill, install, verified


def test_the_link_appears_once_the_environment_is_installed(place: Path) -> None:
    with make_successor(find_prefix(place), BackendName.PIP, "default", print) as new:
        fill(new.path)
        assert not os.path.lexists(place)
        assert read_status(find_prefix(place)) is PrefixStatus.MAKING
        finish_installation(new, "default", "a")
        assert place.is_symlink()
        assert place.resolve() == new.path
        target = os.readlink(place)
        assert target == f"env.d/{new.path.name}", "it can be moved with its folder"
    assert find_prefix(place) == new
    assert is_ours(new)
    assert read_status(find_prefix(place), "a") is PrefixStatus.INSTALLED


def test_the_old_environment_is_used_until_the_new_one_is_verified(
    used: Prefix, place: Path
) -> None:
    new = install(find_prefix(place), locks="b")
    assert place.resolve() == used.path
    assert new.path.is_dir()
    assert find_prefix(place) == new, "the next run goes on with it"
    messages: list[str] = []
    assert settle(verified(new), True, True, messages.append) == new
    assert place.resolve() == new.path
    assert not used.path.exists()
    assert messages == [f"removing the old environment {used.path}"]


def test_a_new_environment_that_does_not_verify_is_removed(
    used: Prefix, place: Path
) -> None:
    new = verified(install(find_prefix(place)), passed=False)
    (new.path / "results.csv").write_text("years of work")
    messages: list[str] = []
    assert settle(new, False, True, messages.append) == used
    assert place.resolve() == used.path
    assert not new.path.exists()
    kept = next(place.parent.glob("env.kept-*"))
    assert (kept / "results.csv").read_text() == "years of work"
    assert messages[1:] == [
        f"1 file or folder of yours is now in {kept}:",
        "  results.csv",
    ]


def test_the_old_one_stays_until_all_that_was_asked_for_is_there(
    used: Prefix, place: Path
) -> None:
    new = verified(install(find_prefix(place)))
    settle(new, True, False, print)
    assert place.resolve() == new.path
    assert used.path.is_dir()
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
    assert settle(new, False, True, print) == used
    assert not new.path.exists()


def test_of_two_that_do_not_verify_both_stay_and_the_new_one_is_used(
    used: Prefix, place: Path
) -> None:
    verified(used, passed=False)
    new = verified(install(find_prefix(place)), passed=False)
    messages: list[str] = []
    settle(new, False, True, messages.append)
    assert place.resolve() == new.path
    assert used.path.is_dir()
    assert "neither the new environment nor the old one is verified" in messages[0]


def test_an_unfinished_one_is_removed_and_the_old_one_never_left_its_place(
    used: Prefix, place: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        with make_successor(
            find_prefix(place), BackendName.PIP, "default", print
        ) as new:
            fill(new.path)
            (new.path / "results").mkdir()
            (new.path / "results/loss.csv").write_text("years of work")
            raise KeyboardInterrupt
    assert place.resolve() == used.path
    assert not new.path.exists()
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
    messages: list[str] = []
    recover(find_prefix(place), messages.append)
    assert place.resolve() == used.path
    assert not new.path.exists()
    assert not link.is_symlink()
    assert messages == [f"{place} leads to the environment {used.path} again"]


def made_by_version_2_0(place: Path) -> Prefix:
    """A folder at PREFIX, as version 2.0 made it: a mark without an id, and no inventory."""
    fill(place)
    mark = Mark(MadeBy.SETUP, State.INSTALLED, str(place), made=1, locks="a")
    write_mark(place, mark.with_verdict(Level.QUICK, RecordedVerdict(True)))
    return find_prefix(place)


def test_a_folder_of_version_2_0_is_exchanged_for_a_link_once_the_new_one_is_verified(
    place: Path,
) -> None:
    old = made_by_version_2_0(place)
    assert old == Prefix(place)
    assert read_status(old, "a") is PrefixStatus.VERIFIED
    (place / "mine.txt").write_text("mine")
    new = verified(install(old))
    assert place.is_dir()
    assert not place.is_symlink()
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
    monkeypatch.setattr("lockedenv.prefix.exchange._swap", lambda *_: False)
    settle(new, True, True, print)
    assert place.resolve() == new.path
    assert (next(place.parent.glob("env.kept-*")) / "mine.txt").read_text() == "mine"


def test_a_folder_that_appeared_meanwhile_is_not_touched(place: Path) -> None:
    with make_successor(find_prefix(place), BackendName.PIP, "default", print) as new:
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


def test_an_exchange_of_a_folder_that_became_somebodys_is_refused(place: Path) -> None:
    new = install(made_by_version_2_0(place))
    (place / MARK).unlink()
    with pytest.raises(Stop, match="is not an environment of this set-up any more"):
        exchange(new, print)
