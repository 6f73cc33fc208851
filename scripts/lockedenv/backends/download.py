"""Fetches files by sha256: several at a time, resumed, retried, from mirrors first; nothing wrong
is ever kept.

A file has its own name once its hash is right. Until then it is NAME.part, which the next attempt
goes on with. A file of that name with another hash stays until its successor is there: the lock may
be the one that is wrong.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable
from urllib.parse import urlsplit

from lockedenv.backends.cache import note_archive_hashes
from lockedenv.backends.file_names import require_plain_name
from lockedenv.backends.transfer import (
    FileSource,
    SourceRates,
    Transfer,
    TransferEnding,
    file_size,
    read_seconds,
)
from lockedenv.errors import Stop
from lockedenv.host.disks import free_bytes, size_text
from lockedenv.host.locking import holding
from lockedenv.prefix.records import hashes
from lockedenv.reporter import Reporter

# Attempts of the whole list; the waits between them grow from 1 s to 30 s: two minutes of outage
# are survived.
ROUNDS = 8
PARALLEL = 8
# The largest file of all locks and of PyPI's own limits for torch has 1.6 GB.
UNKNOWN_SIZE_LIMIT = 4_000_000_000
_SHOWN_FILES = 5


class FetchError(Stop):
    """Some files could not be had; the message names them, why, and what to do.

    `first`: the first file and its problem, or what prevents the whole fetch.
    """

    def __init__(self, message: str, first: str = "") -> None:
        super().__init__(message)
        self.first = first or message


@dataclass(frozen=True)
class Item:
    """A file to fetch. `sources` are addresses, tried in order, and again from the first.

    `size` in bytes is the locked one, 0 where the lock has none; then `limit` bounds the transfer.
    Raises Stop for a name that is none of a file in the folder.
    """

    name: str
    sha256: str
    size: int
    sources: list[str]
    limit: int = UNKNOWN_SIZE_LIMIT

    def __post_init__(self) -> None:
        require_plain_name(self.name)

    @property
    def most_bytes(self) -> int:
        if self.size:
            return self.size
        return self.limit


def address(base: str, url: str) -> str:
    """A channel's file on a mirror: the mirror's address, then channel/subdir/file."""
    return base.rstrip("/") + "/" + "/".join(urlsplit(url).path.split("/")[-3:])


@dataclass(eq=False)
class _Missing:
    """An item that is not there yet, and what went wrong so far."""

    item: Item
    folder: Path
    failures: Counter[str] = field(default_factory=Counter)
    times_left: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def part(self) -> Path:
        return self.folder / f"{self.item.name}.part"

    def problem_text(self) -> str:
        """The file's name, and each different problem that it had."""
        different = dict.fromkeys(self.problems)
        return f"{self.item.name}: {'; '.join(different)}"

    def choose_source(self, rates: SourceRates) -> FileSource:
        """The source that failed least often; of those, one that was not left for being slow; of
        those, the first.
        """
        sources = [FileSource(text) for text in self.item.sources]
        return min(
            sources,
            key=lambda source: (self.failures[source.address], rates.rank(source.host)),
        )

    def other_hosts(self, chosen: FileSource) -> tuple[str, ...]:
        """The hosts for which the chosen source may be left: those that have failed no more often.

        None once sources were left often enough: a file is not to wander between two slow ones.
        """
        if self.times_left >= 2 * len(self.item.sources):
            return ()
        allowed = self.failures[chosen.address]
        hosts = []
        for text in self.item.sources:
            source = FileSource(text)
            if source.host != chosen.host and self.failures[text] <= allowed:
                hosts.append(source.host)
        return tuple(hosts)

    def attempt(self, number: int, rates: SourceRates) -> bool:
        """Asks each source that has failed no more than `number` times. Says whether the file is
        there.
        """
        while True:
            source = self.choose_source(rates)
            if self.failures[source.address] > number:
                return False
            transfer = Transfer(
                part=self.part,
                target=self.folder / self.item.name,
                sha256=self.item.sha256,
                size=self.item.size,
                limit=self.item.most_bytes,
                source=source,
                other_hosts=self.other_hosts(source),
            )
            outcome = transfer.run(rates)
            if outcome.ending is TransferEnding.RIGHT:
                return True
            self.problems.append(outcome.problem)
            if outcome.ending is TransferEnding.SLOW:
                self.times_left += 1
            else:
                self.failures[source.address] += 1


