"""Where no environment can be made: the place is refused in one line, before anything is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lockedenv.errors import Stop
from lockedenv.host.files import write_atomically
from lockedenv.prefix.exchange import exchange
from lockedenv.prefix.lifecycle import hold
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.prefix.refused_places import refuse_place
from small_environment import install


@pytest.mark.parametrize("name", ["with:colon", "with'quote", "a\nb", "a b"])
def test_names_that_path_cannot_hold_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Stop, match="in its name"):
        refuse_place(Prefix(tmp_path / name), tmp_path / "cache")


def test_a_cache_in_the_environments_is_refused(used: Prefix, place: Path) -> None:
    beside = place.with_name("env.d")
    for cache in (place / "cache", beside / "cache", used.path / "x/cache"):
        with pytest.raises(Stop, match="lies in the prefix"):
            refuse_place(used, cache)


@pytest.mark.parametrize("kind", ["a link", "a file", "a mount"])
def test_a_folder_of_environments_that_is_none_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a link the environment was not known again; from a mount no link can be renamed."""
    container = tmp_path / "env.d"
    expected = "is not a folder"
    if kind == "a link":
        (tmp_path / "disk").mkdir()
        container.symlink_to("disk")
    elif kind == "a file":
        container.touch()
    else:
        container.mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == container)
        expected = "is a mount point"
    with pytest.raises(Stop, match=expected):
        refuse_place(find_prefix(tmp_path / "env"), tmp_path / "cache")


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
    message = str(refused.value)
    remedy = f"choose a shorter one, such as --prefix {tmp_path / 'maximalcai'}"
    assert "at most 217" in message
    assert "\n" not in message
    assert message.endswith(remedy)


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
    assert listed.is_file()
    assert prefix.public_path.is_symlink()


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
