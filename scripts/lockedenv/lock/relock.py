"""Writes the locks (see scripts/lock.sh --help). Runs in conda-lock's interpreter.

conda-lock solves both layers; here its result is divided by package manager and completed: the archives' sizes, the
same versions as PyPI wheels, flash-attn's source, the tests' tools. Nothing is written until all of it has been made.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

import yaml
from lockedenv import ROOT
from lockedenv.console import Stop
from lockedenv.locks import LockError, PipPackage, canonical, read_conda_lock, read_pip_lock
from lockedenv.process import ask, run_script
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from packaging.version import VERSION_PATTERN

SPEC, VIRTUAL = "environment.yml", "locks/virtual-packages.yml"
CONDA_LOCK, PIP, FLASH = "conda-lock.yml", "locks/pip.txt", "locks/flash-attn.txt"
REQS, DEV = "requirements.txt", "requirements-dev.txt"
# Asked of conda, and not to be had, or not needed, from PyPI: torch's wheel brings its CUDA and its MKL.
CONDA_ONLY = {"python", "pytorch-cuda", "mkl", "libblas", "gcc", "gxx"}
PYPI_NAMES = {"pytorch": "torch", "torchtriton": "triton"}
PYTHON, PLATFORM = (3, 11), "x86_64-manylinux_2_28"
# Wheels are chosen for glibc 2.28 (or older): what conda-lock's own pip solver assumes.
LEGACY = {17: "manylinux2014_x86_64", 12: "manylinux2010_x86_64", 5: "manylinux1_x86_64"}
PLATFORMS = [p for n in range(28, 4, -1) for p in (f"manylinux_2_{n}_x86_64", LEGACY.get(n)) if p] + ["linux_x86_64"]
TAGS = [*cpython_tags(PYTHON, platforms=PLATFORMS), *compatible_tags(PYTHON, "cp311", PLATFORMS)]  # the best first


def run(*command: str) -> str:
    """Standard output of a command. Raises Stop with what it said, if it fails."""
    status, out, err = ask(command, timeout=3600, cwd=ROOT)
    if status != 0:  # the lines of a traceback would hide the reason
        said = re.sub(r"^  File .*\n    .*\n(?: *\^+\n)?", "", out + err, flags=re.M).strip().splitlines()[-25:]
        raise Stop(f"{Path(command[0]).name} {command[1]} failed ({status}):\n" + "\n".join(said))
    return out


def pypi_name(name: str) -> str:
    """What a conda package is called on PyPI."""
    return canonical(PYPI_NAMES.get(name, name))


@dataclass
class Asked:
    """What environment.yml asks for, by package manager: name -> the spec as written."""

    conda: Dict[str, str]
    pip: Dict[str, str]
    channels: List[str]


def read_spec(root: Path) -> Asked:
    """environment.yml (or environment-dev.yml) as asked specs. Raises Stop if it is not an environment file."""
    try:
        data = yaml.safe_load(root.read_text())
        conda = [d for d in data["dependencies"] if isinstance(d, str)]
        pip = [p for d in data["dependencies"] if isinstance(d, dict) for p in d["pip"]]
        names = {re.split("[ =<>]", spec.split("::")[-1])[0]: spec for spec in conda}
        return Asked(names, {canonical(Requirement(p).name): p for p in pip}, data["channels"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise Stop(f"{root}: is not a conda environment file: {error}") from None


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


def solve(tmp: Path, asked: Asked, update: List[str]) -> Dict[str, Any]:
    """conda-lock's result over environment.yml, both layers; with `update`, only those packages may change."""
    solver = os.environ.get("CONDA_LOCK_SOLVER") or shutil.which("micromamba")
    if not solver:
        raise Stop("micromamba is not on PATH and CONDA_LOCK_SOLVER is not set; install micromamba 2.5.0")
    locked = read_conda_lock(ROOT / CONDA_LOCK).packages if update else []
    lock, spec = tmp / CONDA_LOCK, ROOT / SPEC
    if update:  # conda-lock needs locks/pip.txt put back to update one package; it asks for an address, and looks it up anew
        data = yaml.safe_load((ROOT / CONDA_LOCK).read_text())
        always = {"manager": "pip", "platform": "linux-64", "dependencies": {}, "category": "main", "optional": False}
        for p in read_pip_lock(ROOT / PIP):
            url = f"https://index.invalid/{p.name}"
            data["package"].append({"name": p.name, "version": p.version, "url": url, "hash": {"sha256": p.sha256}, **always})
        lock.write_text(yaml.safe_dump(data, sort_keys=False))
    if update and not set(update) & set(asked.conda):
        # conda-lock would solve the conda layer anew for a pip package: hold it by asking for just what is locked.
        spec = tmp / SPEC
        held = [*(f"{p.channel}::{p.name}={p.version}={p.build}" for p in locked), {"pip": list(asked.pip.values())}]
        spec.write_text(yaml.safe_dump({"channels": asked.channels, "dependencies": held}))
    # conda-lock drops the archives' sizes, which the solver reports: keep what it says, one file a run.
    wrapper = tmp / Path(solver).name
    wrapper.write_text(f'#!/usr/bin/env bash\nset -o pipefail\n{solver!r} "$@" | tee "$(mktemp {str(tmp)!r}/said.XXXXXX)"\n')
    wrapper.chmod(0o755)
    command = ["conda-lock", "lock", "--conda", str(wrapper), "-f", str(spec), "-p", "linux-64"]
    command += ["--virtual-package-spec", VIRTUAL, "--lockfile", str(lock)]
    if "PYPI_TO_CONDA_MAPPING" in os.environ:
        command += ["--pypi_to_conda_lookup_file", os.environ["PYPI_TO_CONDA_MAPPING"]]
    run(*command, *(flag for name in update for flag in ("--update", name)))
    solved: Dict[str, Any] = yaml.safe_load(lock.read_text())
    solved["metadata"]["content_hash"] = {"linux-64": content_hash(ROOT)}
    sizes = {p.url: p.size for p in locked}  # what stays as it is, no solver reports
    for path in tmp.glob("said.*"):
        sizes.update(solver_sizes(path.read_text()))
    for package in solved["package"]:
        package["size"] = sizes.get(package["url"], 0)
    return solved


