"""Writes the locks (see scripts/lock.sh --help). Runs in conda-lock's interpreter.

conda-lock solves both layers; here its result is divided by package manager and completed: the archives' sizes, the
same versions as PyPI wheels, flash-attn's source, the tests' tools. Nothing is written until all of it has been made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

import yaml
from lockedenv import ROOT
from lockedenv.locks import LockError, PipPackage, canonical, read_conda_lock, read_pip_lock
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from packaging.version import InvalidVersion, Version

SPEC, VIRTUAL = "environment.yml", "locks/virtual-packages.yml"
CONDA_LOCK, PIP, FLASH, REQS, DEV = LOCKS = (
    "conda-lock.yml",
    "locks/pip.txt",
    "locks/flash-attn.txt",
    "requirements.txt",
    "requirements-dev.txt",
)
# Asked of conda, and not to be had, or not needed, from PyPI: torch's wheel brings its CUDA and its MKL.
CONDA_ONLY = {"python", "pytorch-cuda", "mkl", "libblas", "gcc", "gxx"}
PYPI_NAMES = {"pytorch": "torch", "torchtriton": "triton"}
PYTHON, PLATFORM = (3, 11), "x86_64-manylinux_2_28"
# Wheels are chosen for glibc 2.28 (or older): what conda-lock's own pip solver assumes.
MANYLINUX = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
LEGACY = {"2_17": "manylinux2014_x86_64", "2_12": "manylinux2010_x86_64", "2_5": "manylinux1_x86_64"}
PLATFORMS = [p for m in MANYLINUX for p in (m, LEGACY.get(m[10:-7], m))] + ["linux_x86_64"]


class RelockError(Exception):
    """Something that the person who locks can mend; the message says what and how."""


def run(*command: str, **kwargs: Any) -> str:
    """Standard output of a command. Raises RelockError with what it said, if it fails."""
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise RelockError(f"{Path(command[0]).name} {command[1]} failed ({done.returncode}):\n{said}")
    return str(done.stdout)


@dataclass
class Asked:
    """What environment.yml asks for, by package manager: name -> the spec as written."""

    conda: Dict[str, str]
    pip: Dict[str, str]
    channels: List[str]


def read_spec(root: Path) -> Asked:
    """environment.yml (or environment-dev.yml) as asked specs. Raises RelockError if it is not an environment file."""
    try:
        data = yaml.safe_load(root.read_text())
        conda = [d for d in data["dependencies"] if isinstance(d, str)]
        pip = [p for d in data["dependencies"] if isinstance(d, dict) for p in d["pip"]]
        names = {s.split("::")[-1].replace("=", " ").replace("<", " ").replace(">", " ").split()[0]: s for s in conda}
        return Asked(names, {canonical(Requirement(p).name): p for p in pip}, data["channels"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise RelockError(f"{root}: is not a conda environment file: {error}") from None


def content_hash(root: Path) -> str:
    """conda-lock's own hash over environment.yml and virtual-packages.yml; nothing is solved or fetched."""
    from conda_lock.content_hash import compute_content_hashes
    from conda_lock.src_parser import make_lock_spec
    from conda_lock.virtual_package import virtual_package_repo_from_specification

    with tempfile.TemporaryDirectory() as tmp:
        mapping = Path(tmp, "mapping.json")
        mapping.write_text("{}")  # the names do not matter to the hash, and conda-lock would download them
        spec = make_lock_spec(src_files=[root / SPEC], platform_overrides=["linux-64"], mapping_url=f"file://{mapping}")
        virtual = virtual_package_repo_from_specification(root / VIRTUAL)
        return str(compute_content_hashes(spec, virtual)["linux-64"])


# Solving ---------------------------------------------------------------------------------------------------------


