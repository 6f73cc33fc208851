"""The rates of disks and servers, and what stands around the GPUs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fixtures.fault_server import FaultServer, Handler
from lockedenv.backends.base import FileOrigin
from lockedenv.host.finding import Finding, FindingOutcome, passed
from lockedenv.host.gpus import Gpu
from lockedenv.host.process import CommandResult
from lockedenv.pod import rates
from lockedenv.pod.rates import measure_disk, measure_rates, measure_server
from lockedenv.pod.surroundings import judge_host

GIB = 1024**3
H100 = Gpu("NVIDIA H100 80GB HBM3", "550.90", 80 * GIB, "9.0", "GPU-1", False)


def test_a_host_that_is_too_small_says_what_helps(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal: 67108864 kB\nMemAvailable: 67108864 kB\n"
    )
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("200000 100000")
    found = judge_host([H100], 64 << 20, tmp_path)
    assert found.verdict is FindingOutcome.WARN
    assert found.summary == "/dev/shm has 67 MB (and 2 more)"
    assert "num_workers=0" in found.remedy
    assert "low_cpu_mem_usage" in found.remedy
    assert found.details == (
        "2 CPUs for 1 GPUs",
        "68.7 GB of memory for 85.9 GB of GPU memory",
    )
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("1600000 100000")
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal: 134217728 kB\nMemAvailable: 67108864 kB\n"
    )
    assert judge_host([H100], GIB, tmp_path).verdict is FindingOutcome.PASS


def test_the_rates_of_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SAMPLE", 4 << 20)
    found = measure_disk(tmp_path / "not/yet/there")
    assert found.measured["bytes_per_s"] > 0
    assert found.measured["files_per_s"] > 0
    assert not list(tmp_path.iterdir())
    fsync = os.fsync

    def sync_slowly(file: int) -> None:
        time.sleep(0.2)
        fsync(file)

    monkeypatch.setattr(os, "fsync", sync_slowly)
    found = measure_disk(tmp_path)
    assert found.verdict is FindingOutcome.WARN, found
    assert "will be slow here" in found.remedy, found
    assert "cannot be written" in measure_disk(Path("/proc/self")).summary


def origin_of(
    server: FaultServer, name: str = "file", size: int = 64 << 20
) -> FileOrigin:
    return FileOrigin("the channel x", f"{server.address}/{name}", size, 10**9)


def send_at(handler: Handler, rate: float) -> bool:
    """Sends eight megabytes at so many bytes a second, whatever was asked for."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(8 << 20))
    handler.end_headers()
    for _ in range(32):
        handler.wfile.write(bytes(1 << 18))
        time.sleep((1 << 18) / rate)
    return True


def test_the_rates_of_servers(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(8 << 20))
    with FaultServer(tmp_path) as server:
        fast = measure_server(origin_of(server, size=8 << 20))
        assert fast.verdict is FindingOutcome.PASS, fast
        assert fast.measured["bytes_per_s"] > rates.NETWORK
        server.fault = lambda handler, content, start: send_at(handler, 1.5e6)
        crawling = measure_server(origin_of(server))
        assert crawling.verdict is FindingOutcome.WARN, crawling
        assert "--mirror" in crawling.remedy, crawling
        server.fault = None
        gone = measure_server(origin_of(server, "none"))
    assert gone.verdict is FindingOutcome.WARN
    assert gone.summary == "the channel x does not answer"
    assert "404" in gone.remedy


def test_streams_that_are_limited_each_are_counted_together(tmp_path: Path) -> None:
    """One stream of 4 MB/s was called "fetching will take long", of a server that gives 16 MB/s to four."""
    (tmp_path / "file").write_bytes(b"")
    with FaultServer(tmp_path) as server:
        server.fault = lambda handler, content, start: send_at(handler, 4e6)
        found = measure_server(origin_of(server))
    assert found.verdict is FindingOutcome.PASS, found
    assert "in 4 streams" in found.summary, found
    assert found.measured["bytes_per_s"] < 20e6


def test_a_server_that_is_slow_to_start_is_not_slow(tmp_path: Path) -> None:
    """A file's first byte may take seconds, of one stream or of all; it was counted into the rate."""
    (tmp_path / "file").write_bytes(b"")

    def start_late(handler: Handler, content: bytes, start: int) -> bool:
        time.sleep(2.5)
        return send_at(handler, 1e9)

    def start_one_late(handler: Handler, content: bytes, start: int) -> bool:
        if start:
            return send_at(handler, 1e9)
        return start_late(handler, content, start)

    with FaultServer(tmp_path) as server:
        for fault in (start_late, start_one_late):
            server.fault = fault
            found = measure_server(origin_of(server))
            assert (
                found.measured["bytes_per_s"] > 13.4e6
            ), found  # what 32 MB in 2.5 s would be


def test_servers_share_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four silent channels took 6 s each. The last has its time, however slow those before it are."""
    given = []

    def measure(origin: FileOrigin, seconds: float) -> Finding:
        given.append(seconds)
        clock[0] += seconds
        return passed(origin.name)

    clock = [0.0]
    monkeypatch.setattr(rates.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(rates, "measure_server", measure)
    rates._measure_servers([FileOrigin(name, "", 1, 1) for name in "abcde"])
    assert given == [2.0, 2.0, 2.0, 2.0, 2.0]
    given.clear()
    rates._measure_servers([FileOrigin(name, "", 1, 1) for name in "ab"])
    assert given == [6.0, 2.0]


def test_a_server_that_sends_nothing_in_its_time(tmp_path: Path) -> None:
    def stay_silent(handler: Handler, content: bytes, start: int) -> bool:
        time.sleep(2)
        return True

    (tmp_path / "file").write_bytes(b"")
    with FaultServer(tmp_path) as server:
        server.fault = stay_silent
        found = measure_server(origin_of(server), 1)
    assert found.verdict is FindingOutcome.WARN
    assert found.summary == "the channel x: 0 B came in 1 s"
    assert "timed out" in found.remedy


def test_a_cause_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was cut at 100 characters, before its cause."""
    why = (
        "curl: (60) SSL certificate problem: "
        + "a long way to say it; " * 9
        + "self-signed"
    )

    def fail(*command: object, **options: object) -> CommandResult:
        return CommandResult(60, "0 0 0", why)

    monkeypatch.setattr(rates, "ask", fail)
    assert (
        "self-signed; --mirror or --offline"
        in measure_server(FileOrigin("x", "https://x", 1, 1)).remedy
    )


def test_how_long_the_set_up_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "SAMPLE", 1 << 20)
    (tmp_path / "file").write_bytes(os.urandom(8 << 20))
    with FaultServer(tmp_path) as server:
        origins = [origin_of(server, size=8 << 20)]
        found = measure_rates([tmp_path, tmp_path], origins, 10**9, 3 * 10**9)
    assert [finding.check for finding in found] == [
        "pod-network",
        "pod-disk",
        "pod-disk",
        "pod-ready",
    ]
    assert (
        "s to an installed environment: 1.0 GB to fetch, 3.0 GB to write"
        in found[-1].summary
    )
    assert [finding.check for finding in measure_rates([tmp_path], [], 1, 1)] == [
        "pod-disk"
    ]
