"""Fetches files by sha256: several at a time, resumed, retried, from mirrors first; nothing wrong is ever kept.

curl does the transfers. A file has its own name only after its hash was right; until then it is NAME.part, which the
next attempt goes on with. Whoever fetches into a folder holds its lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Callable, Dict, List
from urllib.parse import urlsplit

from lockedenv.console import Stop, redact
from lockedenv.installed import hashes
from lockedenv.machine import free_bytes, size_text
from lockedenv.process import holding, started

ROUNDS = 8  # attempts of the whole list; the waits between them grow from 1 s to 30 s: two minutes of outage are survived
CURL = (
    "curl --disable --config - --parallel --parallel-max 8 --fail --location --continue-at - --max-redirs 5 "
    "--connect-timeout 10 --silent --no-progress-meter --speed-limit 1000 --proto =http,https,file --proto-redir =http,https "
    # One retry of curl's own, because it honours Retry-After; everything else is retried by the rounds below.
    "--retry 1 --retry-max-time 60 --write-out %{filename_effective}\\t%{http_code}\\t%{exitcode}\\t%{errormsg}\\n"
).split(" ")


class FetchError(Stop):
    """Some files could not be had; the message names them, why, and what to do."""


@dataclass
class Item:
    """A file to fetch. `size` in bytes, 0 if unknown; `sources` are tried in order, and again from the first."""

    name: str
    sha256: str
    size: int
    sources: List[str]
    problems: List[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        return self.sources[len(self.problems) % len(self.sources)]


def address(base: str, url: str) -> str:
    """A channel's file on a mirror: the mirror's address, then channel/subdir/file."""
    return base.rstrip("/") + "/" + "/".join(urlsplit(url).path.split("/")[-3:])


def missing_of(items: List[Item], folder: Path) -> List[Item]:
    """The items that are not in the folder, whole and right; a wrong one is removed."""
    has = hashes([folder / item.name for item in items])
    lacking = [item for item in items if has[folder / item.name] != item.sha256]
    for item in lacking:
        if (folder / item.name).exists():
            (folder / item.name).unlink()
    return lacking


def _round(items: List[Item], folder: Path, show: Callable[[], None]) -> None:
    """One attempt at every item; what failed has one more entry in its `problems`."""
    # The addresses go to curl's standard input: they may hold a token, and `ps` shows arguments.
    config = "".join(f'url = "{item.source}"\noutput = "{folder / item.name}.part"\n' for item in items)
    command = [*CURL, "--speed-time", os.environ.get("MAXIMALCAI_STALL_SECONDS", "20")]  # given up and resumed after so many
    with started(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as process, ThreadPoolExecutor(1) as pool:
        said = pool.submit(process.communicate, config.encode())
        while not said.done():
            show()
            time.sleep(0.05)
    lines = [line.split("\t") for line in said.result()[0].decode(errors="replace").splitlines()]
    answers = {Path(fields[0]).name: fields[1:] for fields in lines}
    parts = hashes([folder / f"{item.name}.part" for item in items])
    for item in items:
        _settle(item, folder / f"{item.name}.part", parts, answers.get(f"{item.name}.part", ["", "", "no answer from curl"]))


def _settle(item: Item, part: Path, parts: Dict[Path, str], answer: List[str]) -> None:
    """Keeps a part that is whole and right, removes one that can only be wrong, leaves one that can be resumed."""
    # curl before 7.75 (Ubuntu 20.04, Debian 11) knows no exitcode and no errormsg, and leaves both empty.
    status, code, message = (answer + ["", "", ""])[:3]
    if parts[part] == item.sha256:
        part.replace(part.with_suffix(""))
        return
    has = part.stat().st_size if part.exists() else -1
    host = redact(urlsplit(item.source).netloc or item.source).rsplit("@", 1)[-1]
    if has >= 0 and (has >= item.size if item.size else code == "0"):
        item.problems.append(f"{host} sent {has} bytes of sha256 {parts[part][:16]}..., not {item.sha256[:16]}...")
        part.unlink()
        return
    if has >= 0 and (code in ("33", "36") or status == "416"):  # the server cannot resume: start this file afresh
        part.unlink()
    http = code == "22" or (not code and status >= "400")
    item.problems.append(f"{host}: HTTP {status}" if http else f"{host}: {redact(message) or f'curl {code or status}'}")


def fetch(items: List[Item], folder: Path, say: Callable[[str], None], quiet: bool = False) -> int:
    """Brings every item into the folder, whole and right. Gives the bytes that were fetched.

    Raises FetchError when some cannot be had after all rounds, when the disk is full, or when curl is missing. What was
    fetched stays, also what is in part, for the next run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with holding(folder.with_name(f"{folder.name}.lock"), f"the cache {folder}"):
        return _fetch(items, folder, say, quiet)


