"""The fetcher on a bad network: it ends with exactly the files, or with a clear error, and keeps nothing wrong."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Dict, Iterable, List

import pytest
from conftest import apart, sh
from fault_server import Fault, FaultServer, Handler
from lockedenv.backends import cache
from lockedenv.backends import download as fetch
from lockedenv.backends.download import FetchError, Item
from lockedenv.backends.transfer import read_seconds
from lockedenv.errors import Stop
from lockedenv.host.files import write_atomically
from lockedenv.prefix.records import hashes


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAXIMALCAI_RETRY_SECONDS", "0.01")
    monkeypatch.setenv("MAXIMALCAI_STALL_SECONDS", "1")


RUNS = int(os.environ.get("RANDOM_FAULT_RUNS", "6"))
FILES = {
    f"package-{n}-1.0-0.conda": random.Random(n).randbytes(40_000 + 7_000 * n) for n in range(12)
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "site/conda-forge/noarch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "site"


def items(*servers: str) -> List[Item]:
    return [
        Item(
            name,
            hashlib.sha256(content).hexdigest(),
            len(content),
            [f"{s}/conda-forge/noarch/{name}" for s in servers],
        )
        for name, content in FILES.items()
    ]


def assert_exact(folder: Path) -> None:
    """The folder holds every file, right, and nothing else."""
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == FILES


def rot(path: Path) -> None:
    """Flips a bit, as a disk does: size and time of change stay."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def assert_nothing_wrong(folder: Path) -> None:
    """Whatever has a package's own name is that package."""
    for path in folder.glob("*.conda"):
        assert path.read_bytes() == FILES[path.name]


def times(number: int, fault: Fault) -> Fault:
    """The fault for the first `number` requests of each file."""
    counts: Dict[str, int] = {}

    def limited(handler: Handler, content: bytes, start: int) -> bool:
        counts[handler.path] = counts.get(handler.path, 0) + 1
        return counts[handler.path] <= number and fault(handler, content, start)

    return limited


def reset(handler: Handler, content: bytes, start: int) -> bool:
    handler.send_part(
        content, start, start + random.Random(len(content) + start).randrange(len(content) - start)
    )
    handler.connection.setsockopt(
        1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00"
    )  # SO_LINGER 0: a reset, not an end
    return True


def truncate(handler: Handler, content: bytes, start: int) -> bool:
    handler.send_part(content, start, start + (len(content) - start) // 2)
    return True


def too_many(handler: Handler, content: bytes, start: int) -> bool:
    handler.answer(429, b"slow down", Retry_After="1")
    return True


def unavailable(handler: Handler, content: bytes, start: int) -> bool:
    handler.answer(503, b"maintenance")
    return True


def stall(handler: Handler, content: bytes, start: int) -> bool:
    handler.send_part(content, start, start + 1000)
    handler.owner.stall()
    return True


def wrong_bytes(handler: Handler, content: bytes, start: int) -> bool:
    handler.answer(206 if start else 200, bytes(len(content) - start), start, len(content))
    return True


def too_long(handler: Handler, content: bytes, start: int) -> bool:
    handler.answer(200, content + b"more")
    return True


def loop(handler: Handler, content: bytes, start: int) -> bool:
    handler.answer(302, b"", Location=handler.path)
    return True


FAULTS = [reset, truncate, too_many, unavailable, stall, wrong_bytes, too_long, loop]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: str(f.__name__))
def test_a_passing_fault_is_survived(fault: Fault, site: Path, tmp_path: Path) -> None:
    with FaultServer(site) as server:
        server.fault = times(1 if fault in (stall, too_many) else 2, fault)
        got = fetch.fetch(items(server.address), tmp_path / "pkgs", lambda text: None, quiet=True)
    assert_exact(tmp_path / "pkgs")
    assert got == sum(map(len, FILES.values()))


@pytest.mark.parametrize(
    "fault, said",
    [
        (truncate, "127.0.0.1"),
        (unavailable, "HTTP 503"),
        (wrong_bytes, "not "),
        (loop, "Maximum (5) redirects followed"),
    ],
    ids=["truncate", "unavailable", "wrong bytes", "redirect loop"],
)
def test_a_lasting_fault_ends_in_a_clear_error(
    fault: Fault, said: str, site: Path, tmp_path: Path
) -> None:
    with FaultServer(site) as server:
        server.fault = fault
        if fault is truncate:  # each time less than a byte further: it never gets there
            server.fault = lambda h, c, s: truncate(h, c[: s + 1], s)
        with pytest.raises(
            FetchError, match="12 of 12 files could not be fetched after 3 attempts"
        ) as error:
            fetch.fetch(
                items(server.address), tmp_path / "pkgs", lambda text: None, quiet=True, rounds=3
            )
    assert said in str(error.value) and "Run the same command again" in str(error.value)
    assert_nothing_wrong(tmp_path / "pkgs")


def test_it_goes_on_where_it_stopped(site: Path, tmp_path: Path) -> None:
    with FaultServer(site) as server:
        server.fault = times(1, truncate)
        fetch.fetch(items(server.address), tmp_path / "pkgs", lambda text: None, quiet=True)
        assert sum(start > 0 for start in server.started) == len(FILES), "not resumed"
    assert_exact(tmp_path / "pkgs")


