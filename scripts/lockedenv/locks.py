"""The lock files as data.

conda-lock.yml is read here without a YAML library, since the verifier must start where nothing is installed: only the
shape that scripts/lock.sh writes is accepted, and anything else is an error that names the line.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional
from urllib.parse import urlsplit

from lockedenv import ROOT
from lockedenv.console import Stop

CONDA_LOCK = ROOT / "conda-lock.yml"
PIP_LOCK = ROOT / "locks" / "pip.txt"
FLASH_ATTN_LOCK = ROOT / "locks" / "flash-attn.txt"
REQUIREMENTS = ROOT / "requirements.txt"


class LockError(Stop):
    """A lock file is missing or not as scripts/lock.sh writes it; the message names the file, the line, the remedy."""


@dataclass
class CondaPackage:
    """One archive of the conda layer. `size` is in bytes, 0 where the channel's metadata did not record it."""

    name: str
    version: str
    url: str
    md5: str
    sha256: str
    size: int = 0
    depends: Dict[str, str] = field(default_factory=dict)

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def stem(self) -> str:
        return re.sub(r"\.(conda|tar\.bz2)$", "", self.filename)

    @property
    def build(self) -> str:
        return self.stem.rsplit("-", 1)[1]

    @property
    def subdir(self) -> str:
        return self.url.rsplit("/", 2)[1]

    @property
    def channel(self) -> str:
        """The channel's name, such as conda-forge: the last part of its address, for a mirror too."""
        return self.url.rsplit("/", 3)[1]


@dataclass
class PipPackage:
    """One wheel or sdist, by name, version and hash. `size` is in bytes, 0 where unknown."""

    name: str
    version: str
    sha256: str
    size: int = 0


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
        raise LockError(f"{path}: cannot be read ({error}); restore it with: git checkout -- {path.name}") from None


def _malformed(path: Path, number: int, line: str) -> LockError:
    return LockError(
        f"{path}:{number}: not as scripts/lock.sh writes it: {line.strip()[:80]!r}; "
        f"restore it with `git checkout -- {path.name}` or write it anew with scripts/lock.sh"
    )


def _scalar(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return text


_ITEM = re.compile(r"^(- |  )([a-z_]+): ?(.*)$")
_CHILD = re.compile(r"^    ([^\s:][^:]*): (.*)$")
_SIZE = re.compile(r"^(\S+)  # (\d+) bytes$")


def read_conda_lock(path: Path = CONDA_LOCK) -> CondaLock:
    """The conda layer as conda-lock.yml gives it.

    Raises LockError for a file that is missing, of another version, cut short or not of the written shape.
    """
    lines = _read(path)
    if "version: 1" not in lines:
        raise LockError(f"{path}: not a conda-lock file of version 1; write it anew with scripts/lock.sh")
    if "package:" not in lines:
        raise LockError(f"{path}: has no package section; write it anew with scripts/lock.sh")
    start = lines.index("package:")
    content_hash = next((line.split(": ")[1] for line in lines[:start] if line.startswith("    linux-64: ")), "")
    if not content_hash:
        raise LockError(f"{path}: is not locked for linux-64; write it anew with scripts/lock.sh")
    entries: List[Dict[str, object]] = []
    section: Optional[Dict[str, str]] = None
    for number, line in enumerate(lines[start + 1 :], start + 2):
        item, child = _ITEM.match(line), _CHILD.match(line)
        if item and (entries or item[1] == "- "):
            if item[1] == "- ":
                entries.append({"line": number})
            section = {} if not item[3] else None
            entries[-1][item[2]] = section if section is not None else item[3]
        elif child and section is not None:
            section[_scalar(child[1])] = _scalar(child[2])
        else:
            raise _malformed(path, number, line)
    packages = []
    for entry in entries:
        number = int(str(entry["line"]))
        depends = entry.get("dependencies")
        hashes = entry.get("hash")
        try:
            if entry["manager"] != "conda":
                raise LockError(f"{path}:{number}: holds a {entry['manager']} package; they belong in locks/pip.txt")
            sized = _SIZE.match(str(entry["url"]))
            url = sized[1] if sized else str(entry["url"])
            if not isinstance(hashes, dict) or urlsplit(url).scheme not in ("http", "https", "file"):
                raise KeyError("hash")
            package = CondaPackage(
                name=_scalar(str(entry["name"])),
                version=_scalar(str(entry["version"])),
                url=url,
                md5=hashes["md5"],
                sha256=hashes["sha256"],
                size=int(sized[2]) if sized else 0,
                depends=depends if isinstance(depends, dict) else {},
            )
        except KeyError as error:
            raise LockError(f"{path}:{number}: this package has no {error}; write it anew with scripts/lock.sh") from None
        if not re.fullmatch(r"[0-9a-f]{64}", package.sha256) or not re.fullmatch(r"[0-9a-f]{32}", package.md5):
            raise LockError(f"{path}:{number}: {package.name} has a malformed hash; write it anew with scripts/lock.sh")
        packages.append(package)
    if not packages or "optional" not in entries[-1]:
        raise LockError(f"{path}: is cut short; restore it with: git checkout -- {path.name}")
    return CondaLock(content_hash, packages)


_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})(?:  # (\d+) bytes)?$")


def read_pip_lock(path: Path) -> List[PipPackage]:
    """The packages of a requirements file that lock.sh wrote: one `name==version --hash=sha256:...` a line.

    Raises LockError for a missing or empty file and for any other line.
    """
    packages = []
    for number, line in enumerate(_read(path), 1):
        if not line or line.startswith("#"):
            continue
        match = _PIN.match(line)
        if not match:
            raise _malformed(path, number, line)
        packages.append(PipPackage(canonical(match[1]), match[2], match[3], int(match[4] or 0)))
    if not packages:
        raise LockError(f"{path}: names no package; restore it with: git checkout -- {path.name}")
    return packages


def digest(backend: str) -> str:
    """One sha256 over what the locks of a backend ("conda" or "pip") name, whatever their comments say."""
    conda = read_conda_lock().packages if backend == "conda" else []
    pip = read_pip_lock(PIP_LOCK if backend == "conda" else REQUIREMENTS)
    lines = [f"{p.name} {p.sha256}" for p in conda] + [f"{p.name} {p.sha256}" for p in pip]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
