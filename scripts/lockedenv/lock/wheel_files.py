"""Reads the RECORD of a wheel on a package index without fetching the wheel.

A wheel is a zip archive, whose list of contents stands at its end: two or three range requests
bring the list and the RECORD, of a gigabyte as of a kilobyte. An index that answers no range
requests sends the wheel, whole.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Iterator
from urllib.parse import unquote, urlsplit

import requests
from lockedenv.errors import Stop
from lockedenv.spec.locks import MAX_RECORD_BYTES
from lockedenv.spec.wheel_record import record_digest
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

CHUNK = (
    1 << 16
)  # bytes asked for at least; the whole list of contents of most wheels fits
MAX_TRANSFER = (
    1 << 26
)  # bytes that range requests for one wheel may bring; torch's take 4 MB
TIMEOUT = 60  # seconds without an answer
PARALLEL = 8


@dataclass(frozen=True)
class WheelFile:
    """A wheel on an index. `size` in bytes, 0 where the index does not say it."""

    url: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        return unquote(urlsplit(self.url).path.rsplit("/", 1)[-1])


@dataclass(frozen=True)
class Chunk:
    """Bytes of a file, from the position `start` on."""

    start: int
    content: bytes


class NoRanges(Exception):
    """The server answered a range request with the whole file."""


class RemoteFile(io.RawIOBase):
    """A file on a server as a readable, seekable one; what was read once is kept.

    Raises NoRanges, if the server has none, and Stop, if it fails, sends too much or another
    size than expected.
    """

    def __init__(self, session: requests.Session, wheel: WheelFile) -> None:
        self._session = session
        self._wheel = wheel
        self._chunks: dict[int, bytes] = {}
        self._position = 0
        self._transferred = 0
        tail = self._request(f"bytes=-{CHUNK}")
        self._chunks[tail.start] = tail.content
        self._size = tail.start + len(tail.content)
        if wheel.size and self._size != wheel.size:
            raise Stop(
                f"{wheel.filename}: the index sends {self._size} bytes and says {wheel.size}"
            )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = max(0, origins[whence] + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._position + size)
        data = self._between(self._position, end)
        self._position += len(data)
        return data

    def _between(self, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        for first, chunk in self._chunks.items():
            if first <= start and end <= first + len(chunk):
                return chunk[start - first : end - first]
        last = min(self._size, max(end, start + CHUNK)) - 1
        answered = self._request(f"bytes={start}-{last}")
        if answered.start != start or len(answered.content) != last + 1 - start:
            raise Stop(
                f"{self._wheel.filename}: the index answers another range than asked for"
            )
        self._chunks[start] = answered.content
        return answered.content[: end - start]

    def _request(self, ranges: str) -> Chunk:
        """The bytes of a range. Raises NoRanges, Stop."""
        headers = {"Range": ranges, "Accept-Encoding": "identity"}
        with self._session.get(
            self._wheel.url, headers=headers, timeout=TIMEOUT, stream=True
        ) as answer:
            if answer.status_code == 200:
                raise NoRanges()
            answer.raise_for_status()
            content = b""
            for part in answer.iter_content(CHUNK):
                content += part
                self._transferred += len(part)
                if self._transferred > MAX_TRANSFER:
                    raise Stop(
                        f"{self._wheel.filename}: the index sends more than it was asked for"
                    )
            # "bytes 67583-69582/69583"
            first = answer.headers["Content-Range"].split()[1].split("-")[0]
            return Chunk(int(first), content)


def record_of_archive(archive: IO[bytes], filename: str) -> str:
    """The text of the RECORD in a wheel.

    Raises Stop for an archive without exactly one, or with one that is too large.
    """
    try:
        with zipfile.ZipFile(archive) as contents:
            records = []
            for entry in contents.infolist():
                folder, _, name = entry.filename.partition("/")
                if folder.endswith(".dist-info") and name == "RECORD":
                    records.append(entry)
            if len(records) != 1 or records[0].file_size > MAX_RECORD_BYTES:
                raise Stop(
                    f"{filename}: not a wheel: it has {len(records)} RECORD files"
                )
            return contents.read(records[0]).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise Stop(f"{filename}: not a wheel: {error}") from None


def fetch_record(session: requests.Session, wheel: WheelFile) -> str:
    """The text of a wheel's RECORD, from the index. Raises Stop."""
    try:
        if "://" not in wheel.url or wheel.url.startswith("file://"):
            return _record_of_local_wheel(wheel)
        try:
            remote: Any = RemoteFile(session, wheel)
            return record_of_archive(remote, wheel.filename)
        except NoRanges:
            return _record_of_whole_wheel(session, wheel)
    except (requests.RequestException, OSError, KeyError, ValueError) as error:
        raise Stop(
            f"{wheel.filename}: its RECORD cannot be read from the index: {error}"
        ) from None


def _record_of_local_wheel(wheel: WheelFile) -> str:
    """As fetch_record, where the index is a folder: by the wheel's hash."""
    path = Path(
        unquote(wheel.url[len("file://") :] if "://" in wheel.url else wheel.url)
    )
    with path.open("rb") as archive:
        digest = hashlib.sha256()
        for part in iter(lambda: archive.read(CHUNK), b""):
            digest.update(part)
        if digest.hexdigest() != wheel.sha256:
            raise Stop(f"{path}: is another file than the index says, by its hash")
        return record_of_archive(archive, wheel.filename)


def _record_of_whole_wheel(session: requests.Session, wheel: WheelFile) -> str:
    """As fetch_record, for an index without range requests: the whole wheel, by its hash."""
    if not wheel.size:
        raise Stop(
            f"{wheel.filename}: the index has no range requests and does not say its size"
        )
    digest = hashlib.sha256()
    received = 0
    with tempfile.TemporaryFile() as archive:
        with session.get(wheel.url, timeout=TIMEOUT, stream=True) as answer:
            answer.raise_for_status()
            for part in answer.iter_content(CHUNK):
                received += len(part)
                if received > wheel.size:
                    break
                digest.update(part)
                archive.write(part)
        if received != wheel.size or digest.hexdigest() != wheel.sha256:
            raise Stop(
                f"{wheel.filename}: the index sends a file that has not its hash"
            )
        return record_of_archive(archive, wheel.filename)


def fetch_record_digests(wheels: list[WheelFile]) -> dict[str, str]:
    """sha256 of each wheel -> the digest of its RECORD. Raises Stop for one that cannot be read."""
    session = requests.Session()
    retry = Retry(
        total=4, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504)
    )
    adapter = HTTPAdapter(max_retries=retry, pool_maxsize=PARALLEL)
    session.mount("https://", adapter)
    session.mount("http://", adapter)

    def fetch(wheel: WheelFile) -> str:
        return record_digest(fetch_record(session, wheel))

    with ThreadPoolExecutor(PARALLEL) as pool:
        digests: Iterator[str] = pool.map(fetch, wheels)
        return {wheel.sha256: digest for wheel, digest in zip(wheels, digests)}
