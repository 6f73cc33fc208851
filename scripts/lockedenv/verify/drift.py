"""The difference between the locks and a prefix's packages: a pure function over both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lockedenv.errors import printable
from lockedenv.host.files import read_json
from lockedenv.prefix.conda_files import CONDA_META, record_path
from lockedenv.prefix.inventory import Inventory
from lockedenv.prefix.records import (
    BrokenRecord,
    CondaRecord,
    Dist,
    Installed,
    hash_record,
    info_name,
    read_record,
)
from lockedenv.redaction import redact
from lockedenv.spec.layers import Layer
from lockedenv.spec.locks import CondaPackage, PipPackage, canonical
from lockedenv.verify.remedies import RemedyKind


class DriftKind(Enum):
    """What is wrong with a package."""

    MISSING = "missing"
    VERSION = "version"
    BUILD = "build"
    CHANNEL = "channel"
    ARCHIVE = "archive"
    NO_HASH = "no hash"
    TWICE = "twice"
    OTHER_LAYER = "other layer"
    OVERWRITTEN = "overwritten"
    NO_DIST_INFO = "no dist-info"
    OTHER_SOURCE = "other source"
    RECORD = "record"
    UNREADABLE = "unreadable"
    ADDED_TWICE = "added twice"


# What mends a package of the pip layer; one of the conda layer needs a rebuild.
PIP_ACTIONS = {kind: RemedyKind.REPAIR for kind in DriftKind}
PIP_ACTIONS[DriftKind.ADDED_TWICE] = RemedyKind.REMOVE


@dataclass(frozen=True)
class PackageFinding:
    """One difference: the package, the kind of problem, the problem in words, and what mends it.

    `path`: what is to be removed, where that mends it and nothing else does.
    """

    package: str
    kind: DriftKind
    problem: str
    action: RemedyKind
    path: Path | None = None

    def __str__(self) -> str:
        return printable(f"{self.package}: {self.problem}")


def pip_finding(package: str, kind: DriftKind, problem: str) -> PackageFinding:
    return PackageFinding(package, kind, problem, PIP_ACTIONS[kind])


def conda_finding(package: str, kind: DriftKind, problem: str) -> PackageFinding:
    return PackageFinding(package, kind, problem, RemedyKind.REBUILD)


# The conda layer


def conda_findings(
    locked: Iterable[CondaPackage], installed: Installed, inventory: Inventory | None
) -> list[PackageFinding]:
    """Missing, twice, another version, build, channel or archive; replaced by pip;
    another record."""
    found = []
    for broken in installed.problems:
        if broken.manager == Layer.CONDA:
            found.append(conda_finding(CONDA_META, DriftKind.UNREADABLE, str(broken)))
    for package in locked:
        records = [record for record in installed.conda if record.name == package.name]
        if not records:
            found.append(_missing_from_conda(package, installed))
            continue
        if len(records) > 1:
            builds = []
            for record in records:
                builds.append(f"{record.version} {record.build}")
            problem = f"has {len(records)} conda records: {' and '.join(builds)}"
            found.append(conda_finding(package.name, DriftKind.TWICE, problem))
        difference = _compare_archive(package, records[0])
        if difference:
            found.append(difference)
    for record in installed.conda:
        found += _replaced_by_pip(record, installed)
    found += _changed_records(installed, inventory)
    return found


def _changed_records(
    installed: Installed, inventory: Inventory | None
) -> list[PackageFinding]:
    """The conda records that are not those which the installation left."""
    if inventory is None:
        return []
    noted = {entry.path: entry.sha256 for entry in inventory.entries}
    found = []
    for record in installed.conda:
        path = record_path(record.name, record.version, record.build)
        if noted.get(path, record.sha256_here) != record.sha256_here:
            problem = "its conda record is not the one that the installation left"
            found.append(conda_finding(record.name, DriftKind.RECORD, problem))
    return found


def _missing_from_conda(package: CondaPackage, installed: Installed) -> PackageFinding:
    name = canonical(package.name)
    for dist in installed.dists:
        if dist.name == name and dist.manager == Layer.PIP:
            problem = f"installed by pip ({dist.version}), locked from conda"
            return conda_finding(package.name, DriftKind.OTHER_LAYER, problem)
    return conda_finding(package.name, DriftKind.MISSING, "missing")


def _compare_archive(
    package: CondaPackage, record: CondaRecord
) -> PackageFinding | None:
    compared = (
        (DriftKind.VERSION, "version", record.version, package.version),
        (DriftKind.BUILD, "build", record.build, package.build),
        (DriftKind.CHANNEL, "channel", record.channel, package.channel),
    )
    hashes = (
        (DriftKind.ARCHIVE, "archive sha256", record.sha256, package.sha256),
        (DriftKind.ARCHIVE, "archive md5", record.md5, package.md5),
    )
    recorded_hashes = [row for row in hashes if row[2]]
    for kind, name, has, wants in (*compared, *recorded_hashes):
        if has != wants:
            return conda_finding(
                package.name, kind, f"{name} is {has}, locked is {wants}"
            )
    if not recorded_hashes:
        problem = "its conda record has no hash to compare with the lock's"
        return conda_finding(package.name, DriftKind.NO_HASH, problem)
    return None


def _replaced_by_pip(record: CondaRecord, installed: Installed) -> list[PackageFinding]:
    found = []
    for folder in record.infos:
        name = info_name(folder)
        dists = _find_dists(installed.dists, name)
        if not dists:
            found.append(
                conda_finding(
                    record.name, DriftKind.NO_DIST_INFO, "its dist-info is gone"
                )
            )
        elif all(dist.manager != Layer.CONDA for dist in dists):
            problem = f"pip put {dists[0].version} over conda's {record.version}"
            found.append(conda_finding(record.name, DriftKind.OVERWRITTEN, problem))
    return found


# The pip layer


def pip_findings(
    locked: Iterable[PipPackage], installed: Installed, inventory: Inventory | None
) -> list[PackageFinding]:
    """Wheels: missing, twice, another version, put there by conda, or not the locked wheel."""
    packages = list(locked)
    names = {package.name for package in packages}
    known = set(names)
    if inventory:
        for noted in inventory.packages:
            known.add(noted.name)
    found = []
    superfluous = set()
    for broken in installed.problems:
        if broken.manager == Layer.PIP:
            finding = _broken_dist_info(broken, installed, known)
            found.append(finding)
            superfluous.add(finding.path)
    whole = [dist for dist in installed.dists if dist.path not in superfluous]
    for package in packages:
        dists = _find_dists(whole, package.name)
        if not dists:
            problem = f"missing, locked is {package.version}"
            found.append(pip_finding(package.name, DriftKind.MISSING, problem))
            continue
        if len(dists) > 1:
            places = []
            for dist in dists:
                places.append(str(dist.path))
            problem = f"installed {len(dists)} times: {', '.join(places)}"
            found.append(pip_finding(package.name, DriftKind.TWICE, problem))
        other = _find_other_version(dists, package.version)
        if other is not None:
            problem = f"version is {other}, locked is {package.version}"
            found.append(pip_finding(package.name, DriftKind.VERSION, problem))
            continue
        difference = _compare_wheel(package, dists[0], inventory)
        if difference:
            found.append(difference)
    found += _added_twice(whole, names)
    return found


def _find_dists(dists: Iterable[Dist], name: str) -> list[Dist]:
    """The distributions of a name: more than one where it is installed twice."""
    return [dist for dist in dists if dist.name == name]


def _find_other_version(dists: Iterable[Dist], version: str) -> str | None:
    """The first version that is not this one; None if all are."""
    for dist in dists:
        if dist.version != version:
            return dist.version
    return None


def _broken_dist_info(
    broken: BrokenRecord, installed: Installed, known: set[str]
) -> PackageFinding:
    """A dist-info that describes nothing.

    No installation replaces one that is of no locked package, or beside its own.
    """
    name = "dist-info"
    for record in installed.conda:
        for folder in record.infos:
            if installed.prefix / folder == broken.path:
                return conda_finding(name, DriftKind.UNREADABLE, str(broken))
    unreadable = {other.path for other in installed.problems}
    readable = set()
    for dist in installed.dists:
        if dist.path not in unreadable:
            readable.add(dist.name)
    if broken.package in known and broken.package not in readable:
        problem = f"{broken}; reinstall {broken.package}"
        return pip_finding(name, DriftKind.UNREADABLE, problem)
    return PackageFinding(
        name, DriftKind.UNREADABLE, str(broken), RemedyKind.REMOVE, broken.path
    )


def _compare_wheel(
    package: PipPackage, dist: Dist, inventory: Inventory | None
) -> PackageFinding | None:
    name = package.name
    if dist.manager == Layer.CONDA:
        return pip_finding(
            name, DriftKind.OTHER_LAYER, "installed by conda, locked from PyPI"
        )
    url = read_json(dist.path / "direct_url.json").get("url")
    if url:
        problem = f"installed from {redact(str(url))}, not from the locked wheel"
        return pip_finding(name, DriftKind.OTHER_SOURCE, problem)
    record = read_record(dist)
    if "sha256=" not in record:
        return pip_finding(
            name, DriftKind.RECORD, f"{dist.path / 'RECORD'} lists no files"
        )
    noted = inventory.package(name) if inventory else None
    if noted and noted.sha256 != package.sha256:
        problem = "was installed from another wheel than the one that is locked now"
        return pip_finding(name, DriftKind.ARCHIVE, problem)
    if package.record_sha256 and hash_record(dist) != package.record_sha256:
        problem = (
            "its RECORD is not the locked wheel's: another build, or it was edited"
        )
        return pip_finding(name, DriftKind.RECORD, problem)
    return None


def _added_twice(dists: Iterable[Dist], locked: set[str]) -> list[PackageFinding]:
    """Distributions that are there twice and that no lock names."""
    counts: Counter[str] = Counter()
    for dist in dists:
        if dist.name not in locked:
            counts[dist.name] += 1
    found = []
    for name, count in counts.items():
        if count > 1:
            found.append(
                pip_finding(name, DriftKind.ADDED_TWICE, f"installed {count} times")
            )
    return found


def extras(installed: Installed, locked: set[str]) -> list[str]:
    """What is installed beyond the locks, as "name version". Not an error: people add packages."""
    listed = []
    for record in installed.conda:
        if record.name not in locked:
            listed.append(f"{record.name} {record.version}")
    for dist in installed.dists:
        if dist.manager == Layer.PIP and dist.name not in locked:
            listed.append(f"{dist.name} {dist.version}")
    return [printable(line) for line in listed]