def test_a_server_that_ignores_range(site: Path, tmp_path: Path) -> None:
    with FaultServer(site) as server:
        server.ranges = False
        server.fault = times(1, truncate)
        fetch.fetch(items(server.address), tmp_path / "pkgs", lambda text: None, quiet=True)
    assert_exact(tmp_path / "pkgs")


def test_a_mirror_that_lacks_half_and_lies_about_the_rest(site: Path, tmp_path: Path) -> None:
    def half(handler: Handler, content: bytes, start: int) -> bool:
        if len(content) % 14_000 < 7_000:
            handler.answer(404, b"")
            return True
        return wrong_bytes(handler, content, start)

    with FaultServer(site) as mirror, FaultServer(site) as origin:
        mirror.fault = half
        fetch.fetch(
            items(mirror.address, origin.address), tmp_path / "pkgs", lambda text: None, quiet=True
        )
        assert sum(mirror.requests.values()) >= len(FILES)
    assert_exact(tmp_path / "pkgs")


def test_what_is_there_is_not_fetched_again_and_what_is_damaged_is(
    site: Path, tmp_path: Path
) -> None:
    with FaultServer(site) as server:
        fetch.fetch(items(server.address), tmp_path / "pkgs", lambda text: None, quiet=True)
        asked = sum(server.requests.values())
        assert (
            fetch.fetch(items(server.address), tmp_path / "pkgs", lambda text: None, quiet=True)
            == 0
        )
        assert sum(server.requests.values()) == asked
        (tmp_path / "pkgs/package-3-1.0-0.conda").write_bytes(b"rot")
        (tmp_path / "pkgs/package-4-1.0-0.conda").unlink()
        (tmp_path / "pkgs/package-4-1.0-0.conda.part").write_bytes(
            b"\0" * 100
        )  # a part that can only end wrong
        fetch.fetch(items(server.address), tmp_path / "pkgs", lambda text: None, quiet=True)
    assert_exact(tmp_path / "pkgs")


