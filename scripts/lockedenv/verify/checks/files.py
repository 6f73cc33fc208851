"""Every installed file against the hash that its installer recorded: disks flip bits, and people edit site-packages."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterator, Tuple

from lockedenv.installed import Installed, file_sha256, in_prefix
from lockedenv.machine import size_text
from lockedenv.verify.checks import FULL, Context, check, first
from lockedenv.verify.drift import REMAKE
from lockedenv.verify.results import Result, failed, passed


def recorded_files(installed: Installed) -> Dict[Path, str]:
    """path -> sha256 in hex, for every file that conda-meta or a dist-info's RECORD gives a hash for."""
    files: Dict[Path, str] = {}
    for record in installed.conda:
        data = json.loads(record.file.read_text(encoding="utf-8"))
        for entry in data.get("paths_data", {}).get("paths", []):
            sha = entry.get("sha256_in_prefix") or entry.get("sha256")
            if sha and entry.get("path_type") in ("hardlink", "copy"):
                files[installed.prefix / in_prefix(entry["_path"])] = sha
    for dist in installed.dists:
        if dist.manager == "pip" and (dist.path / "RECORD").is_file():
            files.update(_record_entries(dist.path / "RECORD"))
    return files


def _record_entries(record: Path) -> Iterator[Tuple[Path, str]]:
    with record.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            if len(row) == 3 and row[1].startswith("sha256="):
                sha = base64.urlsafe_b64decode(row[1][7:] + "==").hex()
                yield Path(os.path.normpath(record.parent.parent / row[0])), sha


@check("files", "every file of both layers is byte for byte what its installer recorded", level=FULL)
def files(context: Context) -> Result:
    wanted = recorded_files(context.installed)
    prefix, wrong, done, size = context.installed.prefix, [], 0, 0
    owners = {path: path.relative_to(prefix) if prefix in path.parents else path for path in wanted}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets go of the interpreter while it hashes
        for path, sha in zip(wanted, pool.map(file_sha256, wanted)):
            done += 1
            if done % 500 == 0:
                context.progress(f"files: {done} of {len(wanted)} hashed")
            if sha == wanted[path]:
                size += path.stat().st_size
            else:
                wrong.append(f"{owners[path]}: {_what(path, sha)}")
    if wrong:
        return failed(first(wrong), REMAKE, wrong[1:], files=len(wanted))
    return passed(f"{len(wanted)} files, {size_text(size)}, all as recorded", files=len(wanted), bytes=size)


def _what(path: Path, sha: str) -> str:
    if not path.exists():
        return "missing"
    if not sha:
        return "cannot be read"
    return "empty" if sha == hashlib.sha256().hexdigest() else "changed since it was installed"
