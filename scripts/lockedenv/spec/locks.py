"""The lock files as data, read with the standard library alone: the verifier must start where nothing is installed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional
from urllib.parse import unquote

from lockedenv.errors import Stop

# scripts/lock.sh writes each conda package as a line of JSON, which is YAML too, and each wheel as a line for pip.
_PACKAGE = re.compile(r"^- (\{.*\})(?:  # (\d+) bytes)?$")
_PIN = re.compile(
    r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})"
    r"(?:  # (\d+) bytes(?:, RECORD ([0-9a-f]{64}))?)?"
)
MAX_RECORD_BYTES = 1 << 25  # torch's RECORD has 2 MB
WHEEL = re.compile(r"[a-z-]+ @ (\S+) --hash=sha256:([0-9a-f]{64})  # glibc ([\d.]+), sm ([\d ]+)")


class LockError(Stop):
    """A lock file is missing or not as scripts/lock.sh writes it; the message names the file, the line, the remedy."""

    def __init__(self, what: str, path: Path, number: int = 0) -> None:
        place = f"{path}:{number}" if number else str(path)
        super().__init__(
            f"{place}: {what}; restore it with `git checkout -- {path}` or write it anew with scripts/lock.sh"
        )


@dataclass
class CondaPackage:
    """One archive of the conda layer.

    `size` is in bytes, 0 where the channel's metadata did not record it. `needs_python`: it depends on Python, so it is
    a package of PyPI too; others may only share a name with one (conda's tzdata is not PyPI's).
    """

    name: str
    version: str
    url: str
    md5: str
    sha256: str
    size: int = 0
    needs_python: bool = False

    def __post_init__(self) -> None:
        *_, self.channel, _, self.filename = self.url.split(
            "/"
        )  # the channel by its name, for a mirror too
        self.stem = re.sub(r"\.(conda|tar\.bz2)$", "", self.filename)
        self.build = self.stem.rsplit("-", 1)[1]


@dataclass
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


@dataclass
class PrebuiltWheel:
    """A wheel at an address of its own, with the oldest glibc that it runs on and the architectures that it has code for."""

    url: str
    sha256: str
    glibc: str
    archs: List[str]

    @property
    def filename(self) -> str:
        return unquote(self.url.rsplit("/", 1)[-1])


@dataclass
class CondaLock:
    content_hash: str
    packages: List[CondaPackage]


def canonical(name: str) -> str:
    """The normalised form of a PyPI name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _read(path: Path) -> List[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"cannot be read ({error})", path) from None


def _whole(lines: List[str], count: int, path: Path) -> None:
    """Raises LockError unless the last line of a lock says how many packages it has."""
    if not lines or lines[-1] != f"# {count} packages":
        raise LockError(
            f"is cut short: it ends after {count} packages with {''.join(lines[-1:])[:80]!r}", path
        )


def read_conda_lock(path: Path) -> CondaLock:
    """The conda layer. Raises LockError for a file that is missing, of another version, cut short or of another shape."""
    lines = _read(path)
    if "version: 1" not in lines:
        raise LockError("not a conda-lock file of version 1", path)
    if "package:" not in lines:
        raise LockError("has no package section", path)
    content_hash = re.findall(r"^    linux-64: '?(\w+)", "\n".join(lines), re.M)
    if not content_hash or "  - linux-64" not in lines:
        raise LockError("is not locked for linux-64", path)
    packages = []
    start = lines.index("package:") + 1
    for number, line in enumerate(lines[start:-1], start + 1):
        try:
            [(text, size)] = _PACKAGE.findall(line)  # a ValueError for any other line
            entry = json.loads(text)
            url, md5, sha256 = entry["url"], entry["hash"]["md5"], entry["hash"]["sha256"]
            if entry["manager"] != "conda":
                raise LockError(
                    f"holds a {entry['manager']} package; they belong in locks/pip.txt",
                    path,
                    number,
                )
            if not re.fullmatch(
                "[0-9a-f]{32} [0-9a-f]{64} (https?|file)://.*", f"{md5} {sha256} {url}"
            ):
                raise LockError(f"{entry['name']} has a malformed hash or address", path, number)
            packages.append(
                CondaPackage(
                    name=entry["name"],
                    version=entry["version"],
                    url=url,
                    md5=md5,
                    sha256=sha256,
                    size=int(size or 0),
                    needs_python="python" in entry["dependencies"],
                )
            )
        except KeyError as error:
            raise LockError(f"this package has no {error}", path, number) from None
        except (ValueError, TypeError, IndexError):
            raise LockError(
                f"not as scripts/lock.sh writes it: {line.strip()[:80]!r}", path, number
            ) from None
    _whole(lines if packages else [], len(packages), path)
    return CondaLock(content_hash[0], packages)


def read_pip_lock(path: Path) -> List[PipPackage]:
    """A file of lines `name==version --hash=sha256:...`. Raises LockError for one that is missing, cut short or malformed."""
    packages, lines = [], _read(path)
    for number, line in enumerate(lines, 1):
        match = _PIN.fullmatch(line)
        if match:
            name, version, sha256, size, record = match.groups(default="")
            packages.append(PipPackage(canonical(name), version, sha256, int(size or 0), record))
        elif line and not line.startswith(("#", "-r ")) and not WHEEL.fullmatch(line):
            raise LockError(
                f"not as scripts/lock.sh writes it: {line.strip()[:80]!r}", path, number
            )
    _whole(lines, len(packages), path)
    return packages


def read_prebuilt(path: Path) -> Optional[PrebuiltWheel]:
    """The prebuilt wheel that a lock names beside its source, or None. Raises LockError."""
    found = next(filter(None, map(WHEEL.fullmatch, _read(path))), None)
    return PrebuiltWheel(found[1], found[2], found[3], found[4].split()) if found else None
