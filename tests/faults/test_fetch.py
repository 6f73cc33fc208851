"""The fetcher on a bad network: it ends with exactly the files, or with a clear error, and keeps nothing wrong."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Iterable

import network_faults as faults
import pytest
from fixtures.commands import apart, sh
from fixtures.fault_server import Fault, FaultServer, Handler
from lockedenv.backends import cache, download
from lockedenv.backends.cache import read_archive_hashes
from lockedenv.backends.download import FetchError
from lockedenv.backends.transfer import read_seconds
from lockedenv.errors import Stop
from lockedenv.prefix.records import hashes
from network_faults import (
    FILES,
    assert_exact,
    assert_nothing_wrong,
    fetch_quietly,
    make_items,
)

RUNS = int(os.environ.get("RANDOM_FAULT_RUNS", "6"))
PROGRAM = Path(__file__).with_name("fetch_files.py")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return faults.write_site(tmp_path / "site")


FAULTS = [
    faults.reset,
    faults.truncate,
    faults.too_many,
    faults.unavailable,
    faults.stall,
    faults.wrong_bytes,
    faults.too_long,
    faults.loop,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.__name__))
def test_a_passing_fault_is_survived(fault: Fault, site: Path, tmp_path: Path) -> None:
    slow = fault in (faults.stall, faults.too_many)
    with FaultServer(site) as server:
        server.fault = faults.times(1 if slow else 2, fault)
        fetched = fetch_quietly(make_items(server.address), tmp_path / "pkgs")
    assert_exact(tmp_path / "pkgs")
    assert fetched == sum(map(len, FILES.values()))


@pytest.mark.parametrize(
    "fault, said",
    [
        (faults.advance_a_byte, "127.0.0.1"),
        (faults.unavailable, "HTTP 503"),
        (faults.wrong_bytes, "not "),
        (faults.loop, "Maximum (5) redirects followed"),
    ],
    ids=["truncate", "unavailable", "wrong bytes", "redirect loop"],
)
def test_a_lasting_fault_ends_in_a_clear_error(
    fault: Fault, said: str, site: Path, tmp_path: Path
) -> None:
    failed = "12 of 12 files could not be fetched after 3 attempts"
    with FaultServer(site) as server:
        server.fault = fault
        with pytest.raises(FetchError, match=failed) as error:
            fetch_quietly(make_items(server.address), tmp_path / "pkgs", rounds=3)
    assert said in str(error.value)
    assert "Run the same command again" in str(error.value)
    assert_nothing_wrong(tmp_path / "pkgs")


def test_it_goes_on_where_it_stopped(site: Path, tmp_path: Path) -> None:
    with FaultServer(site) as server:
        server.fault = faults.times(1, faults.truncate)
        fetch_quietly(make_items(server.address), tmp_path / "pkgs")
        resumed = [start for start in server.started if start > 0]
    assert len(resumed) == len(FILES)
    assert_exact(tmp_path / "pkgs")


def test_a_server_that_ignores_range(site: Path, tmp_path: Path) -> None:
    with FaultServer(site) as server:
        server.ranges = False
        server.fault = faults.times(1, faults.truncate)
        fetch_quietly(make_items(server.address), tmp_path / "pkgs")
    assert_exact(tmp_path / "pkgs")


def test_a_mirror_that_lacks_half_and_lies_about_the_rest(
    site: Path, tmp_path: Path
) -> None:
    with FaultServer(site) as mirror, FaultServer(site) as origin:
        mirror.fault = faults.half_missing
        fetch_quietly(make_items(mirror.address, origin.address), tmp_path / "pkgs")
        assert sum(mirror.requests.values()) >= len(FILES)
    assert_exact(tmp_path / "pkgs")


def test_what_is_there_is_not_fetched_again_and_what_is_damaged_is(
    site: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pkgs"
    with FaultServer(site) as server:
        items = make_items(server.address)
        fetch_quietly(items, folder)
        asked = sum(server.requests.values())
        assert fetch_quietly(items, folder) == 0
        assert sum(server.requests.values()) == asked
        (folder / "package-3-1.0-0.conda").write_bytes(b"rot")
        (folder / "package-4-1.0-0.conda").unlink()
        # A part that can only end wrong.
        (folder / "package-4-1.0-0.conda.part").write_bytes(b"\0" * 100)
        fetch_quietly(items, folder)
    assert_exact(folder)


def rot(path: Path) -> None:
    """Flips a bit, as a disk does: size and time of change stay."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_is_noted_is_not_read_and_what_has_another_size_or_time_is(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second pod read 3 GB of wheels from the volume before uv, which hashes them too, read them again."""
    folder = tmp_path / "cache/pkgs"
    read: list[Path] = []

    def reading(paths: Iterable[Path]) -> dict[Path, str]:
        found = list(paths)
        read.extend(found)
        return hashes(found)

    with FaultServer(site) as server:
        items = make_items(server.address)
        fetch_quietly(items, folder)
        monkeypatch.setattr(cache, "hashes", reading)
        known = read_archive_hashes(folder.iterdir())
        assert read == []
        assert {path.name: sha for path, sha in known.items()} == {
            i.name: i.sha256 for i in items
        }
        touched, damaged, rotten = (
            folder / f"package-{number}-1.0-0.conda" for number in (1, 2, 3)
        )
        os.utime(touched, (1, 1))
        damaged.write_bytes(b"rot")
        fetch_quietly(items, folder, has=read_archive_hashes)
        assert sorted(read) == [touched, damaged]
        assert_exact(folder)
        rot(rotten)
        fetch_quietly(items, folder, has=read_archive_hashes)
        assert rotten.read_bytes() != FILES[rotten.name], "for its unpacker to find"
        fetch_quietly(items, folder)
    assert_exact(folder)


