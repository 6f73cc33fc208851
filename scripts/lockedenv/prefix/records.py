"""What is installed in a prefix: conda's records and the dist-infos, with the layer of each."""

from __future__ import annotations

import binascii
import csv
import hashlib
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from lockedenv.host.files import LARGEST_JSON, FileRefused, read_regular
from lockedenv.prefix.conda_files import CONDA_META
from lockedenv.prefix.place import find_backend
from lockedenv.spec.layers import BackendName, Layer
from lockedenv.spec.locks import canonical
from lockedenv.spec.wheel_record import parse_record, record_digest

CONSTRAINTS = (
    "maximalcai-constraints.txt"  # the locked versions, which PREFIX/pip.conf names
)
COMMAND = "bin/maximalcai"  # prefix/launcher.py, copied there
RECORD_LIMIT = 16_000_000  # bytes; torch's RECORD has 1,400,000
BLOCK = 1 << 20  # bytes that are hashed at once
# A dist-info of a conda package; not those that a package vendors.
DIST_INFO = re.compile(r"/site-packages/[^/]+\.(dist|egg)-info$")


@dataclass(frozen=True)
class CondaRecord:
    """One conda-meta record; `sha256_here` is its own. `hashes`: path in the prefix -> sha256 in
    hex, empty if it has none.
    """

    name: str
    version: str
    build: str
    channel: str
    sha256: str
    md5: str
    sha256_here: str
    hashes: Mapping[str, str]

    @property
    def infos(self) -> dict[str, dict[str, str]]:
        """Its dist-infos, each with the sha256 of RECORD and INSTALLER."""
        infos: dict[str, dict[str, str]] = {}
        for path, sha256 in self.hashes.items():
            folder, _, name = path.rpartition("/")
            if not folder.endswith("-info") or not DIST_INFO.search(folder):
                continue
            files = infos.setdefault(folder, {})
            if name in ("RECORD", "INSTALLER"):
                files[name] = sha256
        return infos


@dataclass(frozen=True)
class Dist:
    """One dist-info (or egg-info). `manager` is conda if a conda record has it and it was not
    changed since conda installed it.
    """

    name: str
    version: str
    manager: Layer
    path: Path


@dataclass(frozen=True)
class BrokenRecord:
    """A record that cannot be read; `manager` is its layer.

    `package`: the package, from the name of the record; empty for conda's.
    """

    manager: Layer
    path: Path
    problem: str
    package: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class RecordRow(NamedTuple):
    """A file that a RECORD lists. A named tuple, because 25,000 of them are read at each start.

    `path` as it is written, relative to site-packages; `sha256` in hex, empty where there is none,
    "damaged" where it is no hash; `size` in bytes, -1 where there is none.
    """

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Installed:
    """Everything that is installed in a prefix."""

    prefix: Path
    backend: BackendName
    conda: Sequence[CondaRecord]
    dists: Sequence[Dist]
    problems: Sequence[BrokenRecord]

    @property
    def python(self) -> Path:
        """The interpreter of the prefix; the running one, if that is of the prefix."""
        if self.prefix == Path(sys.prefix):
            return Path(sys.executable)
        return self.prefix / "bin/python"

    @property
    def sites(self) -> list[Path]:
        """The folders of Python packages in the prefix itself."""
        return _own_sites(self.prefix)

    def version(self, name: str) -> str | None:
        """The version of a Python distribution; None where it is not installed."""
        wanted = canonical(name)
        for dist in self.dists:
            if dist.name == wanted:
                return dist.version
        return None

    def conda_record(self, name: str) -> CondaRecord | None:
        """The record of a conda package; None where it is not installed."""
        for record in self.conda:
            if record.name == name:
                return record
        return None


def site_folders(prefix: Path) -> list[Path]:
    """The folders of Python packages; for the running interpreter, those that it searches."""
    if prefix == Path(sys.prefix):
        found = [Path(entry) for entry in sys.path]
    else:
        found = sorted(prefix.glob("lib/python3.*/site-packages"))
    folders = []
    for folder in found:
        if folder.name in ("site-packages", "dist-packages") and folder.is_dir():
            folders.append(folder)
    return folders


