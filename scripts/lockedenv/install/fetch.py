"""Fetches files by sha256: several at a time, resumed, retried, from mirrors first; nothing wrong is ever kept.

curl does the transfers. A file is whole in its folder under its own name only after its hash was right; until then it is
NAME.part, which the next attempt goes on with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List
from urllib.parse import urlsplit

from lockedenv.console import Stop, redact
from lockedenv.installed import file_sha256
from lockedenv.machine import free_bytes, size_text

PARALLEL = 8
ROUNDS = 8  # attempts of the whole list; the waits between them grow from 1 s to 30 s: two minutes of outage are survived
STALL = 20  # seconds under 1 kB/s after which a transfer is given up and resumed


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


def verified(items: List[Item], folder: Path) -> List[Item]:
    """The items that are in the folder, whole and right; a wrong one is removed."""
    there = [item for item in items if (folder / item.name).exists()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(pool.map(file_sha256, [folder / item.name for item in there]))
    for item, sha in zip(there, hashes):
        if sha != item.sha256:
            (folder / item.name).unlink()
    return [item for item, sha in zip(there, hashes) if sha == item.sha256]


def _config(items: List[Item], folder: Path) -> str:
    """curl's instructions, given on its standard input: an address may hold a token, and `ps` shows arguments."""
    lines = []
    for item in items:
        lines += [f'url = "{item.source}"', f'output = "{folder / item.name}.part"']
    return "\n".join(lines) + "\n"


_CURL = [
    *("curl", "--disable", "--config", "-", "--parallel", "--parallel-max", str(PARALLEL), "--fail", "--location"),
    *("--continue-at", "-", "--max-redirs", "5", "--connect-timeout", "10", "--silent", "--no-progress-meter"),
    *("--speed-limit", "1000", "--proto", "=http,https,file", "--proto-redir", "=http,https"),
    # One retry of curl's own, because it honours Retry-After; everything else is retried by the rounds below.
    *("--retry", "1", "--retry-max-time", "60"),
    *("--write-out", "%{filename_effective}\\t%{http_code}\\t%{exitcode}\\t%{errormsg}\\n"),
]


def _round(items: List[Item], folder: Path, show: Callable[[], None]) -> None:
    """One attempt at every item; what failed has one more entry in its `problems`."""
    stall = os.environ.get("MAXIMALCAI_STALL_SECONDS", str(STALL))
    command = [*_CURL, "--speed-time", stall]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(process.communicate, _config(items, folder))
        try:
            while not said.done():
                show()
                time.sleep(0.05)
        except BaseException:
            process.kill()
            raise
    lines = [line.split("\t") for line in said.result()[0].splitlines()]
    answers = {Path(fields[0]).name: fields for fields in lines if len(fields) == 4}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda item: _settle(item, folder, answers.get(f"{item.name}.part", [])), items))


def _settle(item: Item, folder: Path, answer: List[str]) -> None:
    """Keeps a part that is whole and right, removes one that can only be wrong, leaves one that can be resumed."""
    part = folder / f"{item.name}.part"
    status, code, message = (answer[1:] + ["", "", "no answer from curl"])[:3] if answer else ("", "", "curl was stopped")
    has = part.stat().st_size if part.exists() else -1
    sha = file_sha256(part) if has >= 0 and (has >= item.size if item.size else code in ("0", "22", "33", "36")) else ""
    if sha == item.sha256:
        part.replace(folder / item.name)
        return
    host = redact(urlsplit(item.source).netloc or item.source).rsplit("@", 1)[-1]
    if sha and (code == "0" or (item.size and has >= item.size)):
        item.problems.append(f"{host} sent {has} bytes of sha256 {sha[:16]}..., not {item.sha256[:16]}...")
        part.unlink()
        return
    if code in ("33", "36") or status == "416":  # the server cannot resume: start this file afresh
        part.unlink()
    item.problems.append(f"{host}: HTTP {status}" if code == "22" else f"{host}: {redact(message) or f'curl {code}'}")


def fetch(items: List[Item], folder: Path, say: Callable[[str], None], quiet: bool = False) -> int:
    """Brings every item into the folder, whole and right. Gives the bytes that were fetched.

    Raises FetchError when some cannot be had after all rounds, when the disk is full, or when curl is missing. What was
    fetched stays, also what is in part, for the next run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    show = Progress(items, folder, quiet)
    missing = _without(items, verified(items, folder))
    if missing and not shutil.which("curl"):
        raise FetchError("curl is not installed; install it with: apt-get install curl")
    fetched, wait = missing, 1.0
    pause = float(os.environ.get("MAXIMALCAI_RETRY_SECONDS", "1"))
    for attempt in range(ROUNDS):
        if not missing:
            break
        if attempt:
            worst = missing[0].problems[-1]
            say(f"{len(missing)} of {len(items)} files not yet there ({worst}); trying again in {wait * pause:.0f} s")
            time.sleep(wait * pause)
            wait = min(wait * 2, 30)
        _round(missing, folder, show)
        missing = [item for item in missing if not (folder / item.name).exists()]
        needed = sum(item.size for item in missing)
        if missing and free_bytes(folder) < min(needed or 1, 1 << 20):
            raise FetchError(
                f"No space left on the disk of {folder}: {size_text(needed)} are still to come, {size_text(free_bytes(folder))} "
                "are free. Free some, or name another place with --cache, and run again: what is there is kept"
            )
    show.end()
    if missing:
        lines = [f"{item.name}: {'; '.join(dict.fromkeys(item.problems))}" for item in missing[:5]]
        more = f"\n  and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FetchError(
            f"{len(missing)} of {len(items)} files could not be fetched after {ROUNDS} attempts:\n  "
            + "\n  ".join(lines)
            + more
            + "\nRun the same command again: what is there is kept. If it stays so, name a mirror with --mirror URL"
        )
    return sum((folder / item.name).stat().st_size for item in fetched)


def _without(items: List[Item], others: List[Item]) -> List[Item]:
    names = {item.name for item in others}
    return [item for item in items if item.name not in names]


class Progress:
    """Bytes of total, rate, and what is left: one line that is overwritten on a terminal, otherwise one every 15 s."""

    def __init__(self, items: List[Item], folder: Path, quiet: bool) -> None:
        self.items, self.folder, self.quiet = items, folder, quiet
        self.total = sum(item.size for item in items)
        self.started = self.shown = time.monotonic()
        self.first = self.bytes()
        self.terminal = sys.stderr.isatty()

    def bytes(self) -> int:
        sizes: Dict[str, int] = {}
        try:
            for entry in os.scandir(self.folder):
                sizes[entry.name] = entry.stat().st_size
        except OSError:
            pass
        return sum(sizes.get(item.name, sizes.get(f"{item.name}.part", 0)) for item in self.items)

    def __call__(self) -> None:
        now = time.monotonic()
        if self.quiet or now - self.shown < (0.5 if self.terminal else 15):
            return
        self.shown = now
        done = self.bytes()
        rate = (done - self.first) / (now - self.started)
        left = f", {(self.total - done) / rate:.0f} s left" if rate and self.total > done else ""
        text = f"  {size_text(done)} of {size_text(max(self.total, done))}, {size_text(rate)}/s{left}"
        print(f"\r\033[K{text}" if self.terminal else text, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal and not self.quiet:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
