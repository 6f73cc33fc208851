"""What a prefix holds: conda's records and the dist-infos, with who put each there."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

from lockedenv.locks import canonical


@dataclass
class CondaRecord:
    """One conda-meta record, kept in `file`. `infos`: its dist-infos, each with the sha256 of RECORD and INSTALLER."""

    name: str
    version: str
    build: str
    channel: str
    sha256: str
    md5: str
    file: Path
    infos: Dict[str, Dict[str, str]] = field(default_factory=dict)


@dataclass
class Dist:
    """One dist-info (or egg-info). `manager` is conda if a conda record owns it and it is as conda left it."""

    name: str
    version: str
    manager: str
    path: Path
    broken: str = ""


@dataclass
class Installed:
    prefix: Path
    backend: str
    conda: List[CondaRecord]
    dists: List[Dist]
    problems: List[str]

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.prefix == Path(sys.prefix) else self.prefix / "bin/python"

    def version(self, name: str) -> Optional[str]:
        """The version of a Python distribution, or None."""
        return next((d.version for d in self.dists if d.name == canonical(name)), None)

    def conda_record(self, name: str) -> Optional[CondaRecord]:
        return next((r for r in self.conda if r.name == name), None)


def site_folders(prefix: Path) -> List[Path]:
    """Where a prefix keeps Python packages; for the running interpreter, where it really looks."""
    if prefix == Path(sys.prefix):
        found = [Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    else:
        found = sorted(prefix.glob("lib/python3.*/site-packages"))
    return [p for p in found if p.is_dir()]


def in_prefix(path: str) -> str:
    """A conda record's path as it lies in a prefix of Python 3.11; noarch packages may be recorded as packed."""
    path = re.sub("^site-packages/", "lib/python3.11/site-packages/", path)
    return re.sub("^python-scripts/", "bin/", path)


def _owned_infos(paths: List[Dict[str, str]]) -> Dict[str, Dict[str, str]]:
    infos: Dict[str, Dict[str, str]] = {}
    for entry in paths:
        folder, _, name = in_prefix(entry["_path"]).rpartition("/")
        if re.search(r"/site-packages/[^/]+\.(dist|egg)-info$", folder):  # not those that a package vendors
            hashes = infos.setdefault(folder, {})
            if name in ("RECORD", "INSTALLER"):
                hashes[name] = entry.get("sha256_in_prefix") or entry.get("sha256") or ""
    return infos


def _conda_records(prefix: Path, problems: List[str]) -> List[CondaRecord]:
    records = []
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            channel = str(data.get("channel") or data.get("url", "")).rstrip("/")
            channel = re.sub(r"/(linux-64|noarch)(/.*)?$", "", channel).rsplit("/", 1)[-1]
            records.append(
                CondaRecord(
                    data["name"],
                    data["version"],
                    data.get("build") or data.get("build_string", ""),
                    channel,
                    data.get("sha256") or "",
                    data.get("md5") or "",
                    path,
                    _owned_infos(data.get("paths_data", {}).get("paths", [])),
                )
            )
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{path}: is not a conda record ({type(error).__name__}: {error}); make the prefix anew")
    return records


_HEADER = re.compile(r"^(Name|Version): *(\S+)", re.M)


def info_name(folder: str) -> str:
    """The normalised package name in the name of a dist-info or egg-info."""
    return canonical(re.sub(r"\.(dist|egg)-info$", "", folder.rsplit("/", 1)[-1]).partition("-")[0])


def _dist(path: Path, owned: Dict[str, Dict[str, str]], prefix: Path) -> Dist:
    name, version, broken = info_name(path.name), "unknown", ""
    try:
        metadata = path / ("METADATA" if path.suffix == ".dist-info" else "PKG-INFO")
        with (metadata if path.is_dir() else path).open(encoding="utf-8", errors="replace") as file:
            header: Dict[str, str] = dict(_HEADER.findall(file.read(4096)))
        name, version = canonical(header["Name"]), header["Version"]
    except (OSError, KeyError):
        broken = f"{path}: has no readable METADATA; reinstall {name}"
    hashes = owned.get(path.relative_to(prefix).as_posix()) if prefix in path.parents else None
    # pip and uv replace a conda package in place, and leave conda's record of it as it was.
    as_left = hashes is not None and all(not sha or file_sha256(path / file) == sha for file, sha in hashes.items())
    return Dist(name, version, "conda" if as_left else "pip", path, broken)


def file_sha256(path: Path) -> str:
    """The sha256 of a file; empty if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def read_prefix(prefix: Path) -> Installed:
    """Everything installed in a prefix. Broken records are listed in `problems`; nothing is imported."""
    problems: List[str] = []
    conda = _conda_records(prefix, problems)
    owned = {folder: hashes for record in conda for folder, hashes in record.infos.items()}
    dists = [
        _dist(path, owned, prefix)
        for folder in site_folders(prefix)
        for path in sorted(folder.iterdir())
        if path.name.endswith((".dist-info", ".egg-info"))
    ]
    problems += [d.broken for d in dists if d.broken]
    backend = "conda" if (prefix / "conda-meta" / "history").exists() or conda else "pip"
    return Installed(prefix, backend, conda, dists, problems)


def record_hash(dist: Dist) -> str:
    """A sha256 over a dist-info's RECORD that is the same wherever and by whichever installer it was installed.

    Left out: scripts (their first line names the prefix), bytecode, and the installer's own notes.
    """
    lines = []
    try:
        for line in (dist.path / "RECORD").read_text(encoding="utf-8").splitlines():
            name = line.split(",", 1)[0]
            note = name.startswith(dist.path.name) and name.rsplit("/", 1)[-1] in _NOTES
            if not (name.startswith("..") or "__pycache__/" in name or note):
                lines.append(line)
    except OSError:
        return ""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


_NOTES = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"}