def fetch(
    items: list[Item],
    folder: Path,
    reporter: Reporter,
    rounds: int = ROUNDS,
    has: Callable[[Iterable[Path]], dict[Path, str]] = hashes,
) -> int:
    """Brings every item into the folder, whole and right; gives the bytes fetched. They stay, also
    in part.

    `has` gives the sha256 of files that are there. Raises FetchError when some cannot be had after
    all rounds, when the disk is full, or when curl is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with holding(
        folder.with_name(f"{folder.name}.lock"), f"the cache {folder}", reporter.warn
    ):
        there = has([folder / item.name for item in items])
        wanted = []
        for item in items:
            if there.get(folder / item.name) != item.sha256:
                wanted.append(_Missing(item, folder))
        if wanted:
            _fetch_missing(wanted, len(items), folder, reporter, rounds)
        note_archive_hashes({folder / item.name: item.sha256 for item in items})
        return sum((folder / missing.item.name).stat().st_size for missing in wanted)


def _fetch_missing(
    wanted: list[_Missing],
    item_count: int,
    folder: Path,
    reporter: Reporter,
    rounds: int,
) -> None:
    if not shutil.which("curl"):
        raise FetchError("curl is not installed; install it with: apt-get install curl")
    progress = FetchProgress(wanted)
    rates = SourceRates()
    missing = wanted
    pause = read_seconds("MAXIMALCAI_RETRY_SECONDS", 1)
    longest_wait = 30 * pause
    for number in range(rounds):
        if number:
            problem = missing[0].problems[-1]
            reporter.say(
                f"{len(missing)} of {item_count} files not yet there ({problem}); "
                f"trying again in {pause:.0f} s"
            )
            time.sleep(pause)
            pause = min(pause * 2, longest_wait)
        _attempt_all(missing, number, rates, progress, reporter)
        attempted = missing
        missing = []
        for file in attempted:
            if file not in progress.arrived:
                missing.append(file)
        if not missing:
            break
        _refuse_full_disk(missing, folder)
    if missing:
        raise FetchError(
            _failure_text(missing, item_count, rounds), missing[0].problem_text()
        )


def _attempt_all(
    missing: list[_Missing],
    number: int,
    rates: SourceRates,
    progress: FetchProgress,
    reporter: Reporter,
) -> None:
    """One attempt at every file, several at a time; `progress` learns which have arrived."""
    pool = ThreadPoolExecutor(PARALLEL)
    try:
        running: dict[Future[bool], _Missing] = {}
        for file in missing:
            running[pool.submit(file.attempt, number, rates)] = file
        while running:
            done, _ = wait(running, timeout=0.05, return_when=FIRST_COMPLETED)
            for future in done:
                file = running.pop(future)
                if future.result():
                    progress.arrived.append(file)
            reporter.progress(progress.text)
    finally:
        pool.shutdown(cancel_futures=True)


def _refuse_full_disk(missing: list[_Missing], folder: Path) -> None:
    needed = sum(file.item.size for file in missing)
    free = free_bytes(folder)
    if free < min(max(needed, 1), 1 << 20):
        raise FetchError(
            f"No space left on the disk of {folder}: {size_text(needed)} are still to come, "
            f"{size_text(free)} are free. Free some, or name another place with --cache, and "
            "run again: what is there is kept"
        )


def _failure_text(missing: list[_Missing], item_count: int, rounds: int) -> str:
    lines = [
        f"{len(missing)} of {item_count} files could not be fetched after {rounds} attempts:"
    ]
    for file in missing[:_SHOWN_FILES]:
        lines.append(f"  {file.problem_text()}")
    if len(missing) > _SHOWN_FILES:
        lines.append(f"  and {len(missing) - _SHOWN_FILES} more")
    lines.append(
        "Run the same command again: what is there is kept. If it stays so, name a mirror with "
        "--mirror URL"
    )
    return "\n".join(lines)


class FetchProgress:
    """The progress of a fetch: bytes of the total, the rate, and the seconds that are left."""

    def __init__(self, wanted: list[_Missing]) -> None:
        self.arrived: list[_Missing] = []
        self._wanted = wanted
        self._total = sum(file.item.size for file in wanted)
        self._began = time.monotonic()
        self._first = self._count_bytes()

    def text(self) -> str:
        done = self._count_bytes()
        rate = (done - self._first) / (time.monotonic() - self._began)
        text = f"{size_text(done)} of {size_text(max(self._total, done))}, {size_text(rate)}/s"
        if rate and self._total > done:
            text += f", {(self._total - done) / rate:.0f} s left"
        return text

    def _count_bytes(self) -> int:
        arrived = set(self.arrived)
        count = 0
        for file in self._wanted:
            path = file.part
            if file in arrived:
                path = file.folder / file.item.name
            count += max(0, file_size(path))
        return count
