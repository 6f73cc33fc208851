"""What the records of packages say, and what they say without a hash: an edited file is moved, never deleted."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from lockedenv.prefix.inventory import INVENTORY, write_inventory
from lockedenv.prefix.lifecycle import change_mark, make_successor
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.mark import MadeBy, Mark, State, write_mark
from lockedenv.prefix.ownership import own_paths
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.prefix.removal import remove_environment
from lockedenv.spec.layers import BackendName
from small_environment import SITE, add_wheel, contents, fill, record_without_hash


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
    assert sorted(kept.names) == [
        "activate",
        f"{SITE}/idna/core.py",
        "pip.conf",
        "pyvenv.cfg",
    ]


def test_what_an_added_package_lists_without_a_hash_is_kept(prefix: Prefix) -> None:
    """An edit of it was never seen: it was compared with itself."""
    add_wheel(prefix.path, "myadd", "1.0", {"hashed.py": b"one\n"})
    theirs = {
        f"{SITE}/myadd.py": "years of work",
        "results/out.txt": "years of work",
        f"{SITE}/idna-3.10.dist-info/direct_url.json": "{}",
        f"{SITE}/link.py": "-> hashed.py",
    }
    (prefix.path / "results").mkdir()
    for path, content in theirs.items():
        if content.startswith("->"):
            (prefix.path / path).symlink_to("hashed.py")
        else:
            (prefix.path / path).write_text(content)
    generated = [f"myadd-1.0.dist-info/{name}" for name in ("INSTALLER", "REQUESTED")]
    generated.append("myadd-1.0.dist-info/direct_url.json")
    for path in generated:
        (prefix.path / SITE / path).touch()
    listed = [os.path.relpath(path, SITE) for path in theirs]
    record_without_hash(prefix.path, "myadd-1.0.dist-info", *listed, *generated)
    names = own_paths(prefix.path)
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert contents(kept.folder) == theirs
    assert names == sorted(kept.names)


def test_a_link_in_the_place_of_an_added_file_is_kept(
    prefix: Prefix, tmp_path: Path
) -> None:
    """It is no file with the recorded content, unless an installer linked it into its cache."""
    add_wheel(prefix.path, "six", "1.0", {"six.py": b"one\n", "linked.py": b"two\n"})
    for name, content in (("six.py", "edited\n"), ("linked.py", "two\n")):
        (tmp_path / name).write_text(content)
        (prefix.path / SITE / name).unlink()
        (prefix.path / SITE / name).symlink_to(tmp_path / name)
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert kept.names == (f"{SITE}/six.py",)
    assert (tmp_path / "six.py").read_text() == "edited\n"


def test_without_an_inventory_what_has_no_hash_is_kept_too(prefix: Prefix) -> None:
    (prefix.path / SITE / "idna/data.txt").write_text("years of work")
    record_without_hash(prefix.path, "idna-3.10.dist-info", "idna/data.txt")
    (prefix.path / INVENTORY).unlink()
    (prefix.path / "activate").unlink()
    (prefix.path / "pip.conf").unlink()
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None
    assert kept.names == (f"{SITE}/idna/data.txt",)


ENTRY_POINT = """#!{0}/bin/python
# -*- coding: utf-8 -*-
import re
import sys

from tool.cli import main

if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""


def test_of_what_conda_lists_without_a_hash_links_and_generated_programs_go(
    tmp_path: Path,
) -> None:
    with make_successor(
        find_prefix(tmp_path / "env"), BackendName.CONDA, "default", print
    ) as new:
        write_inventory(new.path, take_inventory(new.path, [], with_interpreter=False))
        change_mark(new, state=State.INSTALLED)
    rows = []
    for folder in ("bin", "lib", "conda-meta"):
        (new.path / folder).mkdir()
    (new.path / "lib/libx.so.1").write_text("lib")
    sha256 = hashlib.sha256(b"lib").hexdigest()
    rows.append({"_path": "lib/libx.so.1", "path_type": "hardlink", "sha256": sha256})
    for name, target in (("ours", "libx.so.1"), ("theirs", "/nowhere")):
        (new.path / "lib" / name).symlink_to(target)
        rows.append({"_path": f"lib/{name}", "path_type": "softlink"})
    for name, text in (
        ("tool", ENTRY_POINT.format(new.path)),
        ("edited", "#!/bin/sh\n"),
    ):
        (new.path / "bin" / name).write_text(text)
        rows.append({"_path": f"bin/{name}", "path_type": "unix_python_entry_point"})
    record = {
        "name": "tool",
        "version": "1",
        "build": "0",
        "paths_data": {"paths": rows},
    }
    (new.path / "conda-meta/tool-1-0.json").write_text(json.dumps(record))
    kept = remove_environment(new, new.path)
    assert kept is not None
    assert kept.names == ("bin/edited", "lib/theirs")
