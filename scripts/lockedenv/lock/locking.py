"""environment.yml to the locks: conda-lock solves one layer, and uv resolves the wheels over it.

conda-lock's own pip solver is not used: it reads the dependencies of torch from PyPI although
conda provides it, and then asks for NVIDIA's wheels. Nothing is written until all of it has been
made.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterable

from lockedenv import ROOT
from lockedenv.errors import Stop
from lockedenv.lock import resolve
from lockedenv.lock.flash_source import (
    asks_for_flash_attn,
    read_flash_requirements,
    read_prebuilt_lines,
)
from lockedenv.lock.solve import find_provided, solve
from lockedenv.lock.specification import Specification, pypi_name, read_specification
from lockedenv.lock.wheel_files import fetch_record_digests
from lockedenv.lock.write import TOOLS, conda_lock_text, requirements_text, write_locks
from lockedenv.spec.environment import (
    CONDA_LOCK,
    DEV,
    FLASH,
    REQUIREMENTS,
    WHEELS_OVER_CONDA,
    Environment,
)
from lockedenv.spec.layers import BackendName
from lockedenv.spec.locks import LockError, PipPackage, read_pip_lock, read_seal
from lockedenv.spec.specification import SPEC, VIRTUAL, specification_digest

Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Locked:
    """What was locked: how many conda packages, wheels over them, and wheels of both layers."""

    environment: str
    conda: int
    pip: int
    both: int


@dataclass
class Resolution:
    """What uv has resolved for one environment: name of a lock -> its entries."""

    python: str
    entries: dict[str, Entries] = field(default_factory=dict)

    def pins(self) -> dict[str, list[PipPackage]]:
        """name of a lock -> its packages, with the digests of the wheels' RECORDs still empty.

        Raises Stop.
        """
        pins = {}
        for name, entries in self.entries.items():
            pins[name] = [resolve.pin(entry, self.python) for entry in entries.values()]
        return pins

    def all_entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for entries in self.entries.values():
            found += entries.values()
        return found


def lock_environment(env: Environment, update: list[str]) -> Locked:
    """Writes the locks of an environment; with `update`, only those packages may change.

    Raises Stop.
    """
    asked = read_specification(env.folder / SPEC)
    digest = specification_digest(env.folder)
    if update and read_seal(env.folder / CONDA_LOCK).specification != digest:
        raise Stop(
            f"{env.folder / SPEC} or {VIRTUAL} has changed since it was locked; "
            "run scripts/lock.sh without --update"
        )
    if "python" not in asked.conda:
        raise Stop(
            f"{asked.path}: asks for no python, which both layers are for; "
            "add a line such as python=3.N"
        )
    if asks_for_flash_attn(env):
        read_flash_requirements(env)  # refused before the solver works for minutes
    with tempfile.TemporaryDirectory() as folder:
        solved = solve(Path(folder), env, asked, update)
        resolution = _resolve_wheels(Path(folder), env, asked, update, solved)
    pins = _add_records(env, resolution)
    texts = {CONDA_LOCK: conda_lock_text(solved, digest)}
    for name, packages in pins.items():
        specification = "" if name in (DEV, TOOLS) else digest
        more = read_prebuilt_lines(env) if name == FLASH else []
        texts[name] = requirements_text(
            name, packages, resolution.python, specification, more
        )
    write_locks(env.folder, texts)
    return Locked(
        env.name,
        len(solved["package"]),
        len(pins[WHEELS_OVER_CONDA]),
        len(pins[REQUIREMENTS]),
    )


def _resolve_wheels(
    folder: Path,
    env: Environment,
    asked: Specification,
    update: list[str],
    solved: dict[str, Any],
) -> Resolution:
    """All locks of wheels, resolved: what conda provides counts with its version. Raises Stop."""
    python = _find_python(solved)
    provided = find_provided(solved)
    wanted = []
    for name in asked.conda:
        if pypi_name(name) in provided:
            wanted.append(pypi_name(name))
    wanted += asked.pip.values()
    wanted_file = _write_lines(folder / "wanted.in", wanted)
    conda_versions = [f"{name}=={version}" for name, version in provided.items()]
    conda_file = _write_lines(folder / "conda.in", conda_versions)
    versions_file = folder / "versions.txt"
    options: list[object] = [
        "-c",
        conda_file,
        *resolve.WHEELS_ONLY,
        "-o",
        versions_file,
    ]
    if update:
        # The output file of uv is also an input: a version that stands in it stays, where it fits
        # and -P does not name the package. So the versions of the present lock are written first.
        kept = []
        for package in env.wheels(BackendName.PIP):
            if package.name not in provided:
                kept.append(f"{package.name}=={package.version}")
        _write_lines(versions_file, kept)
        for name in update:
            options += ["-P", name]
    try:
        resolve.compile_requirements(python, wanted_file, *options)
    except Stop as error:
        raise Stop(
            f"{asked.path}: conda has solved its layer, and PyPI has no wheels that fit its "
            f"versions; {_find_remedy(asked)}, and run it again.\n{error}"
        ) from None

    versions = ("-c", versions_file)
    resolution = Resolution(python)
    both = resolve.resolve(python, wanted_file, *versions, *resolve.WHEELS_ONLY)
    if "torch" not in both:
        raise Stop(
            f"{asked.path}: asks for no torch, which the verifier is about; add pytorch"
        )
    over: Entries = {}
    if asked.pip:
        pip_file = _write_lines(folder / "pip.in", asked.pip.values())
        names_file = _write_lines(folder / "names.in", provided)
        excluding = ("--excludes", names_file)
        over = resolve.resolve(
            python, pip_file, *versions, *excluding, *resolve.WHEELS_ONLY
        )
    resolution.entries[WHEELS_OVER_CONDA] = _pick(both, set(over))
    resolution.entries[REQUIREMENTS] = both
    if asks_for_flash_attn(env):  # as source: PyPI has no wheel of it
        flash_file = _write_lines(folder / "flash.in", read_flash_requirements(env))
        source = resolve.resolve(python, flash_file, *versions)["flash-attn"]
        resolution.entries[FLASH] = {"flash-attn": {**source, "wheels": []}}
    dev = resolve.resolve(python, "--group", "dev", *versions, *resolve.WHEELS_ONLY)
    resolution.entries[DEV] = _pick(dev, set(dev) - set(both))
    if env.folder == ROOT:
        tools = resolve.resolve(python, "--group", "tools", *resolve.WHEELS_ONLY)
        resolution.entries[TOOLS] = tools
    return resolution


def _find_python(solved: dict[str, Any]) -> str:
    """The minor version of the conda layer's Python, such as "3.11"."""
    for package in solved["package"]:
        if package["name"] == "python":
            return ".".join(package["version"].split(".")[:2])
    raise AssertionError("environment.yml asks for python, and conda-lock gave none")


