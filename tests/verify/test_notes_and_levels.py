"""What each level sees, and that a note of ours which is deleted or forged hides nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import struct
import subprocess
from pathlib import Path

import pytest
from lockedenv.prefix.interpreter import Interpreter
from lockedenv.prefix.inventory import INVENTORY
from lockedenv.verify.checks import files, interpreter, layers
from small_prefix import SITE, SmallPrefix, add_package, hashed

CORE = f"{SITE}/demo/core.py"


@pytest.fixture
def small(tmp_path: Path) -> SmallPrefix:
    return SmallPrefix(tmp_path, {})


def test_a_whole_prefix_passes_at_both_levels(small: SmallPrefix) -> None:
    context = small.context()
    for check in (
        layers.pip_layer,
        files.present,
        files.files,
        files.startup,
        files.strays,
    ):
        assert check(context).verdict == "pass", check(context)
    assert "type, size and modification time" in files.present(context).summary


@pytest.mark.parametrize("content", [b"TWO\n", b"", b"two\nmore\n"])
def test_an_edited_emptied_or_truncated_file_fails_both_levels(
    content: bytes, small: SmallPrefix
) -> None:
    small.write(CORE, content)
    context = small.context()
    for check in (files.present, files.files):
        assert check(context).verdict == "fail"
        assert check(context).summary.startswith(f"{CORE}: ")
        assert "post_create.sh --prefix" in check(context).remedy


def test_a_file_of_the_same_size_and_time_is_seen_by_the_full_level(
    small: SmallPrefix,
) -> None:
    small.edit_in_place(CORE, b"TWO\n")
    assert files.present(small.context()).verdict == "pass"
    assert files.files(small.context()).verdict == "fail"


def test_a_file_that_was_touched_and_not_changed_passes(small: SmallPrefix) -> None:
    os.utime(small.path / CORE)
    assert files.present(small.context()).verdict == "pass"


def test_times_that_were_changed_wholesale_leave_the_hashes(small: SmallPrefix) -> None:
    for path in small.path.rglob("*"):
        os.utime(path, ns=(1, 1), follow_symlinks=False)
    result = files.present(small.context())
    assert result.verdict == "pass"
    assert "the modification times were changed wholesale" in result.summary
    times = (1, 1)
    (small.path / CORE).write_bytes(b"TWO\n")
    os.utime(small.path / CORE, ns=times)
    assert files.present(small.context()).verdict == "fail"


def test_without_an_inventory_the_hashes_are_compared(small: SmallPrefix) -> None:
    (small.path / INVENTORY).unlink()
    result = files.present(small.context())
    assert result.verdict == "pass"
    assert "compared by the hashes" in result.summary
    small.edit_in_place(CORE, b"TWO\n")
    assert files.present(small.context()).verdict == "fail"


def test_an_inventory_that_is_damaged_is_named_with_its_remedy(
    small: SmallPrefix,
) -> None:
    for text in ("", "{}", '{"schema_version": 1, "entries": 3}', "1" + "0" * 400):
        (small.path / INVENTORY).write_text(text)
        result = files.present(small.context())
        assert result.verdict == "fail"
        assert f"{INVENTORY} is damaged" in result.summary
        assert "post_create.sh" in result.remedy


def test_a_forged_entry_of_an_edited_file_hides_nothing(small: SmallPrefix) -> None:
    small.write(CORE, b"evil\n")
    small.forge_inventory(CORE)
    result = files.present(small.context())
    assert result.verdict == "fail"
    assert CORE in "\n".join([result.summary, *result.details])
    assert files.files(small.context()).verdict == "fail"


def test_a_forged_entry_makes_no_stray_a_locked_file(small: SmallPrefix) -> None:
    small.write(f"{SITE}/sitecustomize.py", b"pass\n")
    small.forge_inventory(f"{SITE}/sitecustomize.py")
    assert files.startup(small.context()).verdict == "fail"
    result = files.present(small.context())
    assert "is in the inventory, and no package has it" in result.summary


def test_a_record_that_was_changed_with_its_file_is_not_the_locked_wheels(
    small: SmallPrefix,
) -> None:
    """So it is in a plain venv, without any note of ours."""
    (small.path / INVENTORY).unlink()
    text = small.record.read_text()
    small.write(CORE, b"TWO\n")
    small.record.write_text(text.replace(hashed(b"two\n"), hashed(b"TWO\n")))
    result = layers.pip_layer(small.context())
    assert result.verdict == "fail"
    assert "demo: its RECORD is not the locked wheel's" in result.summary


def test_a_record_that_is_a_pipe_is_not_waited_for(small: SmallPrefix) -> None:
    small.record.unlink()
    os.mkfifo(small.record)
    context = small.context()
    assert "RECORD lists no files" in layers.pip_layer(context).summary
    assert files.present(context).verdict == "fail"


def test_a_record_that_cannot_be_parsed_is_named_with_its_repair(
    small: SmallPrefix,
) -> None:
    """A quote that is not closed is longer than a field may be: the check itself failed."""
    small.record.write_text('"' + "x" * 200_000 + "sha256=\n")
    result = layers.pip_layer(small.context())
    assert result.verdict == "fail"
    assert "demo: its RECORD is not the locked wheel's" in result.summary, result
    assert result.action


def test_a_conda_record_that_is_a_pipe_is_not_waited_for(small: SmallPrefix) -> None:
    small.become_condas()
    pipe = small.path / "conda-meta/x.json"
    os.mkfifo(pipe)
    result = layers.conda_layer(small.context())
    assert result.verdict == "fail", result
    assert result.remedy, result
    assert f"{pipe}: is not a conda record (it is not a regular file)" in result.summary


def test_a_conda_record_that_is_nested_too_deep_is_named(small: SmallPrefix) -> None:
    small.become_condas()
    (small.path / "conda-meta/x.json").write_text("[" * 100_000)
    result = layers.conda_layer(small.context())
    assert "x.json: is not a conda record (RecursionError" in result.summary


@pytest.mark.parametrize("path", [f"{SITE}/demo/lib/libdemo.so.1", CORE, "bytecode"])
def test_a_file_that_became_a_pipe_is_not_waited_for(
    path: str, small: SmallPrefix
) -> None:
    place = small.path / path
    if path == "bytecode":
        place = compile_core(small, py_compile.PycInvalidationMode.TIMESTAMP)
    place.unlink()
    os.mkfifo(place)
    small.write(f"{SITE}/demo/lib/libz.txt")  # so that there is a stray to judge
    context = small.context()
    assert files.strays(context).verdict == "warn"
    expected = "pass" if path == "bytecode" else "fail"
    for check in (files.present, files.files):
        assert check(context).verdict == expected, check(context)


def test_what_follows_from_a_layers_failure_says_so(small: SmallPrefix) -> None:
    for path in (small.site / "demo").iterdir():
        if path.is_file():
            path.unlink()
    small.record.write_text("")
    context = small.context()
    assert layers.pip_layer(context).verdict == "fail"
    assert files.present(context).follows_from == "pip-layer"


@pytest.mark.parametrize(
    "name", ["foo-1.0.dist-info", "foo-1.0.egg-info", "demo-9.0.dist-info"]
)
def test_the_remedy_of_a_record_that_describes_nothing_is_its_removal(
    name: str, small: SmallPrefix
) -> None:
    """No installation puts it right: no lock names it, or the locked package is there beside it."""
    (small.site / name).mkdir()
    result = layers.pip_layer(small.context())
    assert result.verdict == "fail", result
    assert result.action == "remove", result
    assert f"{small.site / name}: has no readable METADATA" in result.summary
    assert result.remedy == f"rm -r {small.site / name}"
    assert not result.details
    subprocess.run(result.remedy, shell=True, check=True)
    assert layers.pip_layer(small.context()).verdict == "pass"


def test_a_locked_wheels_lost_description_is_repaired(small: SmallPrefix) -> None:
    (small.record.parent / "METADATA").unlink()
    result = layers.pip_layer(small.context())
    assert "has no readable METADATA; reinstall demo" in result.summary
    assert result.action == "repair"
    assert "post_create.sh" in result.remedy


def test_a_conda_packages_lost_description_needs_a_rebuild(small: SmallPrefix) -> None:
    small.become_condas()
    info = f"{SITE}/bar-1.0.dist-info"
    (small.path / info).mkdir()
    row = {"_path": f"{info}/METADATA", "sha256": "0" * 64}
    document = {"name": "bar", "version": "1.0", "paths_data": {"paths": [row]}}
    (small.path / "conda-meta/bar-1.0-0.json").write_text(json.dumps(document))
    result = layers.pip_layer(small.context())
    assert f"{small.path / info}: has no readable METADATA" in result.summary
    assert result.action == "rebuild"


# Bytecode


def compile_core(small: SmallPrefix, mode: py_compile.PycInvalidationMode) -> Path:
    source = small.path / CORE
    target = Path(importlib.util.cache_from_source(str(source)))
    py_compile.compile(str(source), str(target), invalidation_mode=mode)
    return target


def test_bytecode_of_its_source_passes(small: SmallPrefix) -> None:
    for mode in (
        py_compile.PycInvalidationMode.TIMESTAMP,
        py_compile.PycInvalidationMode.CHECKED_HASH,
    ):
        compile_core(small, mode)
        result = files.files(small.context())
        assert result.verdict == "pass", result
        assert "1 files of bytecode" in result.summary, result


def test_stale_bytecode_is_named_at_the_full_level(small: SmallPrefix) -> None:
    target = compile_core(small, py_compile.PycInvalidationMode.TIMESTAMP)
    content = target.read_bytes()
    target.write_bytes(content[:12] + struct.pack("<I", 999) + content[16:])
    result = files.files(small.context())
    assert result.verdict == "fail"
    assert "was compiled from another source" in result.summary
    assert result.remedy == f"rm -r {target}"


def test_bytecode_that_python_takes_unchecked_is_named(small: SmallPrefix) -> None:
    compile_core(small, py_compile.PycInvalidationMode.UNCHECKED_HASH)
    result = files.files(small.context())
    assert result.verdict == "fail"
    assert "whatever the source beside it says" in result.summary


# The machine's Python


def test_the_recorded_interpreter_passes(small: SmallPrefix) -> None:
    result = interpreter.interpreter(small.context())
    assert result.verdict in ("pass", "warn"), result
    assert "Python 3." in result.summary


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("version", "3.11.999", "Python is 3.11.999, made with it was"),
        ("build", "(another)", "Python's build is (another), recorded is"),
        ("sha256", "0" * 64, "was changed since the set-up"),
    ],
)
def test_another_interpreter_is_named(
    name: str,
    value: str,
    said: str,
    small: SmallPrefix,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = interpreter.read_interpreter(small.path / "bin/python")
    fields = {**found.document(), name: value}
    monkeypatch.setattr(
        interpreter, "read_interpreter", lambda python: Interpreter(**fields)
    )
    context = small.context()
    context.lock_error = "the version is not the point here"
    result = interpreter.interpreter(context)
    assert result.verdict == "fail"
    assert said in result.summary


def test_a_start_up_file_of_the_base_interpreter_fails_where_none_was_recorded(
    small: SmallPrefix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = interpreter.read_interpreter(small.path / "bin/python")
    fields = {**found.document(), "folder": str(tmp_path / "library")}
    monkeypatch.setattr(
        interpreter, "read_interpreter", lambda python: Interpreter(**fields)
    )
    (small.path / INVENTORY).unlink()
    (tmp_path / "library").mkdir()
    assert interpreter.interpreter(small.context()).verdict == "pass"
    start = tmp_path / "library/sitecustomize.py"
    start.write_text("print('hello')\n")
    result = interpreter.interpreter(small.context())
    assert result.verdict == "fail"
    assert f"{start} runs at every start of Python" in result.summary
    start.write_bytes(interpreter.UBUNTU)
    assert interpreter.interpreter(small.context()).verdict == "pass"


def test_a_row_of_an_added_package_that_is_no_hash_stops_no_check(
    small: SmallPrefix,
) -> None:
    record = add_package(small.path, "later", "1.0", {"later.py": b""})
    record.write_text("later.py,sha256=z,0\n" + record.read_text())
    for check in (files.present, files.files, files.strays):
        assert check(small.context()).verdict == "pass"


def test_a_damaged_hash_in_a_locked_record_is_named(small: SmallPrefix) -> None:
    text = small.record.read_text()
    small.record.write_text(text.replace(hashed(b"two\n"), "z"))
    result = layers.pip_layer(small.context())
    assert result.verdict == "fail"
    assert "demo: its RECORD is not the locked wheel's" in result.summary
    assert files.present(small.context()).verdict == "fail"
