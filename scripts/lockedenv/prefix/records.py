"""What a prefix holds: conda's records and the dist-infos, with who put each there."""

from __future__ import annotations

import binascii
import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.parser import HeaderParser
from pathlib import Path
from typing import Dict, FrozenSet, Iterable, List, Optional

from lockedenv.host.files import read_json, read_regular
from lockedenv.spec import environment
from lockedenv.spec.environment import MARK
from lockedenv.spec.locks import canonical

INSTALLED = "maximalcai-installed.json"  # what the installation by hash left, where no record has a hash of it
CONSTRAINTS = "maximalcai-constraints.txt"  # the locked versions, which PREFIX/pip.conf names
RECORD_LIMIT = 16_000_000  # bytes; torch's RECORD has 1,400,000
OURS = (
    MARK,
    INSTALLED,
    CONSTRAINTS,
    "maximalcai-manifest.json",
    "maximalcai-flash-attn",
    "activate",
    "pip.conf",
    ".lock",
)  # uv's


@dataclass
class CondaRecord:
    """One conda-meta record; `sha256_here` is its own. `hashes`: path in the prefix -> sha256 in hex, empty if it has none."""

    name: str
    version: str
    build: str
    channel: str
    sha256: str
    md5: str
    sha256_here: str
    hashes: Dict[str, str]

    @property
    def infos(self) -> Dict[str, Dict[str, str]]:
        """Its dist-infos, each with the sha256 of RECORD and INSTALLER; not those that a package vendors."""
        infos: Dict[str, Dict[str, str]] = {}
        for path, sha in self.hashes.items():
            folder, _, name = path.rpartition("/")
            if folder.endswith("-info") and re.search(
                r"/site-packages/[^/]+\.(dist|egg)-info$", folder
            ):
                infos.setdefault(folder, {}).update(
                    {name: sha} if name in ("RECORD", "INSTALLER") else {}
                )
        return infos


@dataclass
class Dist:
    """One dist-info (or egg-info). `manager` is conda if a conda record owns it and it is as conda left it."""

    name: str
    version: str
    manager: str
    path: Path


@dataclass(frozen=True)
class BrokenRecord:
    """A record that cannot be read; `manager` ("conda" or "pip") is the layer that it is of."""

    manager: str
    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass
class Installed:
    prefix: Path
    backend: str
    conda: List[CondaRecord]
    dists: List[Dist]
    problems: List[BrokenRecord]
    locked: FrozenSet[str] = (
        frozenset()
    )  # the names of what the installation by hash left; empty if that is not known

    @property
    def python(self) -> Path:
        return (
            Path(sys.executable) if self.prefix == Path(sys.prefix) else self.prefix / "bin/python"
        )

    @property
    def sites(self) -> List[Path]:
        """Where the prefix itself keeps Python packages."""
        return [folder for folder in site_folders(self.prefix) if self.prefix in folder.parents]

    def inside(self, path: Path) -> Path:
        """A path as people read it: within the prefix."""
        return path.relative_to(self.prefix) if self.prefix in path.parents else path

    def as_locked(self) -> "Installed":
        """The same prefix without the distributions that were added with pip or uv."""
        return replace(
            self, dists=[dist for dist in self.dists if dist.name in (self.locked or [dist.name])]
        )

    def only(self, dist: Dist) -> "Installed":
        """The same prefix as if this distribution were all that is in it."""
        return replace(self, conda=[], dists=[dist])

    def version(self, name: str) -> Optional[str]:
        """The version of a Python distribution, or None."""
        return next((d.version for d in self.dists if d.name == canonical(name)), None)

    def conda_record(self, name: str) -> Optional[CondaRecord]:
        return next((r for r in self.conda if r.name == name), None)


def site_folders(prefix: Path) -> List[Path]:
    """Where a prefix keeps Python packages; for the running interpreter, where it really looks."""
    running = prefix == Path(sys.prefix)
    found = (
        [Path(p) for p in sys.path]
        if running
        else sorted(prefix.glob("lib/python3.*/site-packages"))
    )
    return [p for p in found if p.name in ("site-packages", "dist-packages") and p.is_dir()]


