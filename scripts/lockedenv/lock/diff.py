"""What changed in the locks since a git revision."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml
from lockedenv.errors import UsageError
from lockedenv.host.process import ask
from lockedenv.lock.write import TOOLS
from lockedenv.spec.environment import (
    CONDA_LOCK,
    DEV,
    FLASH,
    WHEELS_OVER_CONDA,
    Environment,
)

LAYERS = {
    CONDA_LOCK: "conda",
    WHEELS_OVER_CONDA: "pip",
    FLASH: "source",
    DEV: "dev",
    TOOLS: "tools",
}


@dataclass(frozen=True, order=True)
class LockedPlace:
    """Where a package is locked."""

    environment: str
    layer: str
    package: str


@dataclass(frozen=True)
class Change:
    """A package whose version or build is another; empty where it was not there, or is no more."""

    place: LockedPlace
    before: str
    after: str

    def row(self) -> str:
        place = self.place
        cells = (place.environment, place.layer, place.package, self.before, self.after)
        return f"| {' | '.join(cells)} |"


def find_changes(environments: list[Environment], revision: str) -> list[Change]:
    """What changed in the locks of these environments since a revision.

    Raises UsageError for one that does not exist.
    """
    changes = []
    for env in environments:
        env.conda()  # raises LockError for a lock that cannot be read
        _require_revision(env, revision)
        before: dict[LockedPlace, str] = {}
        after: dict[LockedPlace, str] = {}
        for name, layer in LAYERS.items():
            path = env.folder / name
            old = ask(["git", "show", f"{revision}:./{name}"], cwd=env.folder).output
            before.update(_read_versions(env, layer, old))
            if path.exists():
                after.update(
                    _read_versions(env, layer, path.read_text(encoding="utf-8"))
                )
        for place in sorted({*before, *after}):
            change = Change(place, before.get(place, ""), after.get(place, ""))
            if change.before != change.after:
                changes.append(change)
    return changes


def _require_revision(env: Environment, revision: str) -> None:
    found = ask(
        ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"],
        cwd=env.folder,
    )
    if found.status != 0:
        raise UsageError(
            f"--diff {revision}: {env.folder} has no such revision; "
            "`git log` lists those that it has"
        )


def _read_versions(env: Environment, layer: str, text: str) -> dict[LockedPlace, str]:
    """The version of each package in the text of a lock, with the build of a conda package."""
    versions = {}
    if layer == "conda":  # by YAML, for what earlier versions of lock.sh wrote
        for package in (yaml.safe_load(text) or {}).get("package", []):
            build = re.sub(r".*-|\.(conda|tar\.bz2)$", "", package["url"])
            place = LockedPlace(env.name, layer, package["name"])
            versions[place] = f"{package['version']} {build}"
        return versions
    for name, version in re.findall(r"^(\S+)==(\S+)", text, re.M):
        versions[LockedPlace(env.name, layer, name)] = version
    return versions


def changes_text(changes: list[Change]) -> str:
    """The changes as a Markdown table."""
    if not changes:
        return "No lock changed."
    lines = [
        "| environment | layer | package | before | after |",
        "|---|---|---|---|---|",
    ]
    for change in changes:
        lines.append(change.row())
    return "\n".join(lines)