def test_what_is_noted_is_not_read_and_what_has_another_size_or_time_is(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second pod read 3 GB of wheels from the volume before uv, which hashes them too, read them again."""
    folder, read = tmp_path / "cache/pkgs", []

    def reading(paths: Iterable[Path]) -> Dict[Path, str]:
        read.extend(found := list(paths))
        return hashes(found)

    with FaultServer(site) as server:
        fetch.fetch(items(server.address), folder, lambda text: None, quiet=True)
        monkeypatch.setattr(cache, "hashes", reading)
        known = cache.read_archive_hashes(folder.iterdir())
        assert read == [] and {path.name: sha for path, sha in known.items()} == {
            i.name: i.sha256 for i in items("")
        }
        os.utime(folder / "package-1-1.0-0.conda", (1, 1))
        (folder / "package-2-1.0-0.conda").write_bytes(b"rot")
        fetch.fetch(
            items(server.address),
            folder,
            lambda text: None,
            quiet=True,
            has=cache.read_archive_hashes,
        )
        assert sorted(path.name for path in read) == [
            "package-1-1.0-0.conda",
            "package-2-1.0-0.conda",
        ]
        assert_exact(folder)
        rot(folder / "package-3-1.0-0.conda")
        fetch.fetch(
            items(server.address),
            folder,
            lambda text: None,
            quiet=True,
            has=cache.read_archive_hashes,
        )
        assert (folder / "package-3-1.0-0.conda").read_bytes() != FILES[
            "package-3-1.0-0.conda"
        ], "for its unpacker to find"
        fetch.fetch(items(server.address), folder, lambda text: None, quiet=True)
    assert_exact(folder)


def test_random_faults_over_and_over(site: Path, tmp_path: Path) -> None:
    """Under random faults: each ends exact or in an error, and nothing wrong is ever cache."""
    outcomes = {"exact": 0, "error": 0}
    faults = 0
    for seed in range(RUNS):
        chance, folder = random.Random(seed), tmp_path / f"pkgs-{seed}"

        def anything(handler: Handler, content: bytes, start: int) -> bool:
            nonlocal faults
            if chance.random() < 0.5 or start >= len(content):
                return False
            faults += 1
            return chance.choice([reset, truncate, unavailable, wrong_bytes, too_long, loop])(
                handler, content, start
            )

        with FaultServer(site) as server:
            server.fault = anything
            try:
                fetch.fetch(items(server.address), folder, lambda text: None, quiet=True)
                assert_exact(folder)
                outcomes["exact"] += 1
            except FetchError:
                assert_nothing_wrong(folder)
                outcomes["error"] += 1
    print(f"\n{RUNS} runs, {faults} faults: {outcomes}, wrong outcomes: 0")
    assert outcomes["exact"] > 0.8 * RUNS and faults > 8 * RUNS


def test_two_runs_that_share_a_folder_fetch_each_file_once(site: Path, tmp_path: Path) -> None:
    """They tore each other's `.part` files: FileNotFoundError."""
    program = (
        "import sys; from pathlib import Path; from test_fetch import items; from lockedenv.backends import download as fetch\n"
        "fetch.fetch(items(sys.argv[1]), Path(sys.argv[2]), print, quiet=True)"
    )
    with FaultServer(site) as server:
        server.fault = lambda handler, content, start: time.sleep(0.02) or False  # type: ignore[func-returns-value]
        command = [sys.executable, "-c", program, server.address, str(tmp_path / "pkgs")]
        environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        both = [
            subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        said = [process.communicate()[1] for process in both]
        assert [process.returncode for process in both] == [0, 0, 0] and "Traceback" not in "".join(
            said
        ), said
        assert set(server.requests.values()) == {1}
    assert_exact(tmp_path / "pkgs")


def test_a_password_in_netrc_is_used(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with FaultServer(site) as server:
        server.fault = (
            lambda handler, content, start: "Authorization" not in handler.headers
            and not handler.answer(401, b"")
        )
        fetch.fetch(items(server.address), tmp_path / "pkgs", lambda text: None, quiet=True)
    assert_exact(tmp_path / "pkgs")


def test_a_cache_with_quotes_in_its_name_is_written_to_and_nothing_else(
    site: Path, tmp_path: Path
) -> None:
    folder = tmp_path / 'a"b\\c'
    folder.mkdir()
    with FaultServer(site) as server:
        fetch.fetch(items(server.address), folder / "pkgs", lambda text: None, quiet=True)
    assert_exact(folder / "pkgs")
    assert {path.name for path in tmp_path.iterdir()} == {"site", folder.name}


@pytest.fixture
def old_curl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A curl that answers as 7.68 does: %{exitcode} and %{errormsg}, which it does not know, are empty."""
    (tmp_path / "bin").mkdir()
    script = "import os, sys; ask = [a.replace('%{exitcode}', '').replace('%{errormsg}', '') for a in sys.argv[1:]]\n"
    script += f"os.execv({shutil.which('curl')!r}, ['curl', *ask])\n"
    (tmp_path / "bin/curl").write_text(f"#!{sys.executable}\n{script}")
    (tmp_path / "bin/curl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


def test_an_old_curl_settles_files_of_unknown_size(
    site: Path, tmp_path: Path, old_curl: None
) -> None:
    """Ubuntu 20.04's and Debian 11's: pytorch's archive, whose size no channel records, never settled."""
    said = sh(
        "curl",
        "--silent",
        "--write-out",
        "%{http_code}\\t%{exitcode}\\t%{errormsg}|",
        "http://127.0.0.1:9",
        check=False,
    ).stdout
    assert said == "000\t\t|", said
    with FaultServer(site) as server:
        unsized = [replace(item, size=0) for item in items(server.address)]
        server.fault = times(1, truncate)
        fetch.fetch(unsized, tmp_path / "pkgs", lambda text: None, quiet=True)
        assert_exact(tmp_path / "pkgs")
        server.fault = unavailable
        with pytest.raises(FetchError, match="HTTP 503"):
            fetch.fetch(unsized, tmp_path / "other", lambda text: None, quiet=True, rounds=3)


def test_a_full_disk_is_named_as_that(site: Path, tmp_path: Path) -> None:
    """A file system of 300 kB, in a mount namespace of its own."""
    program = (
        "import sys; from test_fetch import items; from lockedenv.backends import download as fetch\n"
        "try: fetch.fetch(items(sys.argv[1]), __import__('pathlib').Path(sys.argv[2]), print, quiet=True)\n"
        "except fetch.FetchError as error: print(error)"
    )
    small = tmp_path / "small"
    small.mkdir()
    with FaultServer(site) as server:
        mount = f'mount -t tmpfs -o size=300k none {small} && python -c "$0" {server.address} {small}/pkgs'
        environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        done = sh(*apart("--mount"), "bash", "-c", mount, program, env=environ)
    assert (
        "No space left on the disk of" in done.stdout and "what is there is kept" in done.stdout
    ), done.stdout


def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAXIMALCAI_RETRY_SECONDS", "soon")
    with pytest.raises(Stop, match="MAXIMALCAI_RETRY_SECONDS=soon: give a number of seconds"):
        read_seconds("MAXIMALCAI_RETRY_SECONDS", 1)


def test_two_containers_with_equal_process_ids_write_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One took the other's half-written file, or found none."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with ThreadPoolExecutor(4) as pool:
        for written in [
            pool.submit(write_atomically, tmp_path / "hashes.json", "x" * 10_000)
            for _ in range(400)
        ]:
            written.result()
    assert (tmp_path / "hashes.json").read_text() == "x" * 10_000 and len(
        list(tmp_path.iterdir())
    ) == 1


def test_an_address_on_a_mirror() -> None:
    url = "https://conda.anaconda.org/conda-forge/noarch/tqdm-1-0.conda"
    assert (
        fetch.address("http://m.example/conda/", url)
        == "http://m.example/conda/conda-forge/noarch/tqdm-1-0.conda"
    )
