"""The lock files as data, read with the standard library alone.

The verifier must start where nothing is installed. scripts/lock.sh writes each conda package as a
line of JSON, which is YAML too, and each wheel as a line for pip. What it would not write is
refused: each file has one grammar, and nothing of it is guessed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lockedenv import ROOT
from lockedenv.errors import Stop
from lockedenv.spec.commands import LOCK, lock_command

MAX_RECORD_BYTES = 1 << 25  # torch's RECORD has 2 MB
CHANNEL_ALIAS = (
    "https://conda.anaconda.org"  # where a channel is that is given by its name
)
SUBDIRS = ("linux-64", "noarch")
SPECIFICATION = "# Specification: sha256:"
CONTENT = "# Content: sha256:"

_PACKAGE = re.compile(r"^- (\{.*\})(?:  # (\d+) bytes)?$")
_PIN = re.compile(
    r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})"
    r"(?:  # (\d+) bytes(?:, RECORD ([0-9a-f]{64}))?)?"
)
WHEEL = re.compile(
    r"[a-z-]+ @ (\S+) --hash=sha256:([0-9a-f]{64})  # glibc ([\d.]+), sm ([\d ]+)"
)
_HASHES = re.compile("[0-9a-f]{32} [0-9a-f]{64}")
_METADATA = re.compile(
    r"version: 1\nmetadata:\n  content_hash:\n    linux-64: '?(?P<hash>[0-9a-f]{64})'?\n"
    r"  channels:\n(?P<channels>(?:  - url: \S+\n    used_env_vars: \[\]\n)+)"
    r"  platforms:\n  - linux-64\n  sources:\n  - environment.yml\npackage:\n"
)
_KEYS = [
    "name",
    "version",
    "manager",
    "platform",
    "dependencies",
    "url",
    "hash",
    "category",
    "optional",
]


class LockError(Stop):
    """A lock file is missing or not as scripts/lock.sh writes it.

    The message names the file, the line, the remedy.
    """

    def __init__(self, problem: str, path: Path, number: int = 0) -> None:
        place = f"{path}:{number}" if number else str(path)
        super().__init__(f"{place}: {problem}; {_find_remedy(path)}")


def _find_remedy(path: Path) -> str:
    """What brings a lock back."""
    folder = path.parent
    if folder.name == "locks":
        folder = folder.parent
    ours = folder == ROOT or folder.parent == ROOT / "environments"
    if ours:
        return f"restore it with `git checkout -- {path}` or write it anew with {LOCK}"
    return f"write it with {lock_command(str(folder))}"


@dataclass(frozen=True)
class CondaPackage:
    """One archive of the conda layer.

    `size` is in bytes, 0 where the channel's metadata did not record it. `needs_python`: it
    depends on Python, so it is a package of PyPI too; others may only share a name with one
    (conda's tzdata is not PyPI's).
    """

    name: str
    version: str
    url: str
    md5: str
    sha256: str
    size: int = 0
    needs_python: bool = False

    @property
    def channel(self) -> str:
        """The channel by its name, for a mirror too."""
        return self.url.split("/")[-3]

    @property
    def filename(self) -> str:
        return self.url.split("/")[-1]

    @property
    def stem(self) -> str:
        """The file's name without what says how it is packed: NAME-VERSION-BUILD."""
        return re.sub(r"\.(conda|tar\.bz2)$", "", self.filename)

    @property
    def build(self) -> str:
        return self.stem.rsplit("-", 1)[1]


@dataclass(frozen=True)
class PipPackage:
    """One wheel or sdist, by name, version and hash.

    `size` is in bytes, 0 where unknown. `record_sha256` is the digest of the wheel's RECORD
    (wheel_record.record_digest); empty for an sdist.
    """

    name: str
    version: str
    sha256: str
    size: int = 0
    record_sha256: str = ""


@dataclass(frozen=True)
class PrebuiltWheel:
    """A wheel at an address of its own.

    `glibc` is the oldest that it runs on, `archs` are those that it has code for.
    """

    url: str
    sha256: str
    glibc: str
    archs: list[str]

    @property
    def filename(self) -> str:
        return unquote(self.url.rsplit("/", 1)[-1])


