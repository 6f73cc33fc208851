"""What is installed again is right: the cache is believed only as far as its hashes go."""

from __future__ import annotations

import os
import shutil
from typing import Any, Callable, Dict

import pytest
from fixtures.machine import Machine
from one_command import SITE, edit


@pytest.mark.parametrize("name", ["tqdm/std.py", "idna/core.py"], ids=["conda", "pip"])
def test_an_edited_file_does_not_come_back_out_of_the_cache(
    name: str, machine: Machine, installed: None
) -> None:
    edited = machine.prefix / SITE / name
    assert edited.stat().st_nlink > 1, "a link into the cache"
    edit(edited)
    other = Machine(
        machine.channel,
        machine.folder / "second",
        machine.address,
        machine.micromamba,
        machine.uv,
    )
    other.cache = machine.cache
    for again, options in ((other, []), (machine, ["--force"])):
        machine.assert_verified(again.setup(*options), at=again)
        assert "PASS  files" in again.verify("--only", "files")


@pytest.mark.parametrize("name", ["tqdm/std.py", "idna/core.py"], ids=["conda", "pip"])
def test_damage_that_keeps_size_and_time_is_repaired_by_force(
    name: str, machine: Machine, installed: None
) -> None:
    """As bit rot does: the note of size and time does not see it."""
    path = machine.prefix / SITE / name
    stat = path.stat()
    edit(path)
    with path.open("r+b") as file:
        file.truncate(stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert f"{name}: changed since it was installed" in machine.verify(
        "--only", "files"
    )
    machine.assert_verified(machine.setup("--force"))
    assert "PASS  files" in machine.verify("--only", "files")


def test_a_damaged_unpacked_package_is_not_believed(
    machine: Machine, installed: None
) -> None:
    package = next((machine.cache / "pkgs").glob("libcublas-*-0"))
    faults: Dict[str, Callable[[], Any]] = {
        "a file emptied by a power cut": lambda: (
            package / "lib/libcublas.so.12.4.5.8"
        ).write_bytes(b""),
        "a shortened paths.json": lambda: (package / "info/paths.json").write_text(
            '{"paths": [], "paths_version": 1}'
        ),
        "a redirected link": lambda: (
            (package / "lib/libcublas.so.12").unlink(),
            (package / "lib/libcublas.so.12").symlink_to("x"),
        ),
        "a file too many": lambda: (package / "lib/libcublas.so.11").write_text("x"),
    }
    for name, fault in faults.items():
        shutil.rmtree(machine.prefix.resolve())
        fault()
        machine.assert_verified(machine.setup())
        assert (
            machine.prefix / "lib/libcublas.so.12"
        ).resolve().read_text() == "cublas", name
        assert not (machine.prefix / "lib/libcublas.so.11").exists()


def test_a_foreign_micromamba_is_never_run(machine: Machine, installed: None) -> None:
    """On PATH or under the pinned one's name in the cache: crashing, empty, or printing bytes."""
    foreign = machine.folder / "bin/micromamba"
    foreign.parent.mkdir()
    foreign.write_text("#!/bin/sh\ntouch $0.was-run\nkill -11 $$\n")
    foreign.chmod(0o755)
    binary = next((machine.cache / "bin").glob("micromamba-*"))
    for content in (foreign.read_text(), ""):
        binary.write_text(content)
        machine.assert_verified(
            machine.setup("--force", PATH=f"{foreign.parent}:{machine.environ['PATH']}")
        )
    assert not list(foreign.parent.glob("*.was-run"))


def test_the_users_settings_do_not_reach_the_tools(
    machine: Machine, empty_cache: None
) -> None:
    home = machine.folder / "home"
    (home / ".config/uv").mkdir(parents=True)
    (home / ".config/uv/uv.toml").write_text('[pip]\ntarget = "/elsewhere"\n')
    (home / ".condarc").write_text("pkgs_dirs: [/elsewhere]\n")
    (home / "pip.conf").write_text(
        "[install]\ntarget = /elsewhere\n[global]\nconstraint = /elsewhere\n"
    )
    theirs = {
        "CONDA_PKGS_DIRS": "/elsewhere",
        "MAMBA_ROOT_PREFIX": "/elsewhere",
        "UV_TARGET": "/elsewhere",
        "PIP_USER": "1",
        "UV_NO_BINARY": "1",
        "PIP_CONSTRAINT": "/elsewhere",
        "PIP_TARGET": "/elsewhere",
        "PIP_REQUIRE_VIRTUALENV": "1",
    }
    machine.assert_verified(machine.setup(HOME=str(home), **theirs))
