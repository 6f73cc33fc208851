"""What the cache holds is what came out of a hashed archive, whatever its notes say."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from lockedenv.backends import cache
from lockedenv.backends.cache import UNPACKED, Program, extract_program
from lockedenv.errors import Stop

UV = Program(".data/scripts/uv", "uv-0123")
MICROMAMBA = Program("bin/micromamba", "micromamba-0123")
CONTENT = b"#!/bin/sh\necho the locked one\n"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with a program in it, as uv's is."""
    path = tmp_path / "uv-1-py3-none-any.whl"
    encoded = (
        base64.urlsafe_b64encode(hashlib.sha256(CONTENT).digest()).decode().rstrip("=")
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("uv-1.data/scripts/uv", CONTENT)
        record = f"uv-1.data/scripts/uv,sha256={encoded},{len(CONTENT)}\nuv-1.dist-info/RECORD,,\n"
        archive.writestr("uv-1.dist-info/RECORD", record)
    return path


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    """A conda archive with a program in it, as micromamba's is."""
    path = tmp_path / "micromamba-1.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        info = tarfile.TarInfo("bin/micromamba")
        info.size = len(CONTENT)
        archive.addfile(info, io.BytesIO(CONTENT))
    return path


def forge(program: Path, cache_folder: Path) -> None:
    """What a writer of a shared volume can do: another program, with the old times and a new note."""
    status = program.stat()
    program.write_bytes(b"x" * status.st_size)
    os.utime(program, ns=(status.st_atime_ns, status.st_mtime_ns))
    notes = {f"bin/{program.name}": cache.fingerprint(program)}
    (cache_folder / UNPACKED).write_text(json.dumps(notes))


@pytest.mark.parametrize("kind", ["wheel", "tarball"])
def test_a_program_that_was_exchanged_in_the_cache_does_not_run(
    kind: str, wheel: Path, tarball: Path, tmp_path: Path
) -> None:
    """A note beside it was believed: who could write to the volume chose the uv that ran."""
    archive = {"wheel": wheel, "tarball": tarball}[kind]
    program = {"wheel": UV, "tarball": MICROMAMBA}[kind]
    folder = tmp_path / "cache"
    first = extract_program(archive, program, folder)
    assert first.read_bytes() == CONTENT
    assert os.access(first, os.X_OK)
    made = first.stat().st_mtime_ns
    assert extract_program(archive, program, folder).stat().st_mtime_ns == made
    forge(first, folder)
    assert extract_program(archive, program, folder).read_bytes() == CONTENT
    first.unlink()
    first.symlink_to(tmp_path / "elsewhere")
    assert extract_program(archive, program, folder).read_bytes() == CONTENT
    assert not (tmp_path / "elsewhere").exists()
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_an_archive_without_the_program_is_named(
    wheel: Path, tarball: Path, tmp_path: Path
) -> None:
    for archive, program in ((wheel, MICROMAMBA), (tarball, UV)):
        with pytest.raises(
            Stop, match=f"{archive} holds no .*; remove it, and it is fetched anew"
        ):
            extract_program(archive, program, tmp_path / "cache")
    assert not [path for path in tmp_path.glob("cache/*/*")]


def test_what_is_read_from_an_archive_has_a_limit(
    wheel: Path, tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PROGRAM_LIMIT", len(CONTENT) - 1)
    for archive, program in ((wheel, UV), (tarball, MICROMAMBA)):
        with pytest.raises(Stop, match="holds a program of more than"):
            extract_program(archive, program, tmp_path / "cache")
    assert not [path for path in tmp_path.glob("cache/*/*")]


def test_what_differs_from_its_note_is_removed_and_what_has_none_is_named(
    tmp_path: Path,
) -> None:
    folders = []
    for name in ("same", "edited", "added", "gone", "unknown"):
        folder = tmp_path / "pkgs" / name
        folder.mkdir(parents=True)
        (folder / "file").write_text("content")
        folders.append(folder)
    cache.note_unpacked(tmp_path, folders[:4])
    (tmp_path / "pkgs/edited/file").write_text("content, edited")
    (tmp_path / "pkgs/added/more").write_text("")
    cache.remove(tmp_path / "pkgs/gone")
    assert cache.remove_changed(tmp_path, folders) == [tmp_path / "pkgs/unknown"]
    assert {path.name for path in (tmp_path / "pkgs").iterdir()} == {"same", "unknown"}
    assert list(json.loads((tmp_path / UNPACKED).read_text())) == ["pkgs/same"]


def test_a_damaged_note_of_hashes_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "wheels/a.whl"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    for text in ("[]", "{", json.dumps({cache.fingerprint(path): 5})):
        (tmp_path / cache.ARCHIVE_HASHES).write_text(text)
        found = cache.read_archive_hashes([path, tmp_path / "gone"])
        assert found == {path: hashlib.sha256(CONTENT).hexdigest()}
