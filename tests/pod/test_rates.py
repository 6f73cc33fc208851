"""The rates of disks and servers, and what stands around the GPUs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fault_server import FaultServer, Handler
from lockedenv.host.finding import Verdict
from lockedenv.host.gpus import Gpu
from lockedenv.pod import rates
from lockedenv.pod.rates import measure_disk, measure_rates, measure_server
from lockedenv.pod.surroundings import judge_host

GIB = 1024**3
H100 = Gpu("NVIDIA H100 80GB HBM3", "550.90", 80 * GIB, "9.0", "GPU-1", False)


def test_a_host_that_is_too_small_says_what_helps(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 67108864 kB\nMemAvailable: 67108864 kB\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("200000 100000")
    found = judge_host([H100], 64 << 20, tmp_path)
    assert found.verdict is Verdict.WARN and found.summary == "/dev/shm has 67 MB (and 2 more)"
    assert "num_workers=0" in found.remedy and "low_cpu_mem_usage" in found.remedy
    assert found.details == ("2 CPUs for 1 GPUs", "68.7 GB of memory for 85.9 GB of GPU memory")
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("1600000 100000")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 134217728 kB\nMemAvailable: 67108864 kB\n")
    assert judge_host([H100], GIB, tmp_path).verdict is Verdict.PASS


def test_the_rates_of_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SAMPLE", 4 << 20)
    found = measure_disk(tmp_path / "not/yet/there")
    assert found.measured["bytes_per_s"] > 0 and found.measured["files_per_s"] > 0
    assert not list(tmp_path.iterdir())
    fsync = os.fsync

    def sync_slowly(file: int) -> None:
        time.sleep(0.2)
        fsync(file)

    monkeypatch.setattr(os, "fsync", sync_slowly)
    found = measure_disk(tmp_path)
    assert found.verdict is Verdict.WARN and "will be slow here" in found.remedy, found
    assert "cannot be written" in measure_disk(Path("/proc/self")).summary


def send_slowly(handler: Handler, content: bytes, start: int) -> bool:
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for place in range(0, len(content), 1 << 18):
        handler.wfile.write(content[place : place + (1 << 18)])
        time.sleep(0.1)
    return True


def test_the_rates_of_servers(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(8 << 20))
    with FaultServer(tmp_path) as server:
        fast = measure_server("the channel x", f"{server.address}/file")
        assert fast.verdict is Verdict.PASS, fast
        assert fast.measured["bytes_per_s"] > rates.NETWORK
        server.fault = send_slowly
        crawling = measure_server("the channel x", f"{server.address}/file")
        assert crawling.verdict is Verdict.WARN and "--mirror" in crawling.remedy, crawling
        gone = measure_server("the channel x", f"{server.address}/none")
    assert gone.verdict is Verdict.WARN and gone.summary == "the channel x does not answer"
    assert "404" in gone.remedy


def test_a_cause_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was cut at 100 characters, before its cause."""
    why = "curl: (60) SSL certificate problem: " + "a long way to say it; " * 9 + "self-signed"

    def fail(*command: object, **options: object) -> tuple[int, str, str]:
        return 60, "0 0", why

    monkeypatch.setattr(rates, "ask", fail)
    assert "self-signed; --mirror or --offline" in measure_server("x", "https://x").remedy


def test_how_long_the_set_up_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SAMPLE", 1 << 20)
    (tmp_path / "file").write_bytes(os.urandom(8 << 20))
    with FaultServer(tmp_path) as server:
        urls = {"the index": f"{server.address}/file"}
        found = measure_rates([tmp_path, tmp_path], urls, 10**9, 3 * 10**9)
    assert [finding.check for finding in found] == [
        "pod-network",
        "pod-disk",
        "pod-disk",
        "pod-ready",
    ]
    assert "s to an installed environment: 1.0 GB to fetch, 3.0 GB to write" in found[-1].summary
    assert [finding.check for finding in measure_rates([tmp_path], {}, 1, 1)] == ["pod-disk"]
