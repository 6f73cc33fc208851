"""What is at PREFIX, as its mark says: absent, foreign, being made, installed, verified, changed or moved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lockedenv.errors import Stop
from lockedenv.prefix.lifecycle import record_verdict
from lockedenv.prefix.mark import MadeBy, Mark, State, write_mark
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.prefix.status import PrefixStatus, find_move, read_status
from lockedenv.spec.environment import MARK
from lockedenv.spec.level import Level
from small_environment import install


def test_the_statuses_of_a_place(place: Path) -> None:
    assert read_status(find_prefix(place)) is PrefixStatus.ABSENT
    place.mkdir()
    status = read_status(find_prefix(place))
    assert status is PrefixStatus.ABSENT, "an empty folder holds nothing to lose"
    (place / "thesis.tex").touch()
    assert read_status(find_prefix(place)) is PrefixStatus.FOREIGN
    (place / MARK).touch()
    status = read_status(find_prefix(place))
    assert status is PrefixStatus.FOREIGN, "an empty mark says nothing"
    mark = Mark(MadeBy.SETUP, State.MAKING, str(place))
    write_mark(place, mark)
    assert read_status(find_prefix(place)) is PrefixStatus.MAKING
    write_mark(place, replace(mark, made_by=MadeBy.PEOPLE, state=State.INSTALLED))
    status = read_status(find_prefix(place))
    assert status is PrefixStatus.FOREIGN, "post_create.sh was pointed at it"
    write_mark(place, replace(mark, state=State.INSTALLED, locks="a"))
    assert read_status(find_prefix(place), "b") is PrefixStatus.CHANGED
    assert read_status(find_prefix(place), "a") is PrefixStatus.INSTALLED
    record_verdict(place, Level.QUICK, True, 0)
    assert read_status(find_prefix(place), "a") is PrefixStatus.VERIFIED
    record_verdict(place, Level.FULL, False, 0)
    assert read_status(find_prefix(place), "a") is PrefixStatus.INSTALLED
    place.rename(place.with_name("other"))
    assert read_status(find_prefix(place.with_name("other")), "a") is PrefixStatus.MOVED


def test_through_a_link_of_peoples_own_and_by_the_folder_itself(
    used: Prefix, place: Path
) -> None:
    theirs = place.with_name("theirs")
    theirs.symlink_to("env")
    assert find_prefix(theirs) == used
    assert find_prefix(used.path) == used
    assert find_prefix(place) == used
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
    assert read_status(moved) is PrefixStatus.MOVED
    assert find_move(moved) == str(place)


def test_a_verdict_is_not_written_into_another_environments_mark(used: Prefix) -> None:
    before = (used.path / MARK).read_text()
    record_verdict(used.path, Level.FULL, True, made=1)
    assert (used.path / MARK).read_text() == before


def test_a_damaged_mark_keeps_an_environment_from_being_touched(
    used: Prefix, place: Path
) -> None:
    (used.path / MARK).write_text(json.dumps({"verdicts": []}))
    assert read_status(find_prefix(place)) is PrefixStatus.FOREIGN
    install(find_prefix(place))
    assert (used.path / "bin/python").is_symlink()
