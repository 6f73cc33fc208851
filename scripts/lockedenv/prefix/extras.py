"""The packages that users added to an environment, as requirements that install exactly the same
code again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lockedenv.host.files import read_json
from lockedenv.prefix.inventory import Inventory, inventory_or_none
from lockedenv.prefix.records import Dist, Installed, read_prefix
from lockedenv.prefix.version_2 import read_note
from lockedenv.redaction import redact
from lockedenv.spec import environment
from lockedenv.spec.layers import Layer


def list_added(folder: Path, shown: bool = False) -> list[str]:
    """The packages that are not in the lock that an environment was made from, as requirements.

    `shown`: without the secrets in their addresses, for output and notes.
    """
    lines = added_requirements(read_prefix(folder), inventory_or_none(folder))
    if shown:
        lines = [redact(line) for line in lines]
    return lines


def added_requirements(installed: Installed, inventory: Inventory | None) -> list[str]:
    """The same for an environment that was read already; `inventory`: its own, if it has one."""
    names = _locked_names(installed.prefix, inventory)
    lines = []
    for record in installed.conda:
        if record.name not in names:
            lines.append(f"# by conda: {record.name}={record.version}")
    for dist in installed.dists:
        if dist.manager == Layer.PIP and dist.name not in names:
            lines.append(requirement(dist, installed.prefix))
    return sorted(lines)


def _locked_names(folder: Path, inventory: Inventory | None) -> set[str]:
    """The names of the packages in the inventory; without one, those in version 2.0's note, or in
    the present locks.
    """
    if inventory is not None:
        return {package.name for package in inventory.packages}
    return read_note(folder).names or set(environment.find_compared(folder).names())


def requirement(dist: Dist, folder: Path) -> str:
    """The line that installs a distribution again: from the same address, commit and subdirectory.

    One that was installed from a folder in the environment itself cannot be installed again: its
    line is a comment.
    """
    document = read_json(dist.path / "direct_url.json")
    url = document.get("url")
    if not isinstance(url, str) or not url:
        return f"{dist.name}=={dist.version}"
    url = _with_commit(url, document)
    if _lies_in(folder, url):
        return f"# from a folder in the environment itself: {dist.name} at {url}"
    url = _with_fragment(url, document)
    if _object(document, "dir_info").get("editable") is True:
        return f"-e {url}"
    return f"{dist.name} @ {url}"


def _with_commit(url: str, document: dict[str, Any]) -> str:
    """The address with its version control system and commit, such as git+ADDRESS@COMMIT."""
    vcs = _object(document, "vcs_info")
    if not vcs.get("vcs"):
        return url
    url = f"{vcs['vcs']}+{url}"
    if vcs.get("commit_id"):
        url = f"{url}@{vcs['commit_id']}"
    return url


def _lies_in(folder: Path, url: str) -> bool:
    """Whether an address is that of a path in the environment."""
    return url.startswith((f"file://{folder}/", f"file://{os.path.realpath(folder)}/"))


def _with_fragment(url: str, document: dict[str, Any]) -> str:
    """The address with the hash of its archive and the folder in it, where one is recorded."""
    fragment = []
    hashes = _object(_object(document, "archive_info"), "hashes")
    if hashes.get("sha256"):
        fragment.append(f"sha256={hashes['sha256']}")
    if document.get("subdirectory"):
        fragment.append(f"subdirectory={document['subdirectory']}")
    if not fragment or "#" in url:
        return url
    return f"{url}#{'&'.join(fragment)}"


def _object(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}
