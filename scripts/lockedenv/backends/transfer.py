"""One transfer by curl: into NAME.part, resumed, never beyond its limit, given up where another
source is far faster.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

from lockedenv.backends.curl import CURL
from lockedenv.errors import Stop
from lockedenv.host.disks import size_text
from lockedenv.host.process import kill, started
from lockedenv.prefix.records import file_sha256
from lockedenv.redaction import redact

_TRANSFER = (
    *CURL,
    *("--fail", "--max-redirs", "5", "--connect-timeout", "10"),
    *("--proto", "=http,https,file", "--proto-redir", "=http,https"),
    # Without a buffer the size of the part is what has come, also where curl is ended.
    *("--no-buffer", "--write-out", "%{http_code}"),
)
# One retry of curl's own, because it honours Retry-After; everything else is retried by `fetch`.
_RETRY = "--retry 1 --retry-max-time 60".split()
# curl ends a transfer that stays below this rate for the whole time of patience.
_STALLED_RATE = 1000
# A source whose rate stays below this is left for another one of which nothing is known yet: 1 GB
# would take three hours.
SLOW_RATE = 100_000
# A source is left for another one that was so many times as fast.
FAR_FASTER = 10
# A smaller transfer is over before its rate says anything about its source.
_TELLING_BYTES = 1_000_000
_CANNOT_RESUME = (
    33,
    36,
)  # curl: the server knows no ranges; the part is longer than the file


def read_seconds(variable: str, default: float) -> float:
    """The seconds that an environment variable gives. Raises Stop for one that is no number."""
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        return float(text)
    except ValueError:
        raise Stop(f"{variable}={text}: give a number of seconds") from None


def read_patience() -> float:
    """The seconds after which a transfer without progress is given up."""
    return max(1.0, read_seconds("MAXIMALCAI_STALL_SECONDS", 20))


@dataclass(frozen=True)
class FileSource:
    """An address of a file. It may hold a password, so only `host` is shown."""

    address: str

    @property
    def host(self) -> str:
        shown = redact(urlsplit(self.address).netloc or self.address)
        return shown.rsplit("@", 1)[-1]


class SourceRates:
    """What is known of the rates of the sources, in bytes a second, by host. Used by several
    threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._best: dict[str, float] = {}
        self._left: set[str] = set()

    def note(self, host: str, rate: float) -> None:
        with self._lock:
            self._best[host] = max(rate, self._best.get(host, 0.0))

    def note_left(self, host: str, rate: float) -> None:
        """Notes that a source was given up for being slow."""
        self.note(host, rate)
        with self._lock:
            self._left.add(host)

    def rank(self, host: str) -> float:
        """0 for a source that was not given up; more, the slower it was."""
        with self._lock:
            if host not in self._left:
                return 0.0
            return 1.0 / (1.0 + self._best[host])

    def is_far_below(self, rate: float, others: list[str]) -> bool:
        """Whether a rate is far below what another host gives, or so low that an unknown one is
        worth a try.
        """
        with self._lock:
            for host in others:
                known = self._best.get(host)
                if known is None and rate < SLOW_RATE:
                    return True
                if known is not None and rate * FAR_FASTER < known:
                    return True
        return False


class TransferEnding(Enum):
    """How a transfer ended."""

    RIGHT = "the file is there, with its hash"
    FAILED = "the source failed, or sent something else"
    SLOW = "the source was left for another one"


@dataclass(frozen=True)
class TransferOutcome:
    ending: TransferEnding
    problem: str = ""


@dataclass(frozen=True)
class Transfer:
    """A file to be brought from one source.

    `size` in bytes is the locked one, 0 where none is locked; `limit` is what may be written at
    most. `other_hosts` can give the file too.
    """

    part: Path
    target: Path
    sha256: str
    size: int
    limit: int
    source: FileSource
    other_hosts: tuple[str, ...] = ()

    def run(self, rates: SourceRates) -> TransferOutcome:
        """Brings the file. What is right gets its name, over whatever had it; a part that can be
        resumed stays.
        """
        if self.part.is_symlink():  # curl would write through it
            self.part.unlink()
        if self.size and file_size(self.part) >= self.size:  # of a run that was killed
            if self._settle(file_sha256(self.part)):
                return TransferOutcome(TransferEnding.RIGHT)
        command = [*_TRANSFER, *_RETRY, "--continue-at", "-"]
        command += ["--speed-limit", str(_STALLED_RATE)]
        command += ["--speed-time", str(round(read_patience()))]
        ended = _run_curl(
            command,
            self.source.address,
            self.part,
            self.limit,
            _SlownessWatch(self, rates),
        )
        if ended.too_slow:
            return TransferOutcome(
                TransferEnding.SLOW, f"{self.source.host}: {ended.problem}"
            )
        return self._judge(ended)

    def _judge(self, ended: _Ended) -> TransferOutcome:
        """The outcome of a transfer that curl has ended; a whole part is settled."""
        curl_problem = f"{self.source.host}: {ended.problem}"
        part_size = file_size(self.part)
        refused_range = ended.status in _CANNOT_RESUME or ended.http_status == "416"
        is_over = ended.status == 0 or refused_range or part_size >= self.limit
        if part_size < 0 or not is_over:
            return TransferOutcome(TransferEnding.FAILED, curl_problem)
        part_sha256 = file_sha256(self.part)
        if self._settle(part_sha256):
            return TransferOutcome(TransferEnding.RIGHT)
        if refused_range:
            return TransferOutcome(TransferEnding.FAILED, curl_problem)
        wrong = self._wrong_content_text(part_size, part_sha256)
        return TransferOutcome(TransferEnding.FAILED, wrong)

    def _wrong_content_text(self, part_size: int, part_sha256: str) -> str:
        """What the source sent instead of the locked file."""
        if part_size >= self.limit and not self.size:
            return (
                f"{self.source.host} sent more than {size_text(self.limit)}, the limit for a file "
                "of unknown size"
            )
        return (
            f"{self.source.host} sent {part_size} bytes of sha256 {part_sha256[:16]}..., not "
            f"{self.sha256[:16]}..."
        )

    def _settle(self, part_sha256: str) -> bool:
        """Gives a part that is right its name, and removes one that is wrong; says which."""
        if part_sha256 == self.sha256:
            self.part.replace(self.target)
            return True
        self.part.unlink()
        return False


