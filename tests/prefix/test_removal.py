"""The one way to remove an environment: nothing of people's is lost, and nothing of others' is touched."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.commands import ROOT, apart, sh
from lockedenv.errors import Stop
from lockedenv.prefix import removal
from lockedenv.prefix.inventory import INVENTORY, take_inventory, write_inventory
from lockedenv.prefix.lifecycle import change_mark, give_up, make_successor
from lockedenv.prefix.mark import MadeBy, Mark, State, read_mark, write_mark
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.prefix.removal import (
    RemovalRefused,
    keep_edited,
    own_paths,
    remove_environment,
)
from lockedenv.spec.environment import MARK
from small_environment import IDNA, SITE, add_wheel, contents, fill, install


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
    assert names == sorted(
        ["results", *(name for name in theirs if "results" not in name)]
    )
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
    assert (
        lines[1] == "  run-00.log" and lines[-1] == "  and 5 more" and len(lines) == 22
    )


def test_an_added_package_goes_and_what_was_edited_in_it_stays(prefix: Prefix) -> None:
    """It is in the list of extras, which brings it back; an edit of it is nowhere else."""
    add_wheel(
        prefix.path, "six", "1.16.0", {"six.py": b"six\n", "moves.py": b"moves\n"}
    )
    (prefix.path / SITE / "moves.py").write_text("edited\n")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None and kept.names == (f"{SITE}/moves.py",)


def test_an_unfinished_environment_gives_back_what_people_put_in(
    tmp_path: Path,
) -> None:
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
    assert (
        mark is not None
        and mark.state is State.REMOVING
        and (prefix.path / INVENTORY).exists()
    )
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
    assert (
        "was not made by this set-up" in done.stdout
        and (tmp_path / "thesis.tex").exists()
    )


def test_edited_files_of_a_package_that_is_installed_again_are_kept(
    prefix: Prefix,
) -> None:
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
    assert sorted(kept.names) == [
        "activate",
        f"{SITE}/idna/core.py",
        "pip.conf",
        "pyvenv.cfg",
    ]


def test_a_removal_that_is_refused_says_why_the_environment_stays(
    prefix: Prefix,
) -> None:
    change_mark(prefix, made_by=MadeBy.PEOPLE)
    said: list[str] = []
    give_up(prefix, prefix.path, said.append)
    assert "is no longer used and stays: " in said[0] and prefix.path.is_dir()


def test_two_links_in_an_unfinished_environment_are_not_links_into_the_cache(
    tmp_path: Path,
) -> None:
    """Both were taken for files of a half installed package, and no third was anywhere."""
    with pytest.raises(KeyboardInterrupt):
        with make_successor(
            find_prefix(tmp_path / "env"), "pip", "default", print
        ) as new:
            fill(new.path)
            (new.path / "lib/loss.csv").write_text("years of work")
            os.link(new.path / "lib/loss.csv", new.path / "bin/loss.csv")
            raise KeyboardInterrupt
    kept = kept_of(new)
    assert kept["lib/loss.csv"] == kept["bin/loss.csv"] == "years of work"


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
    assert kept is not None and kept.names == (f"{SITE}/idna",)
    assert contents(theirs) == before and not os.path.lexists(
        prefix.path / SITE / "idna"
    )


def test_a_link_in_the_place_of_all_packages_is_refused(
    prefix: Prefix, tmp_path: Path
) -> None:
    (prefix.path / "lib").rename(tmp_path / "theirs")
    (prefix.path / "lib").symlink_to(tmp_path / "theirs")
    before = contents(tmp_path / "theirs")
    with pytest.raises(Stop, match="lib is a link, and the packages"):
        keep_edited(prefix, ["idna"])
    assert contents(tmp_path / "theirs") == before


def test_folders_deeper_than_python_recurses_are_kept(
    prefix: Prefix, tmp_path: Path
) -> None:
    """It ended in a RecursionError, when the environment was already marked as one that is removed."""
    deep = prefix.path / "results" / "/".join("a" * 1200)
    sh("mkdir", "-p", deep)
    (deep / "loss.csv").write_text("years of work")
    try:
        kept = remove_environment(prefix, prefix.path)
        assert kept is not None and kept.names == ("results",)
    finally:
        sh("rm", "-rf", *tmp_path.glob("env.*"))  # neither can pytest


def test_what_is_protected_from_writing_is_moved_as_it_is(tmp_path: Path) -> None:
    """Its owner may rename neither a protected folder nor what is in one; root may."""
    program = Path(__file__).with_name("programs") / "remove_protected.py"
    done = sh(*as_somebody(tmp_path), program, tmp_path / "env", check=False, cwd="/")
    if "Permission denied" in done.stdout and "python3" in done.stdout:
        pytest.skip("another user cannot start this python3")
    assert done.stdout == "lib/mine 0o0\nresults 0o555\n", done.stdout


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


def test_names_of_any_bytes_are_moved_and_shown_in_one_line(prefix: Prefix) -> None:
    names = [b"a\xffb", b"two\nlines", b"\x1b[31mred", "größe".encode()]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(prefix.path), name))).write_text(
            "years of work"
        )
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None and len(contents(kept.folder)) == 4
    assert kept.lines()[1:] == [
        r"  \x1b[31mred",
        r"  a\udcffb",
        "  größe",
        r"  two\nlines",
    ]


def test_files_of_peoples_that_are_named_as_those_of_tools_are_kept(
    prefix: Prefix,
) -> None:
    (prefix.path / ".lock").write_text("combination: 1234")
    (prefix.path / "CACHEDIR.TAG").write_text("notes on tags")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None and kept.names == (".lock", "CACHEDIR.TAG")


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
    assert kept is not None and kept.names == ("results",)
    assert contents(kept.folder) == {
        "results/last": "-> loss.csv",
        "results/loss.csv": "years of work",
    }
    status = (kept.folder / "results").stat()
    assert (kept.folder / "results/pipe").is_fifo()
    assert status.st_mode & 0o777 == 0o750 and status.st_mtime_ns == 1


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


def test_a_file_of_the_installer_that_was_edited_in_an_unfinished_environment_is_kept(
    tmp_path: Path,
) -> None:
    """No package records it: the set-up notes what lies there after the first steps."""
    with pytest.raises(KeyboardInterrupt):
        with make_successor(
            find_prefix(tmp_path / "env"), "pip", "default", print
        ) as new:
            fill(new.path)
            first = take_inventory(new.path, [], with_interpreter=False)
            write_inventory(new.path, first)
            (new.path / "pyvenv.cfg").write_text("home = /mine\n")
            (new.path / "bin/python").unlink()
            (new.path / "bin/python").write_text("#!/bin/sh\n")
            raise KeyboardInterrupt
    kept = kept_of(new)
    assert (
        kept["pyvenv.cfg"] == "home = /mine\n" and kept["bin/python"] == "#!/bin/sh\n"
    )
    assert not [name for name in kept if "idna" in name]


def record_without_hash(folder: Path, info: str, *paths: str) -> None:
    with (folder / SITE / info / "RECORD").open("a") as record:
        record.write("".join(f"\n{path},," for path in paths))


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
    assert kept is not None and contents(kept.folder) == theirs
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
    assert kept is not None and kept.names == (f"{SITE}/six.py",)
    assert (tmp_path / "six.py").read_text() == "edited\n"


def test_without_an_inventory_what_has_no_hash_is_kept_too(prefix: Prefix) -> None:
    (prefix.path / SITE / "idna/data.txt").write_text("years of work")
    record_without_hash(prefix.path, "idna-3.10.dist-info", "idna/data.txt")
    (prefix.path / INVENTORY).unlink()
    (prefix.path / "activate").unlink()
    (prefix.path / "pip.conf").unlink()
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None and kept.names == (f"{SITE}/idna/data.txt",)


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
    assert kept is not None and kept.names == (path,)


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
        find_prefix(tmp_path / "env"), "conda", "default", print
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
    assert kept is not None and kept.names == ("bin/edited", "lib/theirs")


HISTORY = (
    "==> 2026-01-01 00:00:00 <==\n# cmd: conda install six\n+conda-forge::six-1-0\n"
)
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This file is a cache directory tag.\n"
WROTE = '{"schema_version": 2, "fingerprint": "a", "results": []}\n'


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("maximalcai-manifest.json", WROTE, WROTE.replace("[]", '["of mine"]')),
        ("maximalcai-installed.json", '{"files": {}, "links": {}}', "my packages"),
        ("maximalcai-inventory.json", None, "my things"),
        (".lock", "", "combination: 1234"),
        ("CACHEDIR.TAG", TAG, f"{TAG}my notes"),
    ],
)
def test_a_note_goes_only_with_the_content_that_was_written(
    name: str, ours: str | None, theirs: str, tmp_path: Path
) -> None:
    """Every file with such a name was deleted, whatever people had written into it."""
    for number, text in enumerate((ours, theirs)):
        prefix = install(find_prefix(tmp_path / f"env{number}"))
        noted = hashlib.sha256(WROTE.encode()).hexdigest()
        change_mark(prefix, manifest=noted)
        for text_of_ours in ("activate", "pip.conf"):
            (
                prefix.path / text_of_ours
            ).unlink()  # the tests', which only an inventory knows
        if text is not None:
            (prefix.path / name).write_text(text)
        expected = [name] if text == theirs else []
        assert own_paths(prefix.path) == expected
        kept = remove_environment(prefix, prefix.path)
        assert (list(kept.names) if kept else []) == expected
        assert kept is None or contents(kept.folder) == {name: theirs}


def test_a_link_with_the_name_of_a_note_is_kept(prefix: Prefix) -> None:
    (prefix.path / "maximalcai-manifest.json").symlink_to("/nowhere")
    kept = remove_environment(prefix, prefix.path)
    assert kept is not None and kept.names == ("maximalcai-manifest.json",)


def test_a_manifest_of_which_no_hash_was_noted_goes_if_it_is_one(
    tmp_path: Path,
) -> None:
    """As in an environment that an earlier version made."""
    for number, (text, moved) in enumerate(((WROTE, False), ("my notes", True))):
        prefix = install(find_prefix(tmp_path / f"env{number}"))
        (prefix.path / "maximalcai-manifest.json").write_text(text)
        assert (remove_environment(prefix, prefix.path) is not None) == moved


def test_condas_history_is_a_note_of_condas_environments_alone(tmp_path: Path) -> None:
    cases = [
        ("pip", HISTORY, True),
        ("conda", HISTORY, False),
        ("conda", "my history", True),
    ]
    for number, (backend, text, moved) in enumerate(cases):
        prefix = install(find_prefix(tmp_path / f"env{number}"))
        change_mark(prefix, backend=backend)
        (prefix.path / "conda-meta").mkdir()
        (prefix.path / "conda-meta/history").write_text(text)
        kept = remove_environment(prefix, prefix.path)
        assert (kept is not None) == moved
        assert kept is None or contents(kept.folder) == {"conda-meta/history": text}