def solve(tmp: Path, asked: Asked, update: List[str]) -> Dict[str, Any]:
    """conda-lock's result over environment.yml, both layers; with `update`, only those packages may change."""
    solver = os.environ.get("CONDA_LOCK_SOLVER") or shutil.which("micromamba")
    if not solver:
        raise RelockError("micromamba is not on PATH and CONDA_LOCK_SOLVER is not set; install micromamba 2.5.0")
    lock, spec = tmp / CONDA_LOCK, ROOT / SPEC
    if update:
        lock.write_text(yaml.safe_dump(joined_layers(), sort_keys=False))
    if update and not set(update) & set(asked.conda):
        # conda-lock would solve the conda layer anew for a pip package: hold it by asking for just what is locked.
        spec = tmp / SPEC
        packages = read_conda_lock(ROOT / CONDA_LOCK).packages
        held: List[Any] = [f"{p.channel}::{p.name}={p.version}={p.build}" for p in packages]
        held.append({"pip": list(asked.pip.values())})
        spec.write_text(yaml.safe_dump({"channels": asked.channels, "dependencies": held}))
    # conda-lock drops the archives' sizes, which the solver reports: keep what it says.
    wrapper = tmp / Path(solver).name
    wrapper.write_text(f'#!/usr/bin/env bash\nset -o pipefail\n{solver!r} "$@" | tee -a {str(tmp / "said")!r}\n')
    wrapper.chmod(0o755)
    command = ["conda-lock", "lock", "--conda", str(wrapper), "-f", str(spec), "-p", "linux-64"]
    command += ["--virtual-package-spec", VIRTUAL, "--lockfile", str(lock)]
    if "PYPI_TO_CONDA_MAPPING" in os.environ:
        command += ["--pypi_to_conda_lookup_file", os.environ["PYPI_TO_CONDA_MAPPING"]]
    run(*command, *(flag for name in update for flag in ("--update", name)))
    solved: Dict[str, Any] = yaml.safe_load(lock.read_text())
    solved["metadata"]["content_hash"] = {"linux-64": content_hash(ROOT)}
    sizes = dict(solver_sizes((tmp / "said").read_text()))
    if (ROOT / CONDA_LOCK).exists():
        sizes = {**{p.url: p.size for p in read_conda_lock(ROOT / CONDA_LOCK).packages if p.size}, **sizes}
    for package in solved["package"]:
        package["size"] = sizes.get(package["url"], 0)
    return solved


def solver_sizes(said: str) -> Iterable[Any]:
    """(url, bytes) of every archive in the JSON documents that a solver printed one after another."""
    decoder, at = json.JSONDecoder(), said.find("{")
    while at >= 0:
        try:
            document, end = decoder.raw_decode(said, at)
        except json.JSONDecodeError:
            end, document = at + 1, {}
        if isinstance(document, dict):
            for action in (document.get("actions") or {}).get("FETCH", []):
                if action.get("size"):
                    yield action["url"], action["size"]
        at = said.find("{", end)


def joined_layers() -> Dict[str, Any]:
    """conda-lock.yml with locks/pip.txt put back, as conda-lock needs it to update one package."""
    data: Dict[str, Any] = yaml.safe_load((ROOT / CONDA_LOCK).read_text())
    for package in read_pip_lock(ROOT / PIP):
        data["package"].append(
            {
                "name": package.name,
                "version": package.version,
                "manager": "pip",
                "platform": "linux-64",
                "dependencies": {},
                "url": f"https://index.invalid/{package.name}",  # conda-lock asks for one and looks it up anew
                "hash": {"sha256": package.sha256},
                "category": "main",
                "optional": False,
            }
        )
    return data


# The PyPI side ---------------------------------------------------------------------------------------------------


def wheel_rank(filename: str) -> Optional[int]:
    """How well a wheel fits CPython 3.11 on x86_64 Linux with glibc 2.28: 0 is best, None is not at all."""
    try:
        tags = parse_wheel_filename(filename)[3]
    except ValueError:
        return None
    order = [*cpython_tags(PYTHON, platforms=PLATFORMS), *compatible_tags(PYTHON, "cp311", PLATFORMS)]
    return min((order.index(tag) for tag in tags if tag in order), default=None)


def pylock(tmp: Path, *arguments: str) -> Dict[str, Dict[str, Any]]:
    """uv's resolution of the given requirements as pylock.toml's entries, by name."""
    out = tmp / "pylock.toml"
    target = ["--python-version", ".".join(map(str, PYTHON)), "--python-platform", PLATFORM]
    run("uv", "pip", "compile", "--quiet", "--format", "pylock.toml", "-o", str(out), *target, *arguments)
    entries = tomllib.loads(out.read_text())["packages"]
    out.unlink()
    return {canonical(entry["name"]): entry for entry in entries}