@dataclass(frozen=True)
class _Ended:
    """How curl ended. `http_status` is its three digits, 000 where there was no answer."""

    status: int
    http_status: str
    problem: str
    too_slow: bool = False


class _SlownessWatch:
    """Measures the rate of a transfer, window by window."""

    def __init__(self, transfer: Transfer, rates: SourceRates) -> None:
        self._transfer = transfer
        self._rates = rates
        self._window = read_patience() / 2
        self._begun = time.monotonic()
        self._first = max(0, file_size(transfer.part))
        self._since = self._begun
        self._bytes = self._first

    def find_slowness(self) -> float | None:
        """The rate of the window that has just ended, if the source is to be left for it."""
        now = time.monotonic()
        size = max(0, file_size(self._transfer.part))
        if size == self._first:  # nothing has come yet, which curl's own limit judges
            self._since = now
        if now - self._since < self._window:
            return None
        rate = max(0, size - self._bytes) / (now - self._since)
        self._since = now
        self._bytes = size
        if not self._rates.is_far_below(rate, list(self._transfer.other_hosts)):
            self._rates.note(self._transfer.source.host, rate)
            return None
        self._rates.note_left(self._transfer.source.host, rate)
        return rate

    def note_whole(self) -> None:
        """Notes the rate of the whole transfer, if it was large enough to tell."""
        moved = file_size(self._transfer.part) - self._first
        if moved >= _TELLING_BYTES:
            self._rates.note(
                self._transfer.source.host, moved / (time.monotonic() - self._begun)
            )


def _run_curl(
    command: list[str],
    address: str,
    output: Path,
    limit: int,
    watch: _SlownessWatch | None = None,
) -> _Ended:
    """Runs curl for one address into one file of at most `limit` bytes."""
    # To curl's standard input: an address may hold a token, and `ps` shows arguments. Its escapes
    # in a quoted word are JSON's.
    config = f"url = {_quote(address)}\noutput = {_quote(str(output))}\n"
    rate = None
    pipe = subprocess.PIPE
    with started(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/") as process:
        # curl waits for its configuration, so it has written nothing yet.
        limit_file_size(process.pid, limit)
        pending: bytes | None = config.encode(errors="surrogateescape")
        while True:
            try:
                out, error = process.communicate(pending, timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                pending = None
            if watch and rate is None:
                rate = watch.find_slowness()
                if rate is not None:
                    kill(process)
    if rate is not None:
        return _Ended(
            process.returncode, "000", f"only {size_text(rate)}/s", too_slow=True
        )
    if watch:
        watch.note_whole()
    http_status = out.decode(errors="replace")[-3:]
    # Some of curl's errors have several lines, of which the first says what is wrong.
    said = error.decode(errors="replace").rpartition(f"curl: ({process.returncode}) ")[
        2
    ]
    lines = said.strip().splitlines()
    problem = redact(lines[0]) if lines else f"curl ended with {process.returncode}"
    if process.returncode == 22:
        problem = f"HTTP {http_status}"
    return _Ended(process.returncode, http_status, problem)


def limit_file_size(process_id: int, limit: int) -> None:
    """No file that the process writes from now on gets longer than `limit` bytes: the kernel ends
    it with SIGXFSZ.
    """
    _, most = resource.prlimit(process_id, resource.RLIMIT_FSIZE)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.prlimit(process_id, resource.RLIMIT_FSIZE, (limit, limit))
    resource.prlimit(
        process_id, resource.RLIMIT_CORE, (0, 0)
    )  # SIGXFSZ would leave a core dump


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def file_size(path: Path) -> int:
    """The size of a file in bytes; -1 if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


@dataclass(frozen=True)
class Document:
    """What a server answered. `problem` is empty where `text` is the whole document; `missing`: it
    has none (404).
    """

    text: str
    problem: str = ""
    missing: bool = False


def read_document(address: str, limit: int, seconds: float) -> Document:
    """Reads a text from an address: of at most `limit` bytes, within so many seconds. Raises
    nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "document")
        command = [*_TRANSFER, "--max-time", str(round(seconds))]
        ended = _run_curl(command, address, output, limit)
        if file_size(output) >= limit:
            return Document("", f"it sent more than {size_text(limit)}")
        if ended.status != 0:
            return Document("", ended.problem, missing=ended.http_status == "404")
        if not output.exists():  # an empty answer
            return Document("")
        return Document(output.read_text(encoding="utf-8", errors="replace"))