def solver_sizes(said: str) -> Dict[str, int]:
    """url -> bytes of the archives that a solver would fetch, as it printed them."""
    with contextlib.suppress(ValueError):  # no JSON, or a list of what is installed
        actions = json.loads(said[said.index("{") : said.rindex("}") + 1]).get("actions") or {}
        return {action["url"]: action["size"] for action in actions.get("FETCH", []) if action.get("size")}
    return {}


def wheel_rank(filename: str) -> Optional[int]:
    """How well a wheel fits CPython 3.11 on x86_64 Linux with glibc 2.28: 0 is best, None is not at all."""
    with contextlib.suppress(ValueError):
        return min((TAGS.index(tag) for tag in parse_wheel_filename(filename)[3] if tag in TAGS), default=None)
    return None


def pylock(*arguments: str) -> Dict[str, Dict[str, Any]]:
    """uv's resolution of the given requirements as pylock.toml's entries, by name."""
    target = ["--python-version", ".".join(map(str, PYTHON)), "--python-platform", PLATFORM]
    entries = tomllib.loads(run("uv", "pip", "compile", "--format", "pylock.toml", *target, *arguments))["packages"]
    return {canonical(entry["name"]): entry for entry in entries}


def pin(entry: Dict[str, Any], prefer: str = "") -> PipPackage:
    """The one file of a pylock entry to install: the wheel of hash `prefer`, else the best fitting, else the sdist."""
    files = {f["hashes"]["sha256"]: f for f in entry.get("wheels", [])}
    ranked = sorted((rank, sha) for sha, f in files.items() if (rank := wheel_rank(f["url"].rsplit("/", 1)[1])) is not None)
    sha = prefer if prefer in files else ranked[0][1] if ranked else ""
    chosen = files.get(sha) or entry.get("sdist")
    if not chosen:
        raise Stop(f"{entry['name']} {entry['version']}: PyPI has no wheel for Python 3.11, glibc 2.28")
    return PipPackage(canonical(entry["name"]), entry["version"], chosen["hashes"]["sha256"], chosen.get("size", 0))


