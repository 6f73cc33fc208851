"""The fetcher against curl, one file after another, and a second run that finds all there."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from fixtures.fault_server import FaultServer, Handler
from lockedenv.backends.download import Item, fetch
from lockedenv.cli.output import Steps
from measuring import compare

SIZES = [20_000_000, 10_000_000, *[1_000_000] * 20, *[50_000] * 40]  # bytes
DELAY = 0.05  # seconds until the server answers
RATE = 25e6  # bytes a second on each connection
BLOCK = 1 << 20


def serve_slowly(handler: Handler, content: bytes, start: int) -> bool:
    """A server far away."""
    time.sleep(DELAY)
    status = 200
    if start:
        status = 206
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    for position in range(start, len(content), BLOCK):
        handler.wfile.write(content[position : position + BLOCK])
        time.sleep(BLOCK / RATE)
    return True


def make_files(site: Path, address: str) -> list[Item]:
    """The files on the server, always the same ones."""
    site.mkdir()
    items = []
    for number, size in enumerate(SIZES):
        content = random.Random(number).randbytes(size)
        name = str(number)
        (site / name).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        items.append(Item(name, sha256, size, [f"{address}/{name}"]))
    return items


def fetch_files(rounds: int) -> str:
    """A Markdown table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with FaultServer(folder / "site") as server:
            server.fault = serve_slowly
            items = make_files(folder / "site", server.address)
            target = folder / "ours"

            def again() -> float:
                started = time.monotonic()
                fetch(items, target, Steps(1, True))
                return time.monotonic() - started

            def ours() -> float:
                shutil.rmtree(target, ignore_errors=True)
                return again()

            def one_after_another() -> float:
                started = time.monotonic()
                for item in items:
                    output = folder / f"theirs-{item.name}"
                    subprocess.run(
                        ["curl", "-sf", "-o", output, item.sources[0]], check=True
                    )
                return time.monotonic() - started

            contenders = {
                "the set-up's fetcher, hashes checked": ours,
                "curl, one after another, no check": one_after_another,
                "the fetcher again, all there": again,
            }
            return compare(
                f"Fetching {len(SIZES)} files, {sum(SIZES) / 1e6:.0f} MB, from a server 50 ms away "
                "with 25 MB/s a connection",
                contenders,
                rounds,
            )