def pin(entry: Dict[str, Any], prefer: str = "") -> PipPackage:
    """The one file of a pylock entry to install: the wheel of hash `prefer`, else the best fitting, else the sdist."""
    files = {f["hashes"]["sha256"]: f for f in entry.get("wheels", [])}
    ranked = sorted((rank, sha) for sha, f in files.items() if (rank := wheel_rank(f["url"].rsplit("/", 1)[1])) is not None)
    sha = prefer if prefer in files else ranked[0][1] if ranked else ""
    chosen = files.get(sha) or entry.get("sdist")
    if not chosen:
        raise RelockError(f"{entry['name']} {entry['version']}: PyPI has no wheel for Python 3.11, glibc 2.28")
    return PipPackage(canonical(entry["name"]), entry["version"], chosen["hashes"]["sha256"], chosen.get("size", 0))


def pypi_inputs(solved: Dict[str, Any], asked: Asked) -> List[List[str]]:
    """(requirements, constraints) for requirements.txt: what both layers ask for, at the versions they lock."""
    locked = {p["name"]: p["version"] for p in solved["package"]}
    wanted = [n for n, spec in asked.conda.items() if n not in CONDA_ONLY and not spec.startswith("nvidia::")]
    wanted += [p["name"] for p in solved["package"] if p["manager"] == "pip"]
    pins = []
    for name, version in locked.items():
        try:
            Version(version)
        except InvalidVersion:
            continue
        if name[0] != "_":
            pins.append(f"{PYPI_NAMES.get(name, name)}=={version}")
    return [[PYPI_NAMES.get(name, name) for name in wanted], pins]


# Writing ---------------------------------------------------------------------------------------------------------

HEADER = "# Written by scripts/lock.sh; edit {source} and run it instead.\n# {what}\n"


def requirements_text(source: str, what: str, packages: Iterable[PipPackage]) -> str:
    lines = [
        f"{p.name}=={p.version} --hash=sha256:{p.sha256}" + (f"  # {p.size} bytes" if p.size else "")
        for p in sorted(packages, key=lambda p: p.name)
    ]
    return HEADER.format(source=source, what=what) + "\n".join(lines) + "\n"


def conda_lock_text(solved: Dict[str, Any]) -> str:
    packages = [dict(p) for p in solved["package"] if p["manager"] == "conda"]
    sizes = {package["url"]: package.pop("size") for package in packages}
    metadata = {**solved["metadata"], "sources": [SPEC]}
    body = yaml.safe_dump({"version": 1, "metadata": metadata, "package": packages}, sort_keys=False, width=10**6)
    for url, size in sizes.items():
        if size:
            body = body.replace(f"  url: {url}\n", f"  url: {url}  # {size} bytes\n")
    what = "The conda layer; the pip layer is locks/pip.txt. micromamba create -n maximalcai -f conda-lock.yml"
    return HEADER.format(source=SPEC, what=what) + body


def write_all(texts: Dict[str, str]) -> None:
    """Every file is written beside its place before the first is renamed, so that a full disk changes nothing."""
    for name, text in texts.items():
        (ROOT / f"{name}.new").write_text(text)
    for name in texts:
        (ROOT / f"{name}.new").replace(ROOT / name)


def lock(update: List[str]) -> None:
    asked = read_spec(ROOT / SPEC)
    for name in update:
        if name not in asked.conda and name not in asked.pip:
            raise RelockError(
                f"--update {name}: environment.yml does not ask for it; it asks for: "
                + ", ".join(sorted({*asked.conda, *asked.pip}))
            )
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        solved = solve(tmp, asked, update)
        for name, lines in zip(("wanted.in", "pins.txt"), pypi_inputs(solved, asked)):
            (tmp / name).write_text("\n".join(lines) + "\n")
        wheels = ["--only-binary", ":all:"]
        both = pylock(tmp, str(tmp / "wanted.in"), "-c", str(tmp / "pins.txt"), *wheels)
        dev = pylock(tmp, "--group", "dev", *wheels)
        flash = pylock(tmp, "--group", "flash-attn", "-c", str(tmp / "pins.txt"))["flash-attn"]
    pip = {canonical(p["name"]): p["hash"]["sha256"] for p in solved["package"] if p["manager"] == "pip"}
    everything = [pin(entry, pip.get(name, "")) for name, entry in both.items()]
    flash.pop("wheels", None)
    write_all(
        {
            CONDA_LOCK: conda_lock_text(solved),
            PIP: requirements_text(
                SPEC, "The pip layer, put on the conda layer by scripts/post_create.sh.", [p for p in everything if p.name in pip]
            ),
            REQS: requirements_text(
                SPEC, "Both layers as PyPI wheels, for a machine without conda (Python 3.11, x86_64 Linux).", everything
            ),
            FLASH: requirements_text("pyproject.toml", "The source that scripts/post_create.sh builds.", [pin(flash)]),
            DEV: requirements_text(
                "pyproject.toml", "The tools of the tests (Python 3.11, x86_64 Linux).", [pin(entry) for entry in dev.values()]
            ),
        }
    )
    print(f"locked {len(solved['package']) - len(pip)} conda and {len(pip)} pip packages, {len(everything)} wheels in all")


