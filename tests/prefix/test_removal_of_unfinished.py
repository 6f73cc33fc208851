"""An environment that a killed run has not finished gives back what people put in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lockedenv.prefix.inventory import write_inventory
from lockedenv.prefix.lifecycle import make_successor
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.spec.layers import BackendName
from small_environment import SITE, contents, fill, put_own_files


def read_kept(prefix: Prefix) -> dict[str, str]:
    """What was moved away from a prefix; nothing else was kept there."""
    [folder] = prefix.public_path.parent.glob(f"{prefix.public_path.name}.kept-*")
    return contents(folder)


def test_an_unfinished_environment_gives_back_what_people_put_in(
    tmp_path: Path,
) -> None:
    """kill -9 in step 4, a file put into results, run again: it was gone."""
    place = find_prefix(tmp_path / "env")
    with pytest.raises(KeyboardInterrupt):
        with make_successor(place, BackendName.PIP, "default", print) as new:
            fill(new.path)
            theirs = put_own_files(new.path)
            half = new.path / SITE / "torch"
            half.mkdir()
            (tmp_path / "cache.py").write_text("of a wheel that is half installed")
            os.link(tmp_path / "cache.py", half / "module.py")
            raise KeyboardInterrupt
    kept = read_kept(new)
    assert not new.path.exists()
    assert "torch" not in str(kept)
    for name, content in theirs.items():
        if name != "lib64":
            assert kept[name] == content, name


def test_two_links_in_an_unfinished_environment_are_not_links_into_the_cache(
    tmp_path: Path,
) -> None:
    """Both were taken for files of a half installed package, and no third was anywhere."""
    with pytest.raises(KeyboardInterrupt):
        with make_successor(
            find_prefix(tmp_path / "env"), BackendName.PIP, "default", print
        ) as new:
            fill(new.path)
            (new.path / "lib/loss.csv").write_text("years of work")
            os.link(new.path / "lib/loss.csv", new.path / "bin/loss.csv")
            raise KeyboardInterrupt
    kept = read_kept(new)
    assert kept["lib/loss.csv"] == "years of work"
    assert kept["bin/loss.csv"] == "years of work"


def test_a_file_of_the_installer_that_was_edited_in_an_unfinished_environment_is_kept(
    tmp_path: Path,
) -> None:
    """No package records it: the set-up notes what lies there after the first steps."""
    with pytest.raises(KeyboardInterrupt):
        with make_successor(
            find_prefix(tmp_path / "env"), BackendName.PIP, "default", print
        ) as new:
            fill(new.path)
            first = take_inventory(new.path, [], with_interpreter=False)
            write_inventory(new.path, first)
            (new.path / "pyvenv.cfg").write_text("home = /mine\n")
            (new.path / "bin/python").unlink()
            (new.path / "bin/python").write_text("#!/bin/sh\n")
            raise KeyboardInterrupt
    kept = read_kept(new)
    assert kept["pyvenv.cfg"] == "home = /mine\n"
    assert kept["bin/python"] == "#!/bin/sh\n"
    assert "idna" not in " ".join(kept)
