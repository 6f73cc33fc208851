"""Edited files of a package are moved before the package is installed again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lockedenv.errors import Stop
from lockedenv.prefix.inventory import write_inventory
from lockedenv.prefix.kept_files import keep_edited, kept_folder
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.place import Prefix
from small_environment import IDNA, SITE, contents, put_own_files, record_without_hash


def test_edited_files_of_a_package_that_is_installed_again_are_kept(
    prefix: Prefix,
) -> None:
    """post_create.sh wrote over them without naming them."""
    (prefix.path / SITE / "idna/core.py").write_text("two, edited\n")
    assert keep_edited(prefix, ["certifi"]) is None
    kept = keep_edited(prefix, ["idna"])
    assert kept is not None
    assert kept.names == (f"{SITE}/idna/core.py",)
    assert (kept.folder / SITE / "idna/core.py").read_text() == "two, edited\n"
    assert keep_edited(prefix, ["idna"]) is None


def test_no_list_of_kept_files_is_written_over(prefix: Prefix) -> None:
    put_own_files(prefix.path)
    first = kept_folder(prefix)
    first.mkdir()
    second = kept_folder(prefix)
    assert second != first


def test_a_link_in_the_place_of_a_packages_folder_is_moved_and_not_followed(
    prefix: Prefix, tmp_path: Path
) -> None:
    """An installer deletes what RECORD lists through it, and the edited files were moved out of people's folder."""
    theirs = tmp_path / "theirs"
    (prefix.path / SITE / "idna").rename(theirs)
    (theirs / "core.py").write_text("two, edited\n")
    (prefix.path / SITE / "idna").symlink_to(theirs)
    before = contents(theirs)
    kept = keep_edited(prefix, ["idna"])
    assert kept is not None
    assert kept.names == (f"{SITE}/idna",)
    assert contents(theirs) == before
    assert not os.path.lexists(prefix.path / SITE / "idna")


def test_a_link_in_the_place_of_all_packages_is_refused(
    prefix: Prefix, tmp_path: Path
) -> None:
    (prefix.path / "lib").rename(tmp_path / "theirs")
    (prefix.path / "lib").symlink_to(tmp_path / "theirs")
    before = contents(tmp_path / "theirs")
    with pytest.raises(Stop, match="lib is a link, and the packages"):
        keep_edited(prefix, ["idna"])
    assert contents(tmp_path / "theirs") == before


def test_a_file_without_a_hash_is_kept_before_its_package_is_installed_again(
    prefix: Prefix,
) -> None:
    path = f"{SITE}/idna/data.txt"
    (prefix.path / path).write_text("as it came")
    record_without_hash(prefix.path, "idna-3.10.dist-info", "idna/data.txt")
    taken = take_inventory(prefix.path, [IDNA], with_interpreter=False)
    write_inventory(prefix.path, taken)
    assert keep_edited(prefix, ["idna"]) is None, "the inventory has its hash"
    (prefix.path / path).write_text("years of work")
    kept = keep_edited(prefix, ["idna"])
    assert kept is not None
    assert kept.names == (path,)