def test_random_faults_over_and_over(site: Path, tmp_path: Path) -> None:
    """Under random faults: each ends exact or in an error, and nothing wrong is ever kept."""
    kinds = [fault for fault in FAULTS if fault not in (faults.too_many, faults.stall)]
    exact = 0
    errors = 0
    count = 0
    for seed in range(RUNS):
        chance = random.Random(seed)
        folder = tmp_path / f"pkgs-{seed}"

        def anything(handler: Handler, content: bytes, start: int) -> bool:
            nonlocal count
            if chance.random() < 0.5 or start >= len(content):
                return False
            count += 1
            return chance.choice(kinds)(handler, content, start)

        with FaultServer(site) as server:
            server.fault = anything
            try:
                fetch_quietly(make_items(server.address), folder)
                assert_exact(folder)
                exact += 1
            except FetchError:
                assert_nothing_wrong(folder)
                errors += 1
    print(
        f"\n{RUNS} runs, {count} faults: {exact} exact, {errors} errors, wrong outcomes: 0"
    )
    assert exact > 0.8 * RUNS
    assert count > 8 * RUNS


def test_two_runs_that_share_a_folder_fetch_each_file_once(
    site: Path, tmp_path: Path
) -> None:
    """They tore each other's `.part` files: FileNotFoundError."""

    def take_time(handler: Handler, content: bytes, start: int) -> bool:
        time.sleep(0.02)
        return False

    with FaultServer(site) as server:
        server.fault = take_time
        command = [sys.executable, str(PROGRAM), server.address, str(tmp_path / "pkgs")]
        environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        runs = []
        for _ in range(3):
            run = subprocess.Popen(
                command, env=environ, stderr=subprocess.PIPE, text=True
            )
            runs.append(run)
        said = "".join(run.communicate()[1] for run in runs)
        assert [run.returncode for run in runs] == [0, 0, 0], said
        assert "Traceback" not in said
        assert set(server.requests.values()) == {1}
    assert_exact(tmp_path / "pkgs")


def test_a_password_in_netrc_is_used(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with FaultServer(site) as server:
        server.fault = faults.without_password
        fetch_quietly(make_items(server.address), tmp_path / "pkgs")
    assert_exact(tmp_path / "pkgs")


def test_a_cache_with_quotes_in_its_name_is_written_to_and_nothing_else(
    site: Path, tmp_path: Path
) -> None:
    folder = tmp_path / 'a"b\\c'
    folder.mkdir()
    with FaultServer(site) as server:
        fetch_quietly(make_items(server.address), folder / "pkgs")
    assert_exact(folder / "pkgs")
    assert {path.name for path in tmp_path.iterdir()} == {"site", folder.name}


@pytest.fixture
def old_curl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/curl").symlink_to(Path(__file__).with_name("curl_of_2020"))
    monkeypatch.setenv("REAL_CURL", str(shutil.which("curl")))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


def test_an_old_curl_settles_files_of_unknown_size(
    site: Path, tmp_path: Path, old_curl: None
) -> None:
    """Ubuntu 20.04's and Debian 11's: pytorch's archive, whose size no channel records, never settled."""
    asked = "%{http_code}\\t%{exitcode}\\t%{errormsg}|"
    command = ["curl", "--silent", "--write-out", asked, "http://127.0.0.1:9"]
    said = sh(*command, check=False).stdout
    assert said == "000\t\t|", said
    with FaultServer(site) as server:
        unsized = [replace(item, size=0) for item in make_items(server.address)]
        server.fault = faults.times(1, faults.truncate)
        fetch_quietly(unsized, tmp_path / "pkgs")
        assert_exact(tmp_path / "pkgs")
        server.fault = faults.unavailable
        with pytest.raises(FetchError, match="HTTP 503"):
            fetch_quietly(unsized[:2], tmp_path / "other", rounds=2)


def test_a_full_disk_is_named_as_that(site: Path, tmp_path: Path) -> None:
    """A file system of 300 kB, in a mount namespace of its own."""
    small = tmp_path / "small"
    small.mkdir()
    with FaultServer(site) as server:
        program = f"{sys.executable} {PROGRAM} {server.address} {small}/pkgs"
        command = f"mount -t tmpfs -o size=300k none {small} && {program}"
        environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        said = sh(*apart("--mount"), "bash", "-c", command, env=environ).stdout
    assert "No space left on the disk of" in said, said
    assert "what is there is kept" in said, said


def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAXIMALCAI_RETRY_SECONDS", "soon")
    with pytest.raises(
        Stop, match="MAXIMALCAI_RETRY_SECONDS=soon: give a number of seconds"
    ):
        read_seconds("MAXIMALCAI_RETRY_SECONDS", 1)


def test_an_address_on_a_mirror() -> None:
    url = "https://conda.anaconda.org/conda-forge/noarch/tqdm-1-0.conda"
    found = download.address("http://m.example/conda/", url)
    assert found == "http://m.example/conda/conda-forge/noarch/tqdm-1-0.conda"