def _own_sites(prefix: Path) -> list[Path]:
    return [folder for folder in site_folders(prefix) if prefix in folder.parents]


def read_prefix(prefix: Path) -> Installed:
    """Everything installed in a prefix. Broken records are listed in `problems`; nothing is
    imported.
    """
    problems: list[BrokenRecord] = []
    backend = find_backend(prefix)
    conda: list[CondaRecord] = []
    if backend.has_conda_layer:
        conda = _read_conda_records(prefix, problems)
    dists = _read_dists(prefix, conda, problems)
    return Installed(prefix, backend, conda, dists, problems)


# conda's records


def _read_conda_records(
    prefix: Path, problems: list[BrokenRecord]
) -> list[CondaRecord]:
    site = "site-packages"
    for folder in _own_sites(prefix)[:1]:
        site = folder.relative_to(prefix).as_posix()
    records = []
    for path in sorted((prefix / CONDA_META).glob("*.json")):
        try:
            document = json.loads(read_regular(path, LARGEST_JSON))
            records.append(_parse_conda_record(document, site, file_sha256(path)))
        except FileRefused as error:
            problems.append(
                BrokenRecord(Layer.CONDA, path, f"is not a conda record ({error})")
            )
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            problem = f"is not a conda record ({type(error).__name__}: {error})"
            problems.append(BrokenRecord(Layer.CONDA, path, problem))
    return records


def _parse_conda_record(document: Any, site: str, sha256_here: str) -> CondaRecord:
    hashes = {}
    for entry in document["paths_data"]["paths"]:
        path = _installed_path(entry["_path"], site)
        hashes[path] = ""
        if entry.get("path_type", "hardlink") in ("hardlink", "copy"):
            hashes[path] = entry.get("sha256_in_prefix") or entry.get("sha256") or ""
    return CondaRecord(
        name=document["name"],
        version=document["version"],
        build=document.get("build") or document.get("build_string", ""),
        channel=_channel_name(document),
        sha256=document.get("sha256") or "",
        md5=document.get("md5") or "",
        sha256_here=sha256_here,
        hashes=hashes,
    )


def _installed_path(path: str, site: str) -> str:
    """The path of a file in the prefix: the record of a noarch package may have the packed one."""
    for packed, installed in (
        ("site-packages/", f"{site}/"),
        ("python-scripts/", "bin/"),
    ):
        if path.startswith(packed):
            return installed + path[len(packed) :]
    return path


def _channel_name(document: Any) -> str:
    channel = str(document.get("channel") or document.get("url", "")).rstrip("/")
    return re.sub(r"/(linux-64|noarch)(/.*)?$", "", channel).rsplit("/", 1)[-1]


# Python's distributions


def _read_dists(
    prefix: Path, conda: Iterable[CondaRecord], problems: list[BrokenRecord]
) -> list[Dist]:
    owned: dict[str, dict[str, str]] = {}
    for record in conda:
        owned.update(record.infos)
    dists = []
    for folder in site_folders(prefix):
        for path in sorted(folder.iterdir()):
            if path.name.endswith((".dist-info", ".egg-info")):
                dists.append(_read_dist(prefix, path, owned, problems))
    return dists


def _read_dist(
    prefix: Path,
    path: Path,
    owned: Mapping[str, Mapping[str, str]],
    problems: list[BrokenRecord],
) -> Dist:
    name = info_name(path.name)
    version = "unknown"
    try:
        # The description may have a line "Name:" too: only the header is parsed.
        header = HeaderParser().parsestr(_read_metadata(path), headersonly=True)
        name = canonical(header["Name"])
        version = header["Version"].strip()
    except (OSError, TypeError, AttributeError):
        problems.append(BrokenRecord(Layer.PIP, path, "has no readable METADATA", name))
    manager = Layer.PIP
    if prefix in path.parents:
        conda_hashes = owned.get(path.relative_to(prefix).as_posix())
        if conda_hashes is not None and _is_as_recorded(path, conda_hashes):
            manager = Layer.CONDA
    return Dist(name, version, manager, path)


