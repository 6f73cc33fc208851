"""How fast the disks write and the origins deliver, and how long the set-up takes with that."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lockedenv.host.disks import existing_parent, size_text
from lockedenv.host.finding import Finding, find_good, find_odd
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
SECONDS = 3  # for each of the two, at most
RANGE = 24 << 20  # bytes of a file that are fetched for the rate of a server
CURL = (
    "curl --disable --netrc-optional --config - --location --fail --silent --show-error "
    "--connect-timeout 5 --max-time 6"
)
PATIENCE = 10  # seconds for curl


def measure_disk(place: Path) -> Finding:
    """How fast the disk of a place writes: one large file, to the disk itself, then small ones."""
    try:
        with tempfile.TemporaryDirectory(prefix=".maximalcai-", dir=existing_parent(place)) as tmp:
            rate = _write_large(Path(tmp))
            files = _write_small(Path(tmp))
    except OSError as error:
        return find_odd(
            [f"{place}: cannot be written: {error.strerror}"],
            "choose another place with --prefix or --cache",
        )
    text = f"{place}: {rate / 1e6:.0f} MB/s, {files:.0f} small files a second"
    if rate < DISK or files < FILES:
        remedy = (
            "installing and checkpoints will be slow here; "
            "name another disk with --prefix or --cache"
        )
        return find_odd([text], remedy, bytes_per_s=rate, files_per_s=files)
    return find_good(text, bytes_per_s=rate, files_per_s=files)


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


def measure_server(name: str, url: str) -> Finding:
    """The rate of the first megabytes of a file that a set-up would fetch; they are discarded."""
    options = ["--range", f"0-{RANGE}", "--output", os.devnull]
    options += ["--write-out", "%{size_download} %{speed_download}"]
    # To curl's standard input: an address may hold a token, and `ps` shows arguments.
    config = f"url = {json.dumps(url, ensure_ascii=False)}\n"
    status, out, err = ask([*CURL.split(), *options], PATIENCE, config)
    size = 0.0
    rate = 0.0
    if re.fullmatch(r"[\d.]+ [\d.]+", out):
        size, rate = [float(number) for number in out.split()]
    if size < 1e6 and status != 0:
        why = " ".join(err.split())
        return find_odd(
            [f"{name} does not answer"], f"{why}; --mirror or --offline bring the files another way"
        )
    text = f"{name}: {rate / 1e6:.0f} MB/s"
    if rate < NETWORK:
        remedy = "fetching will take long; a cache on a volume, or --mirror, saves it"
        return find_odd([text], remedy, bytes_per_s=rate)
    return find_good(text, bytes_per_s=rate)


def measure_rates(
    places: Sequence[Path], urls: Mapping[str, str], needed: int, unpacked: int
) -> list[Finding]:
    """The rates of the origins, by name, and of disks.

    The last finding, where it can be told, is how long the set-up will take: `needed` bytes are
    fetched, and `unpacked` bytes are written to the first place.
    """
    with ThreadPoolExecutor(max(1, len(urls))) as pool:
        servers = list(pool.map(measure_server, urls.keys(), urls.values()))
    disks = [measure_disk(place) for place in places]
    findings = [replace(finding, check="pod-network") for finding in servers]
    findings += [replace(finding, check="pod-disk") for finding in disks]
    rates = []
    for finding in servers:
        rate = finding.measured.get("bytes_per_s", 0)
        if rate:
            rates.append(rate)
    if rates and disks[0].measured:
        seconds = (
            needed / min(rates)
            + unpacked / disks[0].measured["bytes_per_s"]
            + needed * UNPACK / cpu_limit()
        )
        sizes = f"{size_text(needed)} to fetch, {size_text(unpacked)} to write"
        ready = find_good(f"about {seconds:.0f} s to an installed environment: {sizes}")
        findings.append(replace(ready, check="pod-ready"))
    return findings