def _conda_records(prefix: Path, problems: List[BrokenRecord]) -> List[CondaRecord]:
    records = []
    site = next(
        (p.relative_to(prefix).as_posix() for p in site_folders(prefix) if prefix in p.parents),
        "site-packages",
    )
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            channel = str(data.get("channel") or data.get("url", "")).rstrip("/")
            channel = re.sub(r"/(linux-64|noarch)(/.*)?$", "", channel).rsplit("/", 1)[-1]
            hashes = {}
            for entry in data["paths_data"]["paths"]:
                sha = entry.get("sha256_in_prefix") or entry.get("sha256") or ""
                # A noarch package may be recorded as it was packed.
                name = re.sub(
                    "^python-scripts/",
                    "bin/",
                    re.sub("^site-packages/", f"{site}/", entry["_path"]),
                )
                hashes[name] = (
                    sha if entry.get("path_type", "hardlink") in ("hardlink", "copy") else ""
                )
            build, archive = data.get("build") or data.get("build_string", ""), (
                data.get("sha256") or "",
                data.get("md5") or "",
            )
            records.append(
                CondaRecord(
                    data["name"],
                    data["version"],
                    build,
                    channel,
                    *archive,
                    file_sha256(path),
                    hashes,
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"is not a conda record ({type(error).__name__}: {error})"
            problems.append(BrokenRecord("conda", path, problem))
    return records


def info_name(folder: str) -> str:
    """The normalised package name in the name of a dist-info or egg-info."""
    return canonical(re.sub(r"\.(dist|egg)-info$", "", folder.rsplit("/", 1)[-1]).partition("-")[0])


def _dist(
    path: Path, owned: Dict[str, Dict[str, str]], prefix: Path, problems: List[BrokenRecord]
) -> Dist:
    name, version = info_name(path.name), "unknown"
    try:
        metadata = path / ("METADATA" if path.suffix == ".dist-info" else "PKG-INFO")
        file = metadata if path.is_dir() else path
        text = (
            file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        )  # a pipe would be waited for
        header = HeaderParser().parsestr(
            text, headersonly=True
        )  # the description may say "Name:" too
        name, version = canonical(header["Name"]), header["Version"].strip()
    except (OSError, TypeError, AttributeError):
        problem = f"has no readable METADATA; reinstall {name}"
        problems.append(BrokenRecord("pip", path, problem))
    hashes = owned.get(path.relative_to(prefix).as_posix()) if prefix in path.parents else None
    # pip and uv replace a conda package in place, and leave conda's record of it as it was.
    as_left = hashes is not None and all(
        not sha or file_sha256(path / file) == sha for file, sha in hashes.items()
    )
    return Dist(name, version, "conda" if as_left else "pip", path)


def file_sha256(path: Path) -> str:
    """The sha256 of a file; empty if it cannot be read."""
    digest = hashlib.sha256()
    if not path.is_file():  # a pipe would be waited for
        return ""
    with contextlib.suppress(OSError), path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
        return digest.hexdigest()
    return ""


def hashes(paths: Iterable[Path]) -> Dict[Path, str]:
    """The sha256 of each file, by all cores: hashlib lets go of the interpreter while it hashes."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(pool.map(lambda path: (path, file_sha256(path)), paths))


def read_prefix(prefix: Path) -> Installed:
    """Everything installed in a prefix. Broken records are listed in `problems`; nothing is imported."""
    problems: List[BrokenRecord] = []
    conda = _conda_records(prefix, problems)
    owned = {folder: hashes for record in conda for folder, hashes in record.infos.items()}
    paths = [path for folder in site_folders(prefix) for path in sorted(folder.iterdir())]
    dists = [
        _dist(path, owned, prefix, problems)
        for path in paths
        if path.name.endswith((".dist-info", ".egg-info"))
    ]
    backend = "conda" if (prefix / "conda-meta" / "history").exists() or conda else "pip"
    left = read_json(prefix / INSTALLED)
    return Installed(
        prefix,
        backend,
        conda,
        dists,
        problems,
        frozenset([*left.get("records", {}), *left.get("conda", {})]),
    )


def decode_hash(text: str) -> str:
    """The sha256 of a RECORD's row (sha256=URLSAFE-BASE64) in hex; empty if it has none. Raises ValueError."""
    if not text.startswith("sha256="):
        return ""
    # As base64.urlsafe_b64decode, which takes three times as long for 25,000 of them.
    encoded = text[7:].replace("-", "+").replace("_", "/")
    return binascii.a2b_base64(f"{encoded}==").hex()


@functools.lru_cache(maxsize=None)  # several checks want them, and 25,000 take a third of a second
def _entries(text: str, site: str) -> Dict[Path, str]:
    entries = {}
    for row in filter(None, csv.reader(io.StringIO(text))):
        sha = decode_hash(row[1]) if row[1:] else ""
        entries[Path(os.path.normpath(os.path.join(site, row[0])))] = sha
    return entries


def record_entries(record: Path) -> Dict[Path, str]:
    """path -> sha256 in hex (or empty) of all that a dist-info's RECORD lists. Raises ValueError if it is damaged."""
    try:
        text = read_regular(record, RECORD_LIMIT).decode("utf-8")
    except FileNotFoundError:
        return {}
    return _entries(text, str(record.parent.parent))


def recorded_files(installed: Installed) -> Dict[Path, str]:
    """path -> sha256 in hex of every file that a conda record or a dist-info names; empty where it has no hash for it.

    What a locked package says of a file counts more than what an added one says.
    """
    wheels, locked = (
        [dist for dist in of.dists if dist.manager == "pip"]
        for of in (installed, installed.as_locked())
    )
    conda = {
        installed.prefix / path: sha
        for record in installed.conda
        for path, sha in record.hashes.items()
    }
    parts = [
        *(_recorded(dist) for dist in wheels if dist not in locked),
        conda,
        *map(_recorded, locked),
    ]
    return {path: sha for part in parts for path, sha in part.items()}


def _recorded(dist: Dist) -> Dict[Path, str]:
    try:
        return record_entries(dist.path / "RECORD")
    except (OSError, ValueError, csv.Error):
        return {dist.path / "RECORD": "damaged"}  # no file has this hash


def unrecorded(prefix: Path, recorded: Iterable[Path]) -> List[Path]:
    """The files and links of a prefix that no record names, without bytecode, conda-meta and our own notes."""
    known = {str(path) for path in recorded} | {str(prefix / name) for name in OURS}
    found = []
    for folder, folders, files in os.walk(prefix):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name != "__pycache__"]
        if folder == str(prefix / "conda-meta"):  # conda's own; `pinned` and `state` are the user's
            files = [name for name in files if name != "history" and not name.endswith(".json")]
        found += [
            Path(folder, name) for name in files + links if os.path.join(folder, name) not in known
        ]
    return sorted(found)


def snapshot(prefix: Path) -> Dict[str, Dict[str, str]]:
    """What the records do not say of a prefix that was just made: links and their targets, files and their sha256."""
    recorded = recorded_files(read_prefix(prefix))
    paths = {
        *unrecorded(prefix, recorded),
        *(path for path, sha in recorded.items() if not sha and path.suffix != ".pyc"),
    }
    links = {
        path.relative_to(prefix).as_posix(): os.readlink(path)
        for path in paths
        if path.is_symlink()
    }
    files = hashes(path for path in paths if path.is_file() and not path.is_symlink())
    return {
        "links": links,
        "files": {path.relative_to(prefix).as_posix(): sha for path, sha in files.items()},
    }


def own_files(prefix: Path) -> List[Path]:
    """What nothing has installed in a prefix, the user's own: files, and folders that hold nothing else."""
    left = read_json(prefix / INSTALLED)
    known = {prefix / name for name in [*left.get("links", {}), *left.get("files", {})]}
    known |= set(recorded_files(read_prefix(prefix)))
    shared = {
        parent
        for path in [*known, prefix / MARK, prefix / "conda-meta/history"]
        for parent in path.parents
    }
    found: Dict[Path, None] = {}
    for path in unrecorded(prefix, known):
        found[
            next(
                (
                    folder
                    for folder in reversed(path.parents)
                    if prefix in folder.parents and folder not in shared
                ),
                path,
            )
        ] = None
    return list(found)


def added(installed: Installed) -> List[str]:
    """What was installed beyond the lock that the prefix was made from, as requirements."""
    names = installed.locked or set(
        environment.find_by_prefix(installed.prefix).names()
    )  # lost: what the lock names now
    lines = [f"# by conda: {r.name}={r.version}" for r in installed.conda if r.name not in names]
    for dist in installed.dists:
        if dist.manager == "pip" and dist.name not in names:
            url = read_json(dist.path / "direct_url.json")
            editable = "-e " if url.get("dir_info", {}).get("editable") else f"{dist.name} @ "
            lines.append(editable + url["url"] if "url" in url else f"{dist.name}=={dist.version}")
    return sorted(lines)