@dataclass(frozen=True)
class CondaLock:
    """`content_hash` is conda-lock's own, over environment.yml; `channels` are addresses."""

    content_hash: str
    channels: list[str]
    packages: list[CondaPackage]


@dataclass(frozen=True)
class Seal:
    """What the header of a lock says: the digests of its specification and of its own lines.

    Empty where it says nothing.
    """

    specification: str
    content: str


def canonical(name: str) -> str:
    """The normalised form of a PyPI name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_placeholder(digest: str) -> bool:
    """Whether a hash is one character again and again, which no file has."""
    return len(set(digest)) == 1


def channel_address(channel: str) -> str:
    """Where a channel is that an environment.yml names or gives by its address."""
    return channel.rstrip("/") if "://" in channel else f"{CHANNEL_ALIAS}/{channel}"


def content_digest(text: str) -> str:
    """The sha256 of the lines of a lock that are no comments."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def read_seal(path: Path) -> Seal:
    """What the header of a lock says. Raises LockError for a file that cannot be read."""
    specification = ""
    content = ""
    for line in _read(path).splitlines():
        if not line.startswith("#"):
            break
        if line.startswith(SPECIFICATION):
            specification = line[len(SPECIFICATION) :]
        if line.startswith(CONTENT):
            content = line[len(CONTENT) :]
    return Seal(specification, content)


def read_conda_lock(path: Path) -> CondaLock:
    """The conda layer.

    Raises LockError for a file that is missing, of another version, cut short or of another
    shape.
    """
    lock = _parse_conda_lock(path, _read(path))
    return CondaLock(lock.content_hash, [*lock.channels], [*lock.packages])


def read_pip_lock(path: Path) -> list[PipPackage]:
    """A file of lines `name==version --hash=sha256:...`.

    Raises LockError for one that is missing, cut short or malformed.
    """
    return [*_parse_pip_lock(path, _read(path))]


def read_prebuilt(path: Path) -> PrebuiltWheel | None:
    """The prebuilt wheel that a lock names beside its source, or None. Raises LockError."""
    for line in _read(path).splitlines():
        match = WHEEL.fullmatch(line)
        if match:
            return PrebuiltWheel(match[1], match[2], match[3], match[4].split())
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LockError("is not there", path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"cannot be read ({error})", path) from None


def _refuse_cut(lines: list[str], count: int, path: Path) -> None:
    """Raises LockError unless the last line of a lock says how many packages it has."""
    if not lines or lines[-1] != f"# {count} packages":
        last = lines[-1][:80] if lines else ""
        raise LockError(
            f"is cut short: it ends after {count} packages with {last!r}", path
        )


# A lock is read many times and parsed once: what was parsed is known by its text.
@functools.lru_cache(maxsize=64)
def _parse_conda_lock(path: Path, text: str) -> CondaLock:
    lines = text.splitlines()
    if "version: 1" not in lines:
        raise LockError("not a conda-lock file of version 1", path)
    if "package:" not in lines:
        raise LockError("has no package section", path)
    start = lines.index("package:") + 1
    content_hash, channels = _parse_metadata(path, lines[:start])
    packages: list[CondaPackage] = []
    seen: set[str] = set()
    for number, line in enumerate(lines[start:-1], start + 1):
        package = _parse_conda_package(path, number, line, channels)
        if package.name in seen:
            raise LockError(f"has {package.name} twice", path, number)
        seen.add(package.name)
        packages.append(package)
    _refuse_cut(lines if packages else [], len(packages), path)
    return CondaLock(content_hash, channels, packages)


def _parse_metadata(path: Path, lines: list[str]) -> tuple[str, list[str]]:
    """The content hash and the channels' addresses, of the lines up to `package:`."""
    for number, line in enumerate(lines, 1):
        if line.startswith(("<<<<<<<", "=======", ">>>>>>>")):
            raise LockError("holds a merge conflict", path, number)
    text = "".join(f"{line}\n" for line in lines if not line.startswith("#"))
    if (
        not re.search(r"^    linux-64: '?[0-9a-f]+'?$", text, re.M)
        or "  - linux-64" not in lines
    ):
        raise LockError("is not locked for linux-64", path)
    match = _METADATA.fullmatch(text)
    if not match:
        raise LockError(
            "its lines before `package:` are not as scripts/lock.sh writes them", path
        )
    channels = re.findall(r"url: '?([^'\s]+)", match["channels"])
    return match["hash"], [channel_address(channel) for channel in channels]