def pypi_inputs(solved: Dict[str, Any], asked: Asked) -> List[List[str]]:
    """(requirements, constraints) for requirements.txt: what both layers ask for, at the versions they lock."""
    wanted = [n for n, spec in asked.conda.items() if n not in CONDA_ONLY and not spec.startswith("nvidia::")]
    wanted += [p["name"] for p in solved["package"] if p["manager"] == "pip"]
    locked = [p for p in solved["package"] if p["name"][0] != "_" and re.fullmatch(VERSION_PATTERN, p["version"], re.X | re.I)]
    return [[pypi_name(name) for name in wanted], [f"{pypi_name(p['name'])}=={p['version']}" for p in locked]]


WRITTEN = "# Written by scripts/lock.sh; edit {} and run it instead.\n# {}\n"
HEADERS = {
    CONDA_LOCK: (SPEC, "The conda layer; the pip layer is locks/pip.txt. micromamba create -n maximalcai -f conda-lock.yml"),
    PIP: (SPEC, "The pip layer, put on the conda layer by scripts/post_create.sh."),
    FLASH: ("pyproject.toml", "The source that scripts/post_create.sh builds."),
    REQS: (SPEC, "Both layers as PyPI wheels, for a machine without conda (Python 3.11, x86_64 Linux)."),
    DEV: ("pyproject.toml", "The tools of the tests (Python 3.11, x86_64 Linux)."),
}


def sized(line: str, size: int) -> str:
    return f"{line}  # {size} bytes\n" if size else f"{line}\n"


def requirements_text(name: str, packages: Iterable[PipPackage]) -> str:
    lines = [sized(f"{p.name}=={p.version} --hash=sha256:{p.sha256}", p.size) for p in sorted(packages, key=lambda p: p.name)]
    return WRITTEN.format(*HEADERS[name]) + "".join(lines)


def conda_lock_text(solved: Dict[str, Any]) -> str:
    """conda-lock.yml, in which every package is a line of JSON, which is YAML too; the last line counts them."""
    packages = [dict(p) for p in solved["package"] if p["manager"] == "conda"]
    lines = [sized(f"- {json.dumps(p)}", size) for p in packages for size in [p.pop("size")]]
    metadata = yaml.safe_dump({"version": 1, "metadata": {**solved["metadata"], "sources": [SPEC]}}, sort_keys=False)
    return WRITTEN.format(*HEADERS[CONDA_LOCK]) + metadata + "package:\n" + "".join(lines) + f"# {len(lines)} packages\n"


def lock(update: List[str]) -> str:
    """Writes all the locks; with `update`, only those packages may change. Gives what it did, in one line."""
    asked = read_spec(ROOT / SPEC)
    given = sorted({*asked.conda, *asked.pip})
    for name in update:
        if name not in given:
            raise Stop(f"--update {name}: environment.yml does not ask for it; it asks for: {', '.join(given)}")
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        solved = solve(tmp, asked, update)
        for name, lines in zip(("wanted.in", "pins.txt"), pypi_inputs(solved, asked)):
            (tmp / name).write_text("\n".join(lines) + "\n")
        wheels = ["--only-binary", ":all:"]
        both = pylock(str(tmp / "wanted.in"), "-c", str(tmp / "pins.txt"), *wheels)
        flash = pylock("--group", "flash-attn", "-c", str(tmp / "pins.txt"))["flash-attn"]
    dev = [pin(entry) for entry in pylock("--group", "dev", *wheels).values()]
    pip = {canonical(p["name"]): p["hash"]["sha256"] for p in solved["package"] if p["manager"] == "pip"}
    everything = [pin(entry, pip.get(name, "")) for name, entry in both.items()]
    files = {PIP: [p for p in everything if p.name in pip], FLASH: [pin({**flash, "wheels": []})], REQS: everything, DEV: dev}
    texts = {CONDA_LOCK: conda_lock_text(solved), **{name: requirements_text(name, pins) for name, pins in files.items()}}
    for name, text in texts.items():  # all are written before the first is renamed, so that a full disk changes nothing
        (ROOT / f"{name}.new").write_text(text)
    for name in texts:
        (ROOT / f"{name}.new").replace(ROOT / name)
    return f"locked {len(solved['package']) - len(pip)} conda and {len(pip)} pip packages, {len(everything)} wheels in all"


