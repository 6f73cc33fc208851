"""The list of a mirror is input from outside: it is bounded, and it chooses no path."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from fixtures.commands import ROOT
from fixtures.fault_server import FaultServer, Handler
from lockedenv.backends import mirror
from lockedenv.backends.cache import CacheFolder
from lockedenv.backends.mirror import (
    NeededFile,
    find_python_archive,
    list_needed_files,
    parse_index,
    read_index,
)
from lockedenv.errors import Stop
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.locks import CondaPackage, PipPackage

SHA = "a1b2c3d4e" + "0" * 55
IDNA = NeededFile(CacheFolder.WHEELS, SHA, 5, PipPackage("idna", "3.10", SHA, 5))
FLASH = NeededFile(
    CacheFolder.WHEELS, SHA, 5, PipPackage("flash-attn", "2.8.3", SHA, 5)
)
TQDM = CondaPackage(
    "tqdm",
    "1",
    "https://conda.example/conda-forge/noarch/tqdm-1-0.conda",
    "0" * 32,
    SHA,
    5,
)


def test_a_list_without_end_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It filled the memory: 4.5 GB."""
    monkeypatch.setattr(mirror, "INDEX_LIMIT", 1_000_000)
    sent = [0]

    def send_without_end(handler: Handler, content: bytes, start: int) -> bool:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        while sent[0] < 500_000_000:
            handler.wfile.write(b"x" * 100_000)
            sent[0] += 100_000
        return True

    (tmp_path / mirror.INDEX).write_text("{}")
    with FaultServer(tmp_path) as server:
        server.fault = send_without_end
        with pytest.raises(Stop, match=r"does not answer \(it sent more than 1 MB\)"):
            read_index(server.address)
    assert sent[0] < 50_000_000


def test_a_list_that_never_comes_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "INDEX_SECONDS", 1)

    def trickle(handler: Handler, content: bytes, start: int) -> bool:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        while not handler.owner.stop.wait(0.05):
            handler.wfile.write(b" ")
        return True

    (tmp_path / mirror.INDEX).write_text("{}")
    began = time.monotonic()
    with FaultServer(tmp_path) as server:
        server.fault = trickle
        with pytest.raises(Stop, match="does not answer .*timed out"):
            read_index(server.address)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '["x"]',
        "5",
        json.dumps({SHA: 5}),
        json.dumps({SHA: ["wheels/x"]}),
        json.dumps({"xyz": "wheels/x"}),
        json.dumps({SHA: "wheels/x.part"}),
        json.dumps({SHA: "wheels/.x"}),
        json.dumps({SHA: "wheels/a/b"}),
        json.dumps({SHA: "wheels/..%2Fx"}),
        json.dumps({SHA: "wheels\\x"}),
        "[" * 200_000,
    ],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_index(text)


@pytest.mark.parametrize(
    "file, listed, name",
    [
        (IDNA, "wheels/idna-3.10-py3-none-any.whl", "idna-3.10-py3-none-any.whl"),
        (IDNA, "wheels/IDNA-3.10.tar.gz", "IDNA-3.10.tar.gz"),
        (IDNA, "wheels/idna-3.10-py3-none-any.whl.part", None),
        (IDNA, "wheels/idna-3.11-py3-none-any.whl", None),
        (IDNA, "wheels/idna-3.1-py3-none-any.whl", None),
        (IDNA, "wheels/zzz-3.10-py3-none-any.whl", None),
        (IDNA, "pkgs/idna-3.10-py3-none-any.whl", None),
        (IDNA, "wheels/..%2Fidna-3.10-py3-none-any.whl", "idna-3.10-py3-none-any.whl"),
        (IDNA, "wheels/idna-3.10-py3-none-any%2F..%2Fthesis.tex", None),
        (FLASH, "wheels/flash_attn-2.8.3.tar.gz", "flash_attn-2.8.3.tar.gz"),
        (FLASH, "wheels/flash-attn-2.8.3.tar.gz", "flash-attn-2.8.3.tar.gz"),
        (
            NeededFile(CacheFolder.ARCHIVES, SHA, 5, TQDM),
            "pkgs/tqdm-1-0.conda",
            "tqdm-1-0.conda",
        ),
        (NeededFile(CacheFolder.ARCHIVES, SHA, 5, TQDM), "pkgs/tqdm-1-1.conda", None),
        (NeededFile(CacheFolder.ARCHIVES, SHA, 5, TQDM), "wheels/tqdm-1-0.conda", None),
    ],
)
def test_the_name_in_the_cache_is_the_locks(
    file: NeededFile, listed: str, name: str | None
) -> None:
    assert file.find_name(listed) == name


@pytest.mark.parametrize(
    "listed, python, fits",
    [
        ("python-archives/a1b2c3d4e-cpython-3.11.99.tar.gz", "3.11", True),
        (
            "python-archives/a1b2c3d4e-cpython-3.11.9+20250712-x86_64-unknown-linux-gnu.tar.gz",
            "3.11",
            True,
        ),
        ("python-archives/a1b2c3d4e-cpython-3.11.99.tar.gz", "3.12", False),
        ("python-archives/a1b2c3d4e-cpython-3.11.99.tar.gz", "", False),
        ("python-archives/000000000-cpython-3.11.99.tar.gz", "3.11", False),
        ("python-archives/a1b2c3d4e-cpython-3.11.99.sh", "3.11", False),
        ("wheels/a1b2c3d4e-cpython-3.11.99.tar.gz", "3.11", False),
    ],
)
def test_which_archive_of_python_is_taken(listed: str, python: str, fits: bool) -> None:
    name = find_python_archive(SHA, listed, python)
    assert name == (listed.partition("/")[2] if fits else None)


def test_what_an_installation_needs() -> None:
    environment = Environment(ROOT)
    wheels = list_needed_files(environment, BackendName.PIP)
    conda = list_needed_files(environment, BackendName.CONDA)
    both = list_needed_files(environment, "")
    assert set(both) < set(wheels)
    assert set(both) < set(conda)
    places = {file.place for file in conda.values()}
    assert places == {CacheFolder.ARCHIVES, CacheFolder.WHEELS}
    without_archives = list_needed_files(environment, BackendName.CONDA, archives=False)
    assert {file.place for file in without_archives.values()} == {CacheFolder.WHEELS}
    assert all(len(sha256) == 64 for sha256 in wheels)
