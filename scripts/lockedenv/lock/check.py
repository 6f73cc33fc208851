"""Are the locks what lock.sh would write for the present specification?

Nothing is solved, and no network is needed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Iterable

from lockedenv import ROOT
from lockedenv.lock.flash_source import (
    asks_for_flash_attn,
    read_flash_requirements,
    read_prebuilt_lines,
)
from lockedenv.lock.solve import PROGRAMS
from lockedenv.lock.specification import Specification, pypi_name, read_specification
from lockedenv.lock.write import TOOLS
from lockedenv.spec.environment import (
    CONDA_LOCK,
    DEV,
    FLASH,
    REQUIREMENTS,
    WHEELS_OVER_CONDA,
    Environment,
)
from lockedenv.spec.locks import (
    CondaLock,
    LockError,
    PipPackage,
    canonical,
    content_digest,
    read_conda_lock,
    read_pip_lock,
    read_seal,
)
from lockedenv.spec.specification import SPEC, VIRTUAL, specification_digest
from packaging.requirements import Requirement

Pins = dict[str, PipPackage]


def find_stale(env: Environment) -> list[str]:
    """Why the locks of an environment are not what lock.sh would write; empty if they are.

    Raises Stop.
    """
    specification = read_specification(env.folder / SPEC)
    asked = _list_requirements(env, specification)
    try:
        conda = read_conda_lock(env.folder / CONDA_LOCK)
        pins = {}
        for name in (*asked, REQUIREMENTS):
            pins[name] = _read_pins(env.folder / name)
    except LockError as error:
        return [str(error)]
    reasons = _compare_digests(env, [CONDA_LOCK, *pins])
    if FLASH in asked:
        reasons += _compare_prebuilt(env)
    reasons += _compare_requirements(env, asked, pins)
    reasons += _compare_conda(env, specification, conda, pins[REQUIREMENTS])
    reasons += _compare_layers(env, pins)
    return reasons


def _read_pins(path: Path) -> Pins:
    return {package.name: package for package in read_pip_lock(path)}


def _list_requirements(
    env: Environment, specification: Specification
) -> dict[str, list[str]]:
    """name of a lock -> the requirements that it is made from."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    asked = {WHEELS_OVER_CONDA: [*specification.pip.values()], DEV: groups["dev"]}
    if asks_for_flash_attn(env):
        asked[FLASH] = read_flash_requirements(env)
    if env.folder == ROOT:
        asked[TOOLS] = groups["tools"]
    return asked


def _compare_digests(env: Environment, names: Iterable[str]) -> list[str]:
    """The locks of another specification, and those that were edited after they were written."""
    reasons = []
    wanted = specification_digest(env.folder)
    for name in names:
        path = env.folder / name
        seal = read_seal(path)
        if name not in (DEV, TOOLS) and seal.specification != wanted:
            reasons.append(
                f"{path}: {SPEC} or {VIRTUAL} has changed since it was locked"
            )
        if seal.content != content_digest(path.read_text(encoding="utf-8")):
            reasons.append(f"{path}: was edited after lock.sh has written it")
    return reasons


def _compare_prebuilt(env: Environment) -> list[str]:
    text = (env.folder / FLASH).read_text(encoding="utf-8")
    locked = []
    for line in text.splitlines():
        if " @ " in line:
            locked.append(f"{line}\n")
    if locked == read_prebuilt_lines(env):
        return []
    return [
        f"{env.folder / FLASH}: has another prebuilt wheel than locks/flash-attn.in"
    ]


def _compare_requirements(
    env: Environment, asked: dict[str, list[str]], pins: dict[str, Pins]
) -> list[str]:
    """The requirements that their lock does not fulfil.

    requirements-dev.txt adds to requirements.txt, so its requirements may be locked there.
    """
    reasons = []
    for name, specs in asked.items():
        locked = pins[name]
        if name == DEV:
            locked = {**pins[REQUIREMENTS], **locked}
        for spec in specs:
            requirement = Requirement(spec)
            if requirement.marker and not requirement.marker.evaluate():
                continue
            found = locked.get(canonical(requirement.name))
            if found is None or not requirement.specifier.contains(
                found.version, prereleases=True
            ):
                version = found.version if found else "not at all"
                reasons.append(
                    f"{env.folder / name}: has {requirement.name} {version}, "
                    f"asked for is {requirement}"
                )
    return reasons


def _compare_conda(
    env: Environment, specification: Specification, conda: CondaLock, both: Pins
) -> list[str]:
    """What is asked for and not locked, and what has another version as a wheel than from conda."""
    reasons = []
    packages = {package.name: package for package in conda.packages}
    for name in specification.conda:
        if name not in packages:
            reasons.append(
                f"{env.folder / CONDA_LOCK}: lacks {name}, which {SPEC} asks for"
            )
        elif packages[name].needs_python or name in PROGRAMS:
            if pypi_name(name) not in both:
                reasons.append(
                    f"{env.folder / REQUIREMENTS}: lacks {name}, which {SPEC} asks for"
                )
    for package in conda.packages:
        wheel = both.get(pypi_name(package.name))
        if not wheel or not (package.needs_python or package.name in PROGRAMS):
            continue
        if wheel.version != package.version:
            reasons.append(
                f"{env.folder / REQUIREMENTS}: has {wheel.name} {wheel.version}, "
                f"{CONDA_LOCK} has {package.version}"
            )
    return reasons


def _compare_layers(env: Environment, pins: dict[str, Pins]) -> list[str]:
    """The packages of locks/pip.txt that requirements.txt has not, or has otherwise."""
    reasons = []
    for name, package in pins[WHEELS_OVER_CONDA].items():
        other = pins[REQUIREMENTS].get(name)
        if other is None:
            reasons.append(
                f"{env.folder / REQUIREMENTS}: lacks {name} of {WHEELS_OVER_CONDA}"
            )
        elif other != package:
            reasons.append(
                f"{env.folder / REQUIREMENTS}: has another {name} than {WHEELS_OVER_CONDA}"
            )
    return reasons