def _read_metadata(path: Path) -> str:
    """The text of METADATA, or of an egg-info. Empty for what is not a regular file: reading a pipe
    would not end.
    """
    file = path
    if path.is_dir():
        file = path / ("METADATA" if path.suffix == ".dist-info" else "PKG-INFO")
    if not file.is_file():
        return ""
    return file.read_text(encoding="utf-8", errors="replace")


def _is_as_recorded(info: Path, recorded: Mapping[str, str]) -> bool:
    """Whether a dist-info is as conda installed it: pip and uv replace a package in place, and
    leave conda's record.
    """
    for name, sha256 in recorded.items():
        if sha256 and file_sha256(info / name) != sha256:
            return False
    return True


def info_name(folder: str) -> str:
    """The normalised package name in the name of a dist-info or egg-info."""
    name = re.sub(r"\.(dist|egg)-info$", "", folder.rsplit("/", 1)[-1])
    return canonical(name.partition("-")[0])


# RECORD


def read_record_rows(record: Path) -> list[RecordRow]:
    """The files that a RECORD lists. Raises OSError, and ValueError where it is damaged."""
    text = read_regular(record, RECORD_LIMIT).decode("utf-8")
    rows = []
    try:
        for fields in parse_record(text):
            if not fields or not fields[0]:
                continue
            sha256 = _decoded_or_damaged(fields[1]) if len(fields) > 1 else ""
            size = int(fields[2]) if len(fields) > 2 and fields[2].isdigit() else -1
            rows.append(RecordRow(fields[0], sha256, size))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    return rows


def _decoded_or_damaged(text: str) -> str:
    try:
        return decode_hash(text)
    except ValueError:
        return "damaged"  # no file has this hash


def read_record(dist: Dist) -> str:
    """The text of a RECORD; empty if it cannot be read."""
    try:
        return read_regular(dist.path / "RECORD", RECORD_LIMIT).decode("utf-8")
    except (OSError, FileRefused, UnicodeDecodeError):
        return ""


def hash_record(dist: Dist) -> str:
    """The digest of a RECORD, as the locks have it; empty if it cannot be read or is damaged."""
    try:
        content = read_regular(dist.path / "RECORD", RECORD_LIMIT)
        return record_digest(content.decode("utf-8"))
    except (OSError, FileRefused, ValueError, csv.Error):
        return ""


def record_hashes(record: Path) -> dict[Path, str]:
    """path -> sha256 in hex of the files that a RECORD has a hash for. Raises as
    `read_record_rows`.
    """
    site = str(record.parent.parent)
    found = {}
    for row in read_record_rows(record):
        if row.sha256:
            found[Path(os.path.normpath(os.path.join(site, row.path)))] = row.sha256
    return found


def decode_hash(text: str) -> str:
    """The sha256 of a RECORD's row (sha256=URLSAFE-BASE64) in hex; empty if it has none. Raises
    ValueError.
    """
    if not text.startswith("sha256="):
        return ""
    # As base64.urlsafe_b64decode, which takes three times as long for 25,000 of them.
    encoded = text[len("sha256=") :].replace("-", "+").replace("_", "/")
    return binascii.a2b_base64(f"{encoded}==").hex()


# Hashing


def file_sha256(path: Path) -> str:
    """The sha256 of a file; empty if it cannot be read."""
    if not path.is_file():  # reading a pipe would not end
        return ""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while True:
                block = file.read(BLOCK)
                if not block:
                    return digest.hexdigest()
                digest.update(block)
    except OSError:
        return ""


def hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """The sha256 of each file, on all cores: hashlib releases the interpreter's lock meanwhile."""
    listed = list(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(listed, pool.map(file_sha256, listed)))