def _fetch(items: List[Item], folder: Path, say: Callable[[str], None], quiet: bool) -> int:
    show = Progress(items, folder, quiet)
    fetched = missing = missing_of(items, folder)
    if missing and not shutil.which("curl"):
        raise FetchError("curl is not installed; install it with: apt-get install curl")
    wait = pause = float(os.environ.get("MAXIMALCAI_RETRY_SECONDS", "1"))
    for attempt in range(ROUNDS if missing else 0):
        if attempt:
            worst = missing[0].problems[-1]
            say(f"{len(missing)} of {len(items)} files not yet there ({worst}); trying again in {wait:.0f} s")
            time.sleep(wait)
            wait = min(wait * 2, 30 * pause)
        _round(missing, folder, show)
        missing = [item for item in missing if not (folder / item.name).exists()]
        needed = sum(item.size for item in missing)
        if missing and free_bytes(folder) < min(needed or 1, 1 << 20):
            raise FetchError(
                f"No space left on the disk of {folder}: {size_text(needed)} are still to come, {size_text(free_bytes(folder))} "
                "are free. Free some, or name another place with --cache, and run again: what is there is kept"
            )
        if not missing:
            break
    show.end()
    if missing:
        lines = [f"{item.name}: {'; '.join(dict.fromkeys(item.problems))}" for item in missing[:5]]
        lines += [f"and {len(missing) - 5} more"] if len(missing) > 5 else []
        raise FetchError(
            f"{len(missing)} of {len(items)} files could not be fetched after {ROUNDS} attempts:\n  " + "\n  ".join(lines)
            + "\nRun the same command again: what is there is kept. If it stays so, name a mirror with --mirror URL"
        )  # fmt: skip
    return sum((folder / item.name).stat().st_size for item in fetched)


class Progress:
    """Bytes of total, rate, and what is left: one line that is overwritten on a terminal, otherwise one every 15 s."""

    def __init__(self, items: List[Item], folder: Path, quiet: bool) -> None:
        self.names, self.folder, self.quiet = [item.name for item in items], folder, quiet
        self.total = sum(item.size for item in items)
        self.started = self.shown = time.monotonic()
        self.first, self.terminal = self.bytes(), sys.stderr.isatty()

    def bytes(self) -> int:
        sizes: Dict[str, int] = {}
        with contextlib.suppress(OSError):  # another run may take something away meanwhile
            sizes.update((entry.name, entry.stat().st_size) for entry in os.scandir(self.folder))
        return sum(sizes.get(name, sizes.get(f"{name}.part", 0)) for name in self.names)

    def __call__(self) -> None:
        now = time.monotonic()
        if self.quiet or now - self.shown < (0.5 if self.terminal else 15):
            return
        self.shown, done = now, self.bytes()
        rate = (done - self.first) / (now - self.started)
        left = f", {(self.total - done) / rate:.0f} s left" if rate and self.total > done else ""
        text = f"  {size_text(done)} of {size_text(max(self.total, done))}, {size_text(rate)}/s{left}"
        print(f"\r\033[K{text}" if self.terminal else text, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal and not self.quiet:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
