"""The RECORD of a wheel comes from the end of the archive, and nothing that a server sends is without a limit."""

from __future__ import annotations

import hashlib
import io
import random
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, Iterator

import pytest
import requests
from lockedenv.errors import Stop
from lockedenv.lock import wheel_files
from lockedenv.lock.wheel_files import WheelFile, fetch_record, fetch_record_digests
from lockedenv.spec.wheel_record import record_digest

RECORD = "pack/__init__.py,sha256=aaa,10\npack-1.dist-info/RECORD,,\n"


def make_wheel(records: int = 1) -> bytes:
    """A wheel of about 400 kB with that many RECORD files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("pack-1.dist-info/METADATA", "Name: pack\n")
        for number in range(records):
            archive.writestr(f"pack-{number + 1}.dist-info/RECORD", RECORD)
        archive.writestr("pack/data.bin", random.Random(0).randbytes(400_000))
    return content.getvalue()


class Index:
    """A server with one wheel. `ranges` says whether it knows range requests; `sent` counts the bytes."""

    def __init__(self) -> None:
        self.wheel = make_wheel()
        self.ranges = True
        self.change: Callable[[bytes], bytes] = lambda body: body
        self.sent = 0
        index = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                index.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *args: None  # type: ignore[method-assign]  # broken off
        self.url = f"http://127.0.0.1:{self.server.server_port}/pack-1-py3-none-any.whl"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", handler.headers.get("Range", ""))
        first = 0
        last = len(self.wheel) - 1
        if match and self.ranges:
            if not match[1]:
                first = max(0, len(self.wheel) - int(match[2]))
            else:
                first = int(match[1])
                last = int(match[2])
        body = self.change(self.wheel[first : last + 1])
        handler.send_response(206 if match and self.ranges else 200)
        handler.send_header("Content-Range", f"bytes {first}-{last}/{len(self.wheel)}")
        handler.end_headers()
        self.sent += len(body)
        handler.wfile.write(body)

    def file(self) -> WheelFile:
        return WheelFile(
            self.url, hashlib.sha256(self.wheel).hexdigest(), len(self.wheel)
        )


@pytest.fixture
def index() -> Iterator[Index]:
    index = Index()
    threading.Thread(
        target=index.server.serve_forever, args=(0.02,), daemon=True
    ).start()
    yield index
    index.server.shutdown()
    index.server.server_close()


def test_a_record_is_read_without_fetching_the_wheel(index: Index) -> None:
    assert fetch_record(requests.Session(), index.file()) == RECORD
    assert index.sent < len(index.wheel) / 2


def test_an_index_without_ranges_sends_the_whole_wheel(index: Index) -> None:
    index.ranges = False
    assert fetch_record(requests.Session(), index.file()) == RECORD


def test_many_wheels_at_once(index: Index) -> None:
    wheel = index.file()
    wheels = [WheelFile(f"{wheel.url}?{n}", f"{n:064x}", wheel.size) for n in range(20)]
    digests = fetch_record_digests(wheels)
    assert len(digests) == 20
    assert set(digests.values()) == {record_digest(RECORD)}


def test_a_wheel_on_this_disk(tmp_path: Path) -> None:
    path = tmp_path / "pack-1-py3-none-any.whl"
    path.write_bytes(make_wheel())
    sha256 = hashlib.sha256(make_wheel()).hexdigest()
    for url in (str(path), path.as_uri()):
        assert fetch_record(requests.Session(), WheelFile(url, sha256, 0)) == RECORD
        with pytest.raises(Stop, match="is another file than the index says"):
            fetch_record(requests.Session(), WheelFile(url, "0" * 64, 0))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda body: body + b"x", "sends"),
        (lambda body: body[:-1], "sends|another range"),
        (lambda body: bytes(len(body)), "not a wheel|has not its hash"),
    ],
    ids=["too long", "too short", "other content"],
)
def test_another_file_than_the_index_promised_is_refused(
    ranges: bool, change: Callable[[bytes], bytes], message: str, index: Index
) -> None:
    index.ranges = ranges
    index.change = change
    with pytest.raises(Stop, match=message):
        fetch_record(requests.Session(), index.file())


def test_an_answer_without_end_is_broken_off(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_files, "MAX_TRANSFER", 1 << 18)
    index.change = lambda body: body * 1000
    with pytest.raises(Stop, match="more than it was asked for"):
        fetch_record(requests.Session(), index.file())


@pytest.mark.parametrize("records", [0, 2])
def test_a_wheel_without_exactly_one_record_is_refused(
    records: int, index: Index
) -> None:
    index.wheel = make_wheel(records)
    with pytest.raises(Stop, match=f"it has {records} RECORD files"):
        fetch_record(requests.Session(), index.file())


def test_a_server_that_fails_is_named_with_the_file() -> None:
    wheel = WheelFile("http://127.0.0.1:9/pack-1-py3-none-any.whl", "0" * 64, 1)
    with pytest.raises(
        Stop, match="pack-1-py3-none-any.whl: its RECORD cannot be read"
    ):
        fetch_record(requests.Session(), wheel)
