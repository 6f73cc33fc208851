"""Twelve files on a bad network: the files, what a server can do wrong, and what must hold afterwards."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from fixtures.fault_server import Fault, Handler
from lockedenv.backends import download
from lockedenv.backends.download import Item
from lockedenv.cli.output import Steps

FOLDER = "conda-forge/noarch"
FILES: dict[str, bytes] = {}
for number in range(12):
    content = random.Random(number).randbytes(40_000 + 7_000 * number)
    FILES[f"package-{number}-1.0-0.conda"] = content


def write_site(folder: Path) -> Path:
    """The files as a channel serves them."""
    (folder / FOLDER).mkdir(parents=True)
    for name, content in FILES.items():
        (folder / FOLDER / name).write_bytes(content)
    return folder


def make_items(*addresses: str) -> list[Item]:
    """The files, to be had from these servers."""
    items = []
    for name, content in FILES.items():
        sources = [f"{address}/{FOLDER}/{name}" for address in addresses]
        items.append(
            Item(name, hashlib.sha256(content).hexdigest(), len(content), sources)
        )
    return items


def fetch_quietly(
    items: list[Item], folder: Path, rounds: int = download.ROUNDS, **settings: object
) -> int:
    """The bytes fetched."""
    return download.fetch(items, folder, Steps(1, True), rounds, **settings)  # type: ignore[arg-type]


def assert_exact(folder: Path) -> None:
    """The folder holds every file, right, and nothing else."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == FILES


def assert_nothing_wrong(folder: Path) -> None:
    """Whatever has a package's own name is that package."""
    for path in folder.glob("*.conda"):
        assert path.read_bytes() == FILES[path.name]


# Faults ----------------------------------------------------------------------------------------------------------


def times(number: int, fault: Fault) -> Fault:
    """The fault for the first `number` requests of each file."""
    counts: dict[str, int] = {}

    def limited(handler: Handler, content: bytes, start: int) -> bool:
        counts[handler.path] = counts.get(handler.path, 0) + 1
        if counts[handler.path] > number:
            return False
        return fault(handler, content, start)

    return limited


def reset(handler: Handler, content: bytes, start: int) -> bool:
    length = random.Random(len(content) + start).randrange(len(content) - start)
    handler.send_part(content, start, start + length)
    # SO_LINGER 0: a reset, not an end
    handler.connection.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    return True


def truncate(handler: Handler, content: bytes, start: int) -> bool:
    handler.send_part(content, start, start + (len(content) - start) // 2)
    return True


def advance_a_byte(handler: Handler, content: bytes, start: int) -> bool:
    """Each time less than a byte further: it never gets there."""
    return truncate(handler, content[: start + 1], start)


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
    status = 206 if start else 200
    handler.answer(status, bytes(len(content) - start), start, len(content))
    return True


def too_long(handler: Handler, content: bytes, start: int) -> bool:
    handler.answer(200, content + b"more")
    return True


def loop(handler: Handler, content: bytes, start: int) -> bool:
    handler.answer(302, b"", Location=handler.path)
    return True


def half_missing(handler: Handler, content: bytes, start: int) -> bool:
    """A mirror that lacks half of the files and lies about the rest."""
    if len(content) % 14_000 < 7_000:
        handler.answer(404, b"")
        return True
    return wrong_bytes(handler, content, start)


def without_password(handler: Handler, content: bytes, start: int) -> bool:
    if "Authorization" in handler.headers:
        return False
    handler.answer(401, b"")
    return True
