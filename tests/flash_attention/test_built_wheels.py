"""The cache of built wheels: its keys, and who is believed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.listener import Listener
from flash_stand_ins import TORCH
from lockedenv.install.flash_attention.built_wheels import (
    find_built_wheel,
    find_state_file,
    keep_built_wheel,
    make_full_key,
    make_key,
    read_own_builds,
    runs_here,
)
from lockedenv.install.flash_attention.target import GLIBC
from lockedenv.install.flash_attention.toolchain import Toolchain
from lockedenv.prefix.records import file_sha256
from lockedenv.spec.locks import PipPackage

PIN = PipPackage("flash-attn", "2.8.3.post2", "d" * 64)
NAME = "flash_attn-1-cp311-cp311-linux_x86_64.whl"
FULL_KEY = f"key-nvcc12.4-gcc13.3-glibc{GLIBC}"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = find_state_file()
    assert file == tmp_path / "state/maximalcai/flash-attn-builds.json"
    return file


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def make_built(folder: Path, content: bytes = b"two hours of work") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / NAME
    wheel.write_bytes(content)
    return wheel


def test_the_key_changes_with_every_part() -> None:
    base = make_key(PIN, TORCH, ("90",))
    assert (
        base
        == "flash_attn-2.8.3.post2-dddddddddddd-torch2.5.1-cu12.4-abi0-cp311-sm90-linux_x86_64"
    )
    others = [
        make_key(replace(PIN, version="2.8.4"), TORCH, ("90",)),
        make_key(replace(PIN, sha256="e" * 64), TORCH, ("90",)),
        make_key(PIN, TORCH, ("80", "90")),
        make_key(PIN, TORCH, ("90",), shared=True),
        make_key(PIN, replace(TORCH, version="2.5.0"), ("90",)),
        make_key(PIN, replace(TORCH, cuda="12.1"), ("90",)),
        make_key(PIN, replace(TORCH, cxx11abi=True), ("90",)),
        make_key(PIN, replace(TORCH, python="cp312"), ("90",)),
        make_key(PIN, replace(TORCH, platform="linux_aarch64"), ("90",)),
    ]
    assert len({base, *others}) == 10


def test_a_built_wheel_is_kept_by_what_compiled_it_and_taken_where_its_glibc_is_no_newer() -> (
    None
):
    base = make_key(PIN, TORCH, ("90",))
    tools = Toolchain(Path(), "12.4", Path(), Path(), "13.3.0", Path())
    name = make_full_key(base, tools, "2.36")
    assert name == f"{base}-nvcc12.4-gcc13.3.0-glibc2.36"
    here = []
    for glibc in ("2.28", "2.35", "2.36", "2.40"):
        if runs_here(f"{name}-0123456789ab", base, glibc):
            here.append(glibc)
    assert here == ["2.36", "2.40"]
    assert not runs_here(name, make_key(PIN, TORCH, ("80",)), "2.36")


def test_a_damaged_wheel_is_set_aside(cache: Path, tmp_path: Path) -> None:
    listener = Listener()
    assert find_built_wheel(cache, "key", GLIBC, listener) is None
    kept = keep_built_wheel(
        make_built(tmp_path / "built"), cache, FULL_KEY, {"nvcc": "12.4"}
    )
    assert find_built_wheel(cache, "key", GLIBC, listener) == kept
    folder = kept.path.parent
    description = json.loads((folder / "wheel.json").read_text())
    assert description["nvcc"] == "12.4"
    assert len(description["sha256"]) == 64
    kept.path.write_bytes(b"one hour of work!")
    assert find_built_wheel(cache, "key", GLIBC) is None, "a look changes nothing"
    assert folder.exists(), "a look changes nothing"
    assert find_built_wheel(cache, "key", GLIBC, listener) is None
    assert not folder.exists()
    assert next(cache.glob("damaged-*-key-*")).is_dir()
    folder.mkdir()  # a folder without its JSON
    assert find_built_wheel(cache, "key", GLIBC, listener) is None
    assert not folder.exists()


def test_a_second_pod_that_finishes_later_changes_nothing(
    cache: Path, tmp_path: Path
) -> None:
    kept = []
    for content in (b"first", b"second", b"first"):
        wheel = make_built(tmp_path / "built", content)
        kept.append(keep_built_wheel(wheel, cache, FULL_KEY, {}))
    assert kept[0] == kept[2]
    assert kept[0].path.read_bytes() == b"first"
    assert kept[1].path.read_bytes() == b"second", "each has a folder of its own"
    assert len(list(cache.iterdir())) == 2


def forge(cache: Path) -> Path:
    """What a writer of a shared volume can do: a wheel of the right key, with a JSON that names its hash."""
    folder = cache / FULL_KEY
    wheel = make_built(folder, b"what another chose")
    description = {"wheel": wheel.name, "sha256": file_sha256(wheel)}
    (folder / "wheel.json").write_text(json.dumps(description))
    return wheel


def test_a_wheel_is_not_believed_by_the_json_beside_it(cache: Path) -> None:
    """The attack, shown: the forged wheel was installed and ran in every pod that shares the volume."""
    listener = Listener()
    wheel = forge(cache)
    assert find_built_wheel(cache, "key", GLIBC, listener) is None
    assert wheel.exists(), "another pod may have built it: it is left"
    assert f"the cache has {wheel}, which is not noted as built by you" in listener.text
    assert "--wheel FILE --sha256 HEX" in listener.text
    assert (
        file_sha256(wheel) not in listener.text
    ), "who trusts it has the hash from its build"


def test_a_forged_wheel_does_not_hide_ones_own(cache: Path, tmp_path: Path) -> None:
    kept = keep_built_wheel(make_built(tmp_path / "built"), cache, FULL_KEY, {})
    forge(cache)
    assert find_built_wheel(cache, "key", GLIBC, Listener()) == kept
    description = json.loads((kept.path.parent / "wheel.json").read_text())
    kept.path.write_bytes(b"what another chose")
    description["sha256"] = file_sha256(kept.path)
    (kept.path.parent / "wheel.json").write_text(json.dumps(description))
    assert find_built_wheel(cache, "key", GLIBC, Listener()) is None


def test_ones_own_wheel_of_another_key_is_not_taken_for_this_one(
    cache: Path, tmp_path: Path
) -> None:
    """For another torch it would crash; its hash alone is not enough."""
    kept = keep_built_wheel(make_built(tmp_path / "built"), cache, FULL_KEY, {})
    kept.path.parent.rename(cache / f"other{FULL_KEY}")
    assert find_built_wheel(cache, "otherkey", GLIBC, Listener()) is None


@pytest.mark.parametrize("mode", [0o660, 0o606])
def test_a_note_that_others_can_write_is_not_believed(
    mode: int, cache: Path, tmp_path: Path, state: Path
) -> None:
    keep_built_wheel(make_built(tmp_path / "built"), cache, FULL_KEY, {})
    assert len(read_own_builds()) == 1
    assert state.stat().st_mode & 0o777 == 0o600
    state.chmod(mode)
    assert read_own_builds() == {}
    state.chmod(0o600)
    state.parent.chmod(0o777)
    assert find_built_wheel(cache, "key", GLIBC) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 5}'])
def test_a_damaged_note_is_as_none(text: str, state: Path) -> None:
    state.parent.mkdir(parents=True)
    state.write_text(text)
    assert read_own_builds() == {}


def test_without_a_home_nothing_is_noted_and_nothing_fails(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `docker run --user 1234`."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert find_state_file() is None
    assert keep_built_wheel(
        make_built(tmp_path / "built"), cache, FULL_KEY, {}
    ).path.exists()
    assert find_built_wheel(cache, "key", GLIBC) is None


@pytest.mark.parametrize("name", ["../../victim.whl", "/etc/passwd", "..", "a/b.whl"])
def test_the_json_of_a_wheel_chooses_no_path(
    name: str, cache: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim.whl"
    victim.write_bytes(b"theirs")
    folder = cache / FULL_KEY
    folder.mkdir()
    description = {"wheel": name, "sha256": file_sha256(victim)}
    (folder / "wheel.json").write_text(json.dumps(description))
    assert find_built_wheel(cache, "key", GLIBC, Listener()) is None
    assert victim.exists()
    assert list(cache.glob("damaged-*"))