def _parse_conda_package(
    path: Path, number: int, line: str, channels: list[str]
) -> CondaPackage:
    match = _PACKAGE.fullmatch(line)
    malformed = LockError(
        f"not as scripts/lock.sh writes it: {line.strip()[:80]!r}", path, number
    )
    if not match:
        raise malformed
    try:
        entry: dict[str, Any] = json.loads(match[1])
        md5 = entry["hash"]["md5"]
        sha256 = entry["hash"]["sha256"]
        package = CondaPackage(
            name=entry["name"],
            version=entry["version"],
            url=entry["url"],
            md5=md5,
            sha256=sha256,
            size=int(match[2] or 0),
            needs_python="python" in entry["dependencies"],
        )
        if (
            not _HASHES.fullmatch(f"{md5} {sha256}")
            or is_placeholder(md5)
            or is_placeholder(sha256)
        ):
            raise LockError(
                f"{package.name} has a malformed hash or address", path, number
            )
        _refuse_place(path, number, package, channels)
        _refuse_kind(path, number, entry)
        package.build  # an IndexError for a file's name without one
    except KeyError as error:
        raise LockError(f"this package has no {error}", path, number) from None
    except (ValueError, TypeError, IndexError, AttributeError):
        raise malformed from None
    if [*entry] != _KEYS or json.dumps(entry) != match[1]:
        raise malformed
    return package


def _refuse_place(
    path: Path, number: int, package: CondaPackage, channels: list[str]
) -> None:
    """Raises LockError for an address that is of no channel of the lock, or of another package."""
    if not re.fullmatch(r"(https?|file)://\S+", package.url):
        raise LockError(f"{package.name} has a malformed hash or address", path, number)
    base, subdir, filename = package.url.rsplit("/", 2)
    if base not in channels:
        raise LockError(
            f"{package.name} comes from {base}, which is none of the lock's channels",
            path,
            number,
        )
    if subdir not in SUBDIRS:
        raise LockError(
            f"{package.name} is for {subdir}, not for linux-64", path, number
        )
    if not unquote(filename).startswith(f"{package.name}-{package.version}-"):
        raise LockError(
            f"not as scripts/lock.sh writes it: {filename} is not the archive of "
            f"{package.name} {package.version}",
            path,
            number,
        )


def _refuse_kind(path: Path, number: int, entry: dict[str, Any]) -> None:
    """Raises LockError for a package of another manager, platform or category."""
    if entry["manager"] != "conda":
        raise LockError(
            f"holds a {entry['manager']} package; they belong in locks/pip.txt",
            path,
            number,
        )
    if entry["platform"] != "linux-64":
        raise LockError(
            f"{entry['name']} is for {entry['platform']}, not for linux-64",
            path,
            number,
        )
    if entry["category"] != "main" or entry["optional"] is not False:
        raise LockError(
            f"{entry['name']} is of the category {entry['category']!r}; "
            "micromamba would leave it out",
            path,
            number,
        )


@functools.lru_cache(maxsize=64)
def _parse_pip_lock(path: Path, text: str) -> list[PipPackage]:
    lines = text.splitlines()
    packages: list[PipPackage] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        match = _PIN.fullmatch(line)
        if not match:
            if line and not line.startswith(("#", "-r ")) and not WHEEL.fullmatch(line):
                raise LockError(
                    f"not as scripts/lock.sh writes it: {line.strip()[:80]!r}",
                    path,
                    number,
                )
            continue
        name, version, sha256, size, record = match.groups(default="")
        package = PipPackage(canonical(name), version, sha256, int(size or 0), record)
        if package.name in seen:
            raise LockError(f"has {package.name} twice", path, number)
        if is_placeholder(sha256) or (record and is_placeholder(record)):
            raise LockError(f"{package.name} has a malformed hash", path, number)
        seen.add(package.name)
        packages.append(package)
    _refuse_cut(lines, len(packages), path)
    return packages
