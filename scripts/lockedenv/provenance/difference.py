"""What differs between two session manifests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lockedenv.errors import printable
from lockedenv.provenance.manifest import Manifest, packages_fingerprint
from lockedenv.provenance.packages import FLASH_ATTN, InstalledPackage

SHORT = 12  # characters of a hash that are shown


class DifferenceGroup(Enum):
    """What kind of thing differs; in the order in which it is shown."""

    PYTHON = "Python"
    PACKAGES = "packages"
    GPU = "GPU"
    DRIVER = "driver"
    VARIABLES = "variables"
    MACHINE = "machine"
    LOCKS = "locks"


class Agreement(Enum):
    """Whether two manifests are of the same environment."""

    SAME = "the same environment"
    DIFFERENT = "NOT the same environment"
    # One of the two is of a version that did not record the machine's Python.
    PYTHON_NOT_COMPARED = "the same packages; Python was not compared"


@dataclass(frozen=True)
class ManifestDifference:
    """One thing that differs; None where a manifest does not have it."""

    group: DifferenceGroup
    name: str
    first: str | None
    second: str | None

    def document(self) -> dict[str, str]:
        """Its JSON; "-" where a manifest does not have it."""
        return {
            "group": self.group.value,
            "name": self.name,
            "first": shown(self.first),
            "second": shown(self.second),
        }


def judge(first: Manifest, second: Manifest) -> Agreement:
    """Whether both are of the same environment: by packages and their hashes,
    and the machine's Python."""
    if packages_fingerprint(first) != packages_fingerprint(second):
        return Agreement.DIFFERENT
    if first.lacks_python or second.lacks_python:
        return Agreement.PYTHON_NOT_COMPARED
    if first.fingerprint != second.fingerprint:
        return Agreement.DIFFERENT
    return Agreement.SAME


def find_differences(first: Manifest, second: Manifest) -> list[ManifestDifference]:
    """All that differs, by group and name."""
    found = []
    first_facts = facts_of(first)
    second_facts = facts_of(second)
    for group in DifferenceGroup:
        if group is DifferenceGroup.PYTHON and (
            first.lacks_python or second.lacks_python
        ):
            continue
        left = first_facts[group]
        right = second_facts[group]
        for name in sorted({*left, *right}):
            if left.get(name) != right.get(name):
                found.append(
                    ManifestDifference(group, name, left.get(name), right.get(name))
                )
    return found


def facts_of(manifest: Manifest) -> dict[DifferenceGroup, dict[str, str]]:
    """What can differ, as name -> value by group."""
    gpus = {}
    drivers = {}
    for index, gpu in enumerate(manifest.gpus):
        gpus[f"GPU {index}"] = f"{gpu.name}, {gpu.memory} bytes, {gpu.capability}"
        drivers[f"GPU {index}"] = gpu.driver
    for name, value in manifest.cuda.items():
        drivers[name] = str(value)
    python = {}
    if manifest.interpreter is not None:
        python = {
            "version": manifest.interpreter.version,
            "build": manifest.interpreter.build,
            "standard library": manifest.interpreter.sha256[:SHORT],
        }
    packages = {}
    for package in manifest.packages:
        packages[f"{package.name} ({package.manager})"] = describe_package(package)
    machine = {}
    for name, value in manifest.machine.items():
        machine[name] = str(value)
    locks = {}
    for name, value in manifest.locks.items():
        locks[name] = str(value)[:SHORT]
    return {
        DifferenceGroup.PYTHON: python,
        DifferenceGroup.PACKAGES: packages,
        DifferenceGroup.GPU: gpus,
        DifferenceGroup.DRIVER: drivers,
        DifferenceGroup.VARIABLES: dict(manifest.variables),
        DifferenceGroup.MACHINE: machine,
        DifferenceGroup.LOCKS: locks,
    }


def describe_package(package: InstalledPackage) -> str:
    """Version, build, channel and the start of the hash; of flash-attn, which counts by version,
    no hash."""
    words = [package.version, package.build, package.channel]
    if package.name != FLASH_ATTN:
        words.append(package.hash[:SHORT])
    return " ".join(word for word in words if word)


def describe_comparison(
    first: Manifest, second: Manifest, names: tuple[str, str]
) -> list[str]:
    """Lines for people: whether they agree, then what differs by group."""
    agreement = judge(first, second)
    fingerprints = f"{first.fingerprint[:SHORT]}, {second.fingerprint[:SHORT]}"
    lines = [
        f"{names[0]} and {names[1]}: {agreement.value} (fingerprints {fingerprints})"
    ]
    for name, manifest in zip(names, (first, second)):
        if manifest.lacks_python:
            lines.append(
                f"{name} is of schema version {manifest.schema_version}, which does not record the "
                "machine's Python; make it again with --manifest FILE to compare that too"
            )
    group = None
    for difference in find_differences(first, second):
        if difference.group is not group:
            group = difference.group
            lines.append(f"{group.value}:")
        left = printable(shown(difference.first))
        right = printable(shown(difference.second))
        lines.append(f"  {printable(difference.name):<28} {left}  ->  {right}")
    return lines


def shown(value: str | None) -> str:
    """A value for people; "-" for None."""
    if value is None:
        return "-"
    return value