def stale(root: Path) -> List[str]:
    """Why the locks under `root` are not what lock.sh would have written for the specification; empty if they are."""
    try:
        conda = read_conda_lock(root / CONDA_LOCK)
        locked = {name: {p.name: p for p in read_pip_lock(root / name)} for name in (PIP, FLASH, REQS, DEV)}
    except LockError as error:
        return [str(error)]
    reasons = []
    if content_hash(root) != conda.content_hash:
        reasons.append(f"{CONDA_LOCK}: {SPEC} or {VIRTUAL} has changed since it was locked (content hash)")
    groups = tomllib.loads((root / "pyproject.toml").read_text())["dependency-groups"]
    asked = {PIP: read_spec(root / SPEC).pip.values(), DEV: groups["dev"], FLASH: groups["flash-attn"]}
    for name, specs in asked.items():
        for requirement in map(Requirement, specs):
            found = locked[name].get(canonical(requirement.name))
            if found is None or found.version not in requirement.specifier:
                has = found.version if found else "not at all"
                reasons.append(f"{name}: has {requirement.name} {has}, asked for is {requirement}")
    pip, both = locked[PIP], locked[REQS]
    reasons += [f"{REQS}: lacks {name} of {PIP}" for name in pip if name not in both]
    reasons += [f"{REQS}: has another {name} than {PIP}" for name in pip if both.get(name, pip[name]) != pip[name]]
    pairs = [(both[pypi_name(p.name)], p) for p in conda.packages if pypi_name(p.name) in both]
    reasons += [f"{REQS}: has {w.name} {w.version}, {CONDA_LOCK} has {p.version}" for w, p in pairs if w.version != p.version]
    return reasons + ([] if "torch" in both else [f"{REQS}: lacks torch"])


def versions_at(revision: Optional[str]) -> Dict[str, str]:
    """'| layer | name |' -> 'version build' of every locked package, now (None) or at a git revision, if it had that lock."""
    found: Dict[str, str] = {}
    for name, layer in ((CONDA_LOCK, "conda"), (PIP, "pip"), (FLASH, "source"), (DEV, "dev")):
        text = ask(["git", "show", f"{revision}:{name}"], cwd=ROOT)[1] if revision else (ROOT / name).read_text()
        pins = re.findall(r"^(\S+)==(\S+)", text, re.M)
        if layer == "conda":  # by YAML, for what earlier versions wrote
            packages = (yaml.safe_load(text) or {}).get("package", [])
            pins = [(p["name"], f"{p['version']} " + re.sub(r".*-|\.(conda|tar\.bz2)$", "", p["url"])) for p in packages]
        found.update((f"| {layer} | {package} |", version) for package, version in pins)
    return found


def diff(revision: str) -> str:
    """A Markdown table of what changed in the locks since a git revision."""
    read_conda_lock(ROOT / CONDA_LOCK)  # says what is wrong with it
    before, after = versions_at(revision), versions_at(None)
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    rows = [f"{key} {before.get(key, '')} | {after.get(key, '')} |" for key in changed]
    return "\n".join(["| layer | package | before | after |", "|---|---|---|---|", *rows]) if rows else "No lock changed."


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="scripts/lock.sh", allow_abbrev=False)
    group = p.add_mutually_exclusive_group()
    group.add_argument("--update", metavar="NAME", action="append", default=[])
    group.add_argument("--check", action="store_true")
    group.add_argument("--diff", metavar="REVISION", nargs="?", const="HEAD")
    return p


def work() -> int:
    args = parser().parse_args()
    if args.check:
        reasons = stale(ROOT)
        print("\n".join(reasons + ["run scripts/lock.sh"]) if reasons else "the locks are current")
        return 1 if reasons else 0
    print(diff(args.diff) if args.diff else lock(args.update))
    return 0


if __name__ == "__main__":
    sys.exit(run_script("lock.sh", work))
