"""The digest of a wheel's RECORD, the same in the archive and wherever it was unpacked.

A wheel lists its files with their hashes in `NAME-VERSION.dist-info/RECORD`, and an installer
carries this list over into the prefix. So a digest of the list in the lock tells whether an
unpacked package is the locked wheel itself, whoever installed it.
https://packaging.python.org/en/latest/specifications/recording-installed-packages/
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io

# What an installer adds to a dist-info folder, or leaves out of it.
WRITTEN_BY_INSTALLERS = {
    "INSTALLER",
    "RECORD",
    "RECORD.jws",
    "RECORD.p7s",
    "REQUESTED",
    "direct_url.json",
    "uv_build.json",
    "uv_cache.json",
}


# The verifier needs each RECORD three times: for its rows, and for its digest in two checks.
@functools.lru_cache(maxsize=None)
def parse_record(text: str) -> tuple[list[str], ...]:
    """The rows of a RECORD: path, hash, size. Not to be changed. Raises csv.Error."""
    return tuple(csv.reader(io.StringIO(text)))


@functools.lru_cache(maxsize=None)
def record_digest(text: str) -> str:
    """The sha256 of what a RECORD says about the files of its package.

    `text` is the content of a RECORD, from a wheel or from a prefix. Each file counts with its
    path, its hash and its size, in sorted order. Rows that depend on the installer are left
    out: rows without a hash, bytecode, scripts (an installer writes their first line anew) and
    the files that installers add. A file that is installed outside of site-packages counts by
    its name alone, since its folder depends on the prefix.
    """
    rows = set()
    for row in parse_record(text):
        if len(row) != 3:
            continue
        path, digest, size = row
        place = _normalized_path(path)
        if place and digest:
            rows.add(f"{place},{digest},{size}\n")
    return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()


def _normalized_path(path: str) -> str:
    """A path of a RECORD in the form that wheels and prefixes share.

    Empty for a file that does not count.
    """
    parts = path.split("/")
    name = parts[-1]
    folder = parts[-2] if len(parts) > 1 else ""
    if folder.endswith(".dist-info") and name in WRITTEN_BY_INSTALLERS:
        return ""
    if folder == "__pycache__" and name.endswith(".pyc"):
        return ""
    if parts[0] in ("", ".."):  # in a prefix, outside of site-packages
        return "" if folder == "bin" else name
    if not parts[0].endswith(".data") or len(parts) < 3:
        return path
    # In a wheel, what is installed by category:
    #   https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    category = parts[1]
    if category in ("purelib", "platlib"):
        return "/".join(parts[2:])
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    if category == "scripts" or folder == "bin":
        return ""
    return name
