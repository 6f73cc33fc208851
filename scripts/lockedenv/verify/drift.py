"""The difference between the locks and a prefix: a pure function over both."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import List

from lockedenv.host.files import read_json
from lockedenv.prefix.records import INSTALLED, Installed, file_sha256, info_name
from lockedenv.redaction import redact
from lockedenv.spec.locks import CondaPackage, PipPackage, canonical

REMAKE = "rebuild the environment: scripts/setup_runpod_environment.sh --force (it lists what you have added)"
REPAIR = "scripts/post_create.sh puts the pip layer right, and keeps what you have added"


@dataclass
class Finding:
    """One difference: the package, what is wrong with it, and what to do."""

    package: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.package}: {self.problem}"


def conda_findings(locked: List[CondaPackage], installed: Installed) -> List[Finding]:
    """The conda layer: missing, twice, another version, build, channel or archive; replaced by pip."""
    found = []
    for package in locked:
        records = [r for r in installed.conda if r.name == package.name]
        if not records:
            others = [
                d
                for d in installed.dists
                if d.name == canonical(package.name) and d.manager == "pip"
            ]
            problem = (
                f"installed by pip ({others[0].version}), locked from conda"
                if others
                else "missing"
            )
            found.append(Finding(package.name, problem, REMAKE))
            continue
        if len(records) > 1:
            twice = " and ".join(f"{r.version} {r.build}" for r in records)
            found.append(
                Finding(package.name, f"has {len(records)} conda records: {twice}", REMAKE)
            )
        record = records[0]
        for what in ("version", "build", "channel", "archive sha256", "archive md5"):
            has, wants = (getattr(of, what.split()[-1]) for of in (record, package))
            if has != wants and (has or not what.startswith("archive")):
                found.append(Finding(package.name, f"{what} is {has}, locked is {wants}", REMAKE))
                break
        else:
            if not (record.sha256 or record.md5):
                found.append(
                    Finding(
                        package.name,
                        "its conda record has no hash to compare with the lock's",
                        REMAKE,
                    )
                )
    left = read_json(installed.prefix / INSTALLED).get("conda", {})
    for record in installed.conda:
        if left.get(record.name) not in (None, record.sha256_here):
            found.append(
                Finding(
                    record.name,
                    "its conda record is not the one that the installation left",
                    REMAKE,
                )
            )
        for name in map(info_name, record.infos):
            dists = [d for d in installed.dists if d.name == name]
            if not any(d.manager == "conda" for d in dists):
                problem = (
                    f"pip put {dists[0].version} over conda's {record.version}"
                    if dists
                    else "its dist-info is gone"
                )
                found.append(Finding(record.name, problem, REMAKE))
    return found


def pip_findings(locked: List[PipPackage], installed: Installed, remedy: str) -> List[Finding]:
    """Wheels: missing, twice, another version, put there by conda, or not from the locked wheel."""
    found, left = [], read_json(installed.prefix / INSTALLED)
    for package in locked:
        dists = [d for d in installed.dists if d.name == package.name]
        if not dists:
            found.append(Finding(package.name, f"missing, locked is {package.version}", remedy))
            continue
        if len(dists) > 1:
            places = ", ".join(str(d.path) for d in dists)
            found.append(Finding(package.name, f"installed {len(dists)} times: {places}", remedy))
        wrong = [d for d in dists if d.version != package.version]
        if wrong:
            found.append(
                Finding(
                    package.name,
                    f"version is {wrong[0].version}, locked is {package.version}",
                    remedy,
                )
            )
        elif dists[0].manager == "conda":
            found.append(Finding(package.name, "installed by conda, locked from PyPI", remedy))
        else:
            url, record = (
                read_json(dists[0].path / "direct_url.json").get("url"),
                dists[0].path / "RECORD",
            )
            if url:
                found.append(
                    Finding(
                        package.name,
                        f"installed from {redact(url)}, not from the locked wheel",
                        remedy,
                    )
                )
            elif "sha256=" not in (
                record.read_text(encoding="utf-8", errors="replace") if record.is_file() else ""
            ):
                found.append(Finding(package.name, f"{record} lists no files", remedy))
            elif left.get("wheels", {}).get(package.name) not in (None, package.sha256):
                found.append(
                    Finding(
                        package.name,
                        "was installed from another wheel than the one that is locked now",
                        remedy,
                    )
                )
            elif left.get("records", {}).get(package.name) not in (None, file_sha256(record)):
                found.append(
                    Finding(
                        package.name,
                        "its RECORD is not the one that the install by hash left",
                        remedy,
                    )
                )
    return found


def duplicates(installed: Installed, named: List[str]) -> List[Finding]:
    """Distributions that are there twice and that no lock names (those are found above)."""
    counts = Counter(dist.name for dist in installed.dists if dist.name not in named)
    twice = ((name, count) for name, count in counts.items() if count > 1)
    return [
        Finding(name, f"installed {count} times", f"uninstall it: pip uninstall {name}")
        for name, count in twice
    ]


def extras(conda: List[CondaPackage], pip: List[PipPackage], installed: Installed) -> List[str]:
    """What is installed beyond the locks, as 'name version'. Not an error: people add packages."""
    names = {p.name for p in conda} | {p.name for p in pip}
    listed = [f"{r.name} {r.version}" for r in installed.conda if r.name not in names]
    return listed + [
        f"{d.name} {d.version}"
        for d in installed.dists
        if d.manager == "pip" and d.name not in names
    ]
