"""How fast the disks write and the origins deliver, and how long the set-up takes with that."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from lockedenv.backends.base import FileOrigin
from lockedenv.backends.curl import CURL
from lockedenv.host.disks import existing_parent, size_text
from lockedenv.host.finding import Finding, passed, warned
from lockedenv.host.limits import cpu_limit
from lockedenv.host.process import ask

# Bytes and small files a second, under which unpacking 6 GB in 30,000 files takes minutes.
DISK = 200e6
FILES = 300
# CPU seconds for a fetched byte: 23 s for 3.3 GB, with hashing and the quick verification.
UNPACK = 7e-9
NETWORK = 10e6  # bytes a second, under which 3.5 GB take six minutes
SAMPLE = 128 << 20  # bytes written for the rate of a disk
FEW = 300  # small files written for it
SECONDS = 1  # for each of the two, at most
# A set-up fetches several files at a time, and many servers limit each stream.
STREAMS = 4
RANGE = 16 << 20  # bytes that each stream fetches
FETCH_RANGE = (*CURL, "--fail", "--connect-timeout", "5")
TIMED_OUT = 28  # curl's exit status
SERVERS = 8.0  # seconds for all servers
SHARE = 2.0  # of them, which each server has, however slow those before it were
TELLING = 1e6  # bytes, without which a transfer that was cut off says nothing of a rate


def measure_disk(place: Path) -> Finding:
    """How fast the disk of a place writes: one large file, to the disk itself, then small ones."""
    try:
        with tempfile.TemporaryDirectory(
            prefix=".maximalcai-", dir=existing_parent(place)
        ) as tmp:
            rate = _write_large(Path(tmp))
            files = _write_small(Path(tmp))
    except OSError as error:
        return warned(
            [f"{place}: cannot be written: {error.strerror}"],
            "choose another place with --prefix or --cache",
        )
    text = f"{place}: {rate / 1e6:.0f} MB/s, {files:.0f} small files a second"
    if rate < DISK or files < FILES:
        remedy = (
            "installing and checkpoints will be slow here; "
            "name another disk with --prefix or --cache"
        )
        return warned([text], remedy, bytes_per_s=rate, files_per_s=files)
    return passed(text, bytes_per_s=rate, files_per_s=files)


def _write_large(folder: Path) -> float:
    """Bytes a second of one large file."""
    block = os.urandom(1 << 20)
    began = time.monotonic()
    size = 0
    with open(folder / "large", "wb") as file:
        while size < SAMPLE and time.monotonic() - began < SECONDS:
            size += file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return size / (time.monotonic() - began)


def _write_small(folder: Path) -> float:
    """Small files a second."""
    block = os.urandom(4096)
    began = time.monotonic()
    count = 0
    while count < FEW and time.monotonic() - began < SECONDS:
        (folder / str(count)).write_bytes(block)
        count += 1
    return count / (time.monotonic() - began)


@dataclass(frozen=True)
class _Stream:
    """What one stream has brought: between its first byte and its end, in seconds of one clock."""

    size: float
    first_byte: float
    end: float
    problem: str
    timed_out: bool = False


def measure_server(origin: FileOrigin, seconds: float = SERVERS) -> Finding:
    """The rate of several streams of a large file, counted while bytes came; they are discarded.

    The time until the first byte does not count: a server may take seconds to find a file.
    """
    streams = _run_streams(origin, seconds)
    size = 0.0
    problems = []
    for stream in streams:
        size += stream.size
        if stream.problem:
            problems.append(stream.problem)
    if size < TELLING and problems:
        remedy = f"{problems[0]}; --mirror or --offline bring the files another way"
        summary = f"{origin.name} does not answer"
        if all(stream.timed_out for stream in streams):
            summary = f"{origin.name}: {size_text(int(size))} came in {seconds:.0f} s"
        return warned([summary], remedy)
    rate = size / max(_busy_seconds(streams), 1e-3)
    text = f"{origin.name}: {rate / 1e6:.0f} MB/s in {len(streams)} streams"
    if rate < NETWORK:
        remedy = "fetching will take long; a cache on a volume, or --mirror, saves it"
        return warned([text], remedy, bytes_per_s=rate)
    return passed(text, bytes_per_s=rate)


def _run_streams(origin: FileOrigin, seconds: float) -> list[_Stream]:
    """Fetches several ranges of a file at the same time; one, where it is small."""
    count = max(1, min(STREAMS, origin.size // RANGE))
    starts = [number * origin.size // count for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return list(
            pool.map(lambda start: _run_stream(origin.address, start, seconds), starts)
        )


def _run_stream(address: str, start: int, seconds: float) -> _Stream:
    options = ["--max-time", f"{seconds:.1f}"]
    options += ["--range", f"{start}-{start + RANGE - 1}", "--output", os.devnull]
    options += ["--write-out", "%{size_download} %{time_starttransfer} %{time_total}"]
    # To curl's standard input: an address may hold a token, and `ps` shows arguments.
    config = f"url = {json.dumps(address, ensure_ascii=False)}\n"
    answer = ask([*FETCH_RANGE, *options], seconds + 3, config)
    ended = time.monotonic()
    problem = "" if answer.status == 0 else " ".join(answer.error.split())
    figures = re.fullmatch(r"([\d.]+) ([\d.]+) ([\d.]+)", answer.output)
    if figures is None:
        return _Stream(0, ended, ended, problem)
    size = float(figures[1])
    # curl counts from its own start.
    first_byte = ended - float(figures[3]) + float(figures[2])
    return _Stream(size, first_byte, ended, problem, answer.status == TIMED_OUT)


def _busy_seconds(streams: Sequence[_Stream]) -> float:
    """How long at least one stream was bringing bytes."""
    busy = 0.0
    counted_until = 0.0
    for stream in sorted(streams, key=lambda stream: stream.first_byte):
        if not stream.size:
            continue
        begin = max(stream.first_byte, counted_until)
        busy += max(0.0, stream.end - begin)
        counted_until = max(counted_until, stream.end)
    return busy


def _measure_servers(origins: Sequence[FileOrigin]) -> list[Finding]:
    """One after the other, as they share the network of this machine; in SERVERS seconds,
    if few."""
    findings = []
    end = time.monotonic() + SERVERS
    for number, origin in enumerate(origins):
        after = len(origins) - number - 1
        seconds = max(SHARE, end - time.monotonic() - SHARE * after)
        findings.append(measure_server(origin, seconds))
    return findings


def measure_rates(
    places: Sequence[Path], origins: Sequence[FileOrigin], needed: int, unpacked: int
) -> list[Finding]:
    """The rates of the origins and of disks.

    The last finding, where it can be told, is how long the set-up will take: `needed` bytes are
    fetched, and `unpacked` bytes are written to the first place.
    """
    findings = []
    rates = []
    for server in _measure_servers(origins):
        findings.append(replace(server, check="pod-network"))
        rates.append(server.measured.get("bytes_per_s", 0.0))
    disks = []
    for place in places:
        disk = measure_disk(place)
        findings.append(replace(disk, check="pod-disk"))
        disks.append(disk)
    if rates and all(rates) and disks[0].measured:
        seconds = (
            unpacked / disks[0].measured["bytes_per_s"] + needed * UNPACK / cpu_limit()
        )
        for origin, rate in zip(origins, rates):
            seconds += origin.needed / rate
        sizes = f"{size_text(needed)} to fetch, {size_text(unpacked)} to write"
        ready = passed(f"about {seconds:.0f} s to an installed environment: {sizes}")
        findings.append(replace(ready, check="pod-ready"))
    return findings