def _pick(entries: Entries, names: set[str]) -> Entries:
    """The entries of these names, in the same order."""
    picked = {}
    for name, entry in entries.items():
        if name in names:
            picked[name] = entry
    return picked


def _find_remedy(asked: Specification) -> str:
    """What to edit where uv finds no wheels."""
    for text in asked.pip.values():
        if re.search(
            r"==\s*[^;,]*\+", text
        ):  # PEP 440's local version: torch==2.5.1+cu124
            return (
                f"{text} is a build that PyPI does not have: leave out the + and what follows, or "
                "set UV_INDEX to the address of the index that has it"
            )
    return "bound what uv names in environment.yml, such as mpmath<1.4 among conda's packages"


def _write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _add_records(
    env: Environment, resolution: Resolution
) -> dict[str, list[PipPackage]]:
    """The packages of all locks with the digests of their RECORDs.

    A digest comes from the present locks, or else from the index.
    """
    pins = resolution.pins()
    digests = _read_known_digests(env)
    lacking = []
    for sha256, wheel in resolve.list_wheel_files(
        resolution.all_entries(), resolution.python
    ).items():
        if sha256 not in digests:
            lacking.append(wheel)
    digests.update(fetch_record_digests(lacking))
    complete: dict[str, list[PipPackage]] = {}
    for name, packages in pins.items():
        complete[name] = []
        for package in packages:
            digest = digests.get(package.sha256, "")
            complete[name].append(replace(package, record_sha256=digest))
    return complete


def _read_known_digests(env: Environment) -> dict[str, str]:
    """sha256 of a wheel -> digest of its RECORD, of the locks that are there."""
    digests = {}
    for folder in (ROOT, env.folder):
        for name in (WHEELS_OVER_CONDA, REQUIREMENTS, DEV, TOOLS):
            with contextlib.suppress(LockError):
                for package in read_pip_lock(folder / name):
                    if package.record_sha256:
                        digests[package.sha256] = package.record_sha256
    return digests