# Checking and comparing ------------------------------------------------------------------------------------------


def stale(root: Path) -> List[str]:
    """Why the locks under `root` are not what lock.sh would have written for the specification; empty if they are."""
    try:
        conda, pip = read_conda_lock(root / CONDA_LOCK), read_pip_lock(root / PIP)
        reqs, flash, dev = (read_pip_lock(root / name) for name in (REQS, FLASH, DEV))
    except LockError as error:
        return [str(error)]
    reasons = []
    if content_hash(root) != conda.content_hash:
        reasons.append(f"{CONDA_LOCK}: {SPEC} or {VIRTUAL} has changed since it was locked (content hash)")
    asked = read_spec(root / SPEC)
    groups = tomllib.loads((root / "pyproject.toml").read_text())["dependency-groups"]
    for name, locked, specs in (
        (PIP, pip, list(asked.pip.values())),
        (DEV, dev, groups["dev"]),
        (FLASH, flash, groups["flash-attn"]),
    ):
        versions = {p.name: p.version for p in locked}
        for requirement in map(Requirement, specs):
            version = versions.get(canonical(requirement.name))
            if version is None or version not in requirement.specifier:
                reasons.append(f"{name}: has {requirement.name} {version or 'not at all'}, asked for is {requirement}")
    return reasons + disagreements(conda.packages, pip, reqs)


def disagreements(conda: Iterable[Any], pip: List[PipPackage], reqs: List[PipPackage]) -> List[str]:
    """Where requirements.txt is not the two layers again: another version, another wheel, a package left out."""
    ours = {p.name: p for p in reqs}
    reasons = [f"{REQS}: lacks {p.name} of {PIP}" for p in pip if p.name not in ours]
    reasons += [f"{REQS}: has another {p.name} than {PIP}" for p in pip if p.name in ours and ours[p.name] != p]
    for package in conda:
        name = canonical(PYPI_NAMES.get(package.name, package.name))
        if name in ours and ours[name].version != package.version:
            reasons.append(f"{REQS}: has {name} {ours[name].version}, {CONDA_LOCK} has {package.version}")
    if "torch" not in ours:
        reasons.append(f"{REQS}: lacks torch")
    return reasons


def versions_at(revision: Optional[str]) -> Dict[str, str]:
    """'layer name' -> 'version build' of every locked package, now (None) or at a git revision."""
    found: Dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in LOCKS:
            path = ROOT / name
            if revision:
                path = Path(folder, Path(name).name)
                try:
                    path.write_text(run("git", "show", f"{revision}:{name}"))
                except RelockError:
                    continue  # not there yet at that revision
            if name == CONDA_LOCK:
                found.update({f"conda {p.name}": f"{p.version} {p.build}" for p in read_conda_lock(path).packages})
            elif name != REQS:
                layer = {PIP: "pip", FLASH: "source", DEV: "dev"}[name]
                found.update({f"{layer} {p.name}": p.version for p in read_pip_lock(path)})
    return found


def diff(revision: str) -> str:
    """A Markdown table of what changed in the locks since a git revision."""
    before, after = versions_at(revision), versions_at(None)
    rows = [
        f"| {key.split()[0]} | {key.split()[1]} | {before.get(key, '')} | {after.get(key, '')} |"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    return "\n".join(["| layer | package | before | after |", "|---|---|---|---|", *rows]) if rows else "No lock changed."


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="scripts/lock.sh", allow_abbrev=False)
    group = p.add_mutually_exclusive_group()
    group.add_argument("--update", metavar="NAME", action="append", default=[])
    group.add_argument("--check", action="store_true")
    group.add_argument("--diff", metavar="REVISION", nargs="?", const="HEAD")
    return p


def main(arguments: Optional[List[str]] = None) -> int:
    args = parser().parse_args(arguments)
    try:
        if args.check:
            reasons = stale(ROOT)
            print("\n".join(reasons + ["run scripts/lock.sh"]) if reasons else "the locks are current")
            return 1 if reasons else 0
        if args.diff:
            print(diff(args.diff))
        else:
            lock(args.update)
    except (RelockError, LockError, OSError) as error:
        print(f"lock.sh: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
