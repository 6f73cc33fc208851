"""Fetches files by sha256: several at a time, resumed, retried, from mirrors first; nothing wrong is ever kept.

curl does the transfers, into NAME.part, which the next attempt goes on with; a file has its own name once its hash is right.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Callable, Dict, Iterable, List
from urllib.parse import urlsplit

from lockedenv.backends import kept
from lockedenv.errors import Stop
from lockedenv.host.machine import free_bytes, size_text
from lockedenv.host.process import holding, started
from lockedenv.output import Progress
from lockedenv.prefix.records import hashes
from lockedenv.redaction import redact

ROUNDS = 8  # attempts of the whole list; the waits between them grow from 1 s to 30 s: two minutes of outage are survived
CURL = (
    "curl --disable --netrc-optional --config - --parallel --parallel-max 8 --fail --location --continue-at - --max-redirs 5 "
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


def seconds_of(name: str, default: float) -> float:
    """The seconds that a variable gives. Raises Stop."""
    try:
        return float(os.environ.get(name) or default)
    except ValueError:
        raise Stop(f"{name}={os.environ[name]}: give a number of seconds") from None


def address(base: str, url: str) -> str:
    """A channel's file on a mirror: the mirror's address, then channel/subdir/file."""
    return base.rstrip("/") + "/" + "/".join(urlsplit(url).path.split("/")[-3:])


def _round(items: List[Item], folder: Path, show: Callable[[], None]) -> None:
    """One attempt at every item: a part that is whole and right gets its name; what failed, one more entry in `problems`."""
    sources = [item.sources[len(item.problems) % len(item.sources)] for item in items]
    # To curl's standard input: an address may hold a token, and `ps` shows arguments. Its escapes in a quoted word are JSON's.
    words = [(item.name, json.dumps(source)) for item, source in zip(items, sources)]
    quoted = [
        (json.dumps(f"{folder / name}.part", ensure_ascii=False), source) for name, source in words
    ]
    config = "".join(f"url = {source}\noutput = {part}\n" for part, source in quoted)
    stalled = max(
        1, round(seconds_of("MAXIMALCAI_STALL_SECONDS", 20))
    )  # given up and resumed after so many
    command = [*CURL, "--speed-time", str(stalled)]
    with (
        started(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        said = pool.submit(process.communicate, config.encode())
        while not said.done():
            show()
            time.sleep(0.05)
    lines = said.result()[0].decode(errors="replace").splitlines()
    answers = {Path(name).name: answer for name, *answer in (line.split("\t") for line in lines)}
    parts = hashes([folder / f"{item.name}.part" for item in items])
    for item, source in zip(items, sources):
        part = folder / f"{item.name}.part"
        if parts[part] == item.sha256:
            part.replace(part.with_suffix(""))
            continue
        # curl before 7.75 (Ubuntu 20.04, Debian 11) knows no exitcode and no errormsg, and leaves both empty.
        status, code, message = [
            *answers.get(part.name, ["", "", "no answer from curl"]),
            "",
            "",
            "",
        ][:3]
        has = part.stat().st_size if part.exists() else -1
        whole = has >= 0 and (has >= item.size if item.size else code == "0")
        if (
            whole or has >= 0 and (code in ("33", "36") or status == "416")
        ):  # wrong, or the server cannot resume: afresh
            part.unlink()
        why = (
            f"HTTP {status}"
            if code == "22" or (not code and status >= "400")
            else redact(message) or f"curl {code or status}"
        )
        other = f" sent {has} bytes of sha256 {parts[part][:16]}..., not {item.sha256[:16]}..."
        host = redact(urlsplit(source).netloc or source).rsplit("@", 1)[-1]
        item.problems.append(f"{host}{other}" if whole else f"{host}: {why}")


def fetch(
    items: List[Item],
    folder: Path,
    say: Callable[[str], None],
    quiet: bool = False,
    rounds: int = ROUNDS,
    has: Callable[[Iterable[Path]], Dict[Path, str]] = hashes,
) -> int:
    """Brings every item into the folder, whole and right, if `has` is; gives the bytes fetched. They stay, also in part.

    Raises FetchError when some cannot be had after all rounds, when the disk is full, or when curl is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with holding(folder.with_name(f"{folder.name}.lock"), f"the cache {folder}"):
        show, there = Transfer(items, folder, quiet), has([folder / item.name for item in items])
        fetched = missing = [item for item in items if there.get(folder / item.name) != item.sha256]
        for path in filter(Path.exists, [folder / item.name for item in missing]):  # a wrong one
            path.unlink()
        if missing and not shutil.which("curl"):
            raise FetchError("curl is not installed; install it with: apt-get install curl")
        wait = pause = seconds_of("MAXIMALCAI_RETRY_SECONDS", 1)
        for attempt in range(rounds if missing else 0):
            if attempt:
                show.clear()
                worst = missing[0].problems[-1]
                say(
                    f"{len(missing)} of {len(items)} files not yet there ({worst}); trying again in {wait:.0f} s"
                )
                time.sleep(wait)
                wait = min(wait * 2, 30 * pause)
            _round(missing, folder, show)
            missing = [item for item in missing if not (folder / item.name).exists()]
            needed = sum(item.size for item in missing)
            if missing and free_bytes(folder) < min(needed or 1, 1 << 20):
                raise FetchError(
                    f"No space left on the disk of {folder}: {size_text(needed)} are still to come, "
                    f"{size_text(free_bytes(folder))} are free. Free some, or name another place with --cache, and "
                    "run again: what is there is kept"
                )
            if not missing:
                break
        show.clear()
        if missing:
            lines = [
                f"{item.name}: {'; '.join(dict.fromkeys(item.problems))}" for item in missing[:5]
            ]
            lines += [f"and {len(missing) - 5} more"] if len(missing) > 5 else []
            raise FetchError(
                f"{len(missing)} of {len(items)} files could not be fetched after {rounds} attempts:\n  "
                + "\n  ".join(lines)
                + "\nRun the same command again: what is there is kept. If it stays so, name "
                "a mirror with --mirror URL"
            )
        kept.note_hashes({folder / item.name: item.sha256 for item in items})
        return sum((folder / item.name).stat().st_size for item in fetched)


class Transfer(Progress):
    """The progress of a fetch: bytes of total, rate, and what is left."""

    def __init__(self, items: List[Item], folder: Path, quiet: bool) -> None:
        super().__init__(quiet)
        self.names, self.folder, self.total = (
            [item.name for item in items],
            folder,
            sum(item.size for item in items),
        )
        self.started, self.first = time.monotonic(), self.bytes()

    def bytes(self) -> int:
        sizes: Dict[str, int] = {}
        with contextlib.suppress(OSError):  # another run may take something away meanwhile
            sizes.update((entry.name, entry.stat().st_size) for entry in os.scandir(self.folder))
        return sum(sizes.get(name, sizes.get(f"{name}.part", 0)) for name in self.names)

    def __call__(self) -> None:
        self.show(self.text)

    def text(self) -> str:
        done = self.bytes()
        rate = (done - self.first) / (time.monotonic() - self.started)
        left = f", {(self.total - done) / rate:.0f} s left" if rate and self.total > done else ""
        return f"{size_text(done)} of {size_text(max(self.total, done))}, {size_text(rate)}/s{left}"
