"""Writes the locks (see scripts/lock.sh --help). Runs in conda-lock's interpreter.

conda-lock solves the conda layer; uv resolves the pip layer over it, both layers as PyPI wheels, and the tools. (conda-lock's
own pip solver reads the dependencies of torch from PyPI although conda provides it, and then asks for NVIDIA's wheels.)
Nothing is written until all of it has been made.
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
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

import yaml
from lockedenv import ROOT
from lockedenv.errors import Stop
from lockedenv.host.process import ShowVersion, ask, run_script
from lockedenv.lock.wheel_files import WheelFile, fetch_record_digests
from lockedenv.spec import environment, facts
from lockedenv.spec.environment import (
    CONDA_LOCK,
    DEV,
    FLASH,
    PIP,
    REQUIREMENTS,
    SPEC,
    VIRTUAL,
    Environment,
)
from lockedenv.spec.locks import (
    WHEEL,
    LockError,
    PipPackage,
    canonical,
    read_conda_lock,
    read_pip_lock,
)
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from packaging.version import VERSION_PATTERN

TOOLS = "locks/tools.txt"
FLASH_ASKED = "locks/flash-attn.in"
PYPI_NAMES = {"pytorch": "torch", "torchtriton": "triton"}
PROGRAMS = {"ninja", "uv"}  # conda's do not depend on Python; PyPI has them too
LEGACY = {17: "manylinux2014_x86_64", 12: "manylinux2010_x86_64", 5: "manylinux1_x86_64"}


def run(*command: str) -> str:
    """Standard output of a command. Raises Stop with what it said, if it fails."""
    status, out, err = ask(command, timeout=3600, cwd=ROOT)
    if status != 0:  # the lines of a traceback would hide the reason
        said = (
            re.sub(r"^  File .*\n    .*\n(?: *\^+\n)?", "", out + err, flags=re.M)
            .strip()
            .splitlines()[-25:]
        )
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
        names = {re.split(r"[ =<>!~\[]", spec.split("::")[-1])[0]: spec for spec in conda}
        return Asked(names, {canonical(Requirement(p).name): p for p in pip}, data["channels"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise Stop(f"{root}: is not a conda environment file: {error}") from None


def virtual_packages(env: Environment) -> Path:
    """What the solver may assume of a pod: the environment's own file, or the repository's."""
    return next(path for path in (env.folder / VIRTUAL, ROOT / VIRTUAL) if path.exists())


def content_hash(env: Environment) -> str:
    """conda-lock's own hash over environment.yml and virtual-packages.yml; nothing is solved or fetched."""
    from conda_lock.content_hash import compute_content_hashes
    from conda_lock.src_parser import make_lock_spec
    from conda_lock.virtual_package import virtual_package_repo_from_specification

    with tempfile.TemporaryDirectory() as tmp:
        mapping = Path(tmp, "mapping.json")
        mapping.write_text(
            "{}"
        )  # the names do not matter to the hash, and conda-lock would download them
        spec = make_lock_spec(
            src_files=[env.folder / SPEC],
            platform_overrides=["linux-64"],
            mapping_url=f"file://{mapping}",
        )
        virtual = virtual_package_repo_from_specification(virtual_packages(env))
        return str(compute_content_hashes(spec, virtual)["linux-64"])


def solve(tmp: Path, env: Environment, asked: Asked, update: List[str]) -> Dict[str, Any]:
    """conda-lock's result over the conda layer; with `update`, only those packages may change."""
    sizes = (
        {p.url: p.size for p in env.conda()} if update else {}
    )  # what stays as it is, no solver reports
    lock, spec = env.folder / CONDA_LOCK, tmp / SPEC
    if not update or set(update) & set(
        asked.conda
    ):  # for a pip package alone, the conda layer stays as it is
        lock = Path(shutil.copy(lock, tmp)) if update else tmp / CONDA_LOCK
        solver = os.environ.get("CONDA_LOCK_SOLVER") or shutil.which("micromamba")
        if not solver:
            raise Stop(
                "micromamba is not on PATH and CONDA_LOCK_SOLVER is not set; install micromamba 2.5.0"
            )
        spec.write_text(
            yaml.safe_dump({"channels": asked.channels, "dependencies": [*asked.conda.values()]})
        )
        # conda-lock drops the archives' sizes, which the solver reports: keep what it says, one file a run.
        wrapper = tmp / Path(solver).name
        wrapper.write_text(
            f'#!/usr/bin/env bash\nset -o pipefail\n{solver!r} "$@" | tee "$(mktemp {str(tmp)!r}/said.XXXXXX)"\n'
        )
        wrapper.chmod(0o755)
        command = ["conda-lock", "lock", "--conda", str(wrapper), "-f", str(spec), "-p", "linux-64"]
        command += ["--virtual-package-spec", str(virtual_packages(env)), "--lockfile", str(lock)]
        if "PYPI_TO_CONDA_MAPPING" in os.environ:
            command += ["--pypi_to_conda_lookup_file", os.environ["PYPI_TO_CONDA_MAPPING"]]
        run(
            *command,
            *(flag for name in update if name in asked.conda for flag in ("--update", name)),
        )
    solved: Dict[str, Any] = yaml.safe_load(lock.read_text())
    solved["metadata"]["content_hash"] = {"linux-64": content_hash(env)}
    for path in tmp.glob("said.*"):
        sizes.update(solver_sizes(path.read_text()))
    for package in solved["package"]:
        package["size"] = sizes.get(package["url"], 0)
    return solved


def solver_sizes(said: str) -> Dict[str, int]:
    """url -> bytes of the archives that a solver would fetch, as it printed them."""
    with contextlib.suppress(ValueError):  # no JSON, or a list of what is installed
        actions = json.loads(said[said.index("{") : said.rindex("}") + 1]).get("actions") or {}
        return {
            action["url"]: action["size"]
            for action in actions.get("FETCH", [])
            if action.get("size")
        }
    return {}


@lru_cache()
def tags(python: str) -> List[Tag]:
    """The wheel tags that fit a CPython on x86_64 Linux with the glibc that wheels are locked for, the best first."""
    newest = int(facts.GLIBC.split(".")[1])
    platforms = [
        p for n in range(newest, 4, -1) for p in (f"manylinux_2_{n}_x86_64", LEGACY.get(n)) if p
    ] + ["linux_x86_64"]
    major, minor = map(int, python.split("."))
    return [
        *cpython_tags((major, minor), platforms=platforms),
        *compatible_tags((major, minor), f"cp{major}{minor}", platforms),
    ]


def wheel_rank(filename: str, python: str) -> Optional[int]:
    """How well a wheel fits: 0 is best, None is not at all."""
    with contextlib.suppress(ValueError):
        fit = tags(python)
        return min(
            (fit.index(tag) for tag in parse_wheel_filename(filename)[3] if tag in fit),
            default=None,
        )
    return None


def compile_(python: str, *arguments: Any) -> str:
    """What uv resolves the given requirements to."""
    target = ["--python-version", python, "--python-platform", facts.PLATFORM]
    return run(
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--no-annotate",
        "--no-header",
        *target,
        *map(str, arguments),
    )


def add_records(
    env: Environment, files: Dict[str, List[PipPackage]], wheels: Dict[str, WheelFile]
) -> Dict[str, List[PipPackage]]:
    """The same packages with the digests of their RECORDs: from the present locks, or from the index. Raises Stop."""
    digests: Dict[str, str] = {}
    for folder in (ROOT, env.folder):
        for name in (PIP, REQUIREMENTS, DEV, TOOLS):
            with contextlib.suppress(LockError):
                for package in read_pip_lock(folder / name):
                    if package.record_sha256:
                        digests[package.sha256] = package.record_sha256
    wanted = {package.sha256 for packages in files.values() for package in packages}
    lacking = [wheels[sha256] for sha256 in sorted(wanted) if sha256 in wheels]
    lacking = [wheel for wheel in lacking if wheel.sha256 not in digests]
    digests.update(fetch_record_digests(lacking))
    return {
        name: [
            replace(package, record_sha256=digests.get(package.sha256, "")) for package in packages
        ]
        for name, packages in files.items()
    }


def wheel_files(entries: Iterable[Dict[str, Any]], python: str) -> Dict[str, WheelFile]:
    """sha256 -> where the index keeps it, of the wheels that these pylock entries mean."""
    found = {}
    for entry in entries:
        chosen = chosen_file(entry, python)
        url = chosen.get("url") or chosen["path"]
        if url.endswith(".whl"):
            wheel = WheelFile(url, chosen["hashes"]["sha256"], chosen.get("size", 0))
            found[wheel.sha256] = wheel
    return found


def pylock(python: str, *arguments: Any) -> Dict[str, Dict[str, Any]]:
    """uv's resolution as pylock.toml's entries, by name."""
    entries = tomllib.loads(compile_(python, "--format", "pylock.toml", *arguments)).get(
        "packages", []
    )
    return {canonical(entry["name"]): entry for entry in entries}


def chosen_file(entry: Dict[str, Any], python: str) -> Dict[str, Any]:
    """The one file of a pylock entry to install: the best fitting wheel, else the sdist. Raises Stop."""
    files = [(wheel_rank(f["url"].rsplit("/", 1)[1], python), f) for f in entry.get("wheels", [])]
    ranked = sorted((rank, f["hashes"]["sha256"], f) for rank, f in files if rank is not None)
    chosen = ranked[0][2] if ranked else entry.get("sdist")
    if not chosen:
        raise Stop(
            f"{entry['name']} {entry['version']}: PyPI has no wheel for Python {python}, glibc {facts.GLIBC}"
        )
    file: Dict[str, Any] = chosen
    return file


def pin(entry: Dict[str, Any], python: str) -> PipPackage:
    """The file of a pylock entry to install, as a line of a lock, without the digest of its RECORD. Raises Stop."""
    chosen = chosen_file(entry, python)
    return PipPackage(
        canonical(entry["name"]),
        entry["version"],
        chosen["hashes"]["sha256"],
        chosen.get("size", 0),
    )


def provided(solved: Dict[str, Any]) -> Dict[str, str]:
    """PyPI name -> version of what the conda layer has of PyPI: the packages that depend on Python, and a few programs."""
    found = [p for p in solved["package"] if "python" in p["dependencies"] or p["name"] in PROGRAMS]
    return {
        pypi_name(p["name"]): p["version"]
        for p in found
        if re.fullmatch(VERSION_PATTERN, p["version"], re.X | re.I)
    }


WRITTEN = "# Written by scripts/lock.sh; edit {} and run it instead.\n# {}\n"
HEADERS = {
    CONDA_LOCK: (
        SPEC,
        "The conda layer; the pip layer is locks/pip.txt. micromamba create -n maximalcai -f conda-lock.yml",
    ),
    PIP: (SPEC, "The pip layer, put on the conda layer by scripts/post_create.sh."),
    FLASH: (FLASH_ASKED, "The source that scripts/post_create.sh builds."),
    REQUIREMENTS: (
        SPEC,
        "Both layers as PyPI wheels, for a machine without conda (Python {}, x86_64 Linux).",
    ),
    DEV: (
        "pyproject.toml",
        "requirements.txt, and the tools of people who write code (Python {}, x86_64 Linux).\n-r requirements.txt",
    ),
    TOOLS: (
        "pyproject.toml",
        "The tools of the tests, and the uv that installs (Python {}, x86_64 Linux).",
    ),
}


def sized(line: str, size: int) -> str:
    return f"{line}  # {size} bytes\n" if size else f"{line}\n"


def size_and_record(package: PipPackage) -> str:
    """The comment behind a pip package: the size of the file and the digest of its RECORD, as far as they are known."""
    if package.record_sha256:
        return f"  # {package.size} bytes, RECORD {package.record_sha256}"
    return f"  # {package.size} bytes" if package.size else ""


def requirements_text(
    name: str, packages: Iterable[PipPackage], python: str, more: Sequence[str] = ()
) -> str:
    lines = [
        f"{p.name}=={p.version} --hash=sha256:{p.sha256}{size_and_record(p)}\n"
        for p in sorted(packages, key=lambda p: p.name)
    ]
    return WRITTEN.format(*HEADERS[name]).format(python) + "".join(
        [*lines, *more, f"# {len(lines)} packages\n"]
    )


def conda_lock_text(solved: Dict[str, Any]) -> str:
    """conda-lock.yml, in which every package is a line of JSON, which is YAML too; the last line counts them."""
    packages = [dict(p) for p in solved["package"]]
    lines = [sized(f"- {json.dumps(p)}", size) for p in packages for size in [p.pop("size")]]
    metadata = yaml.safe_dump(
        {"version": 1, "metadata": {**solved["metadata"], "sources": [SPEC]}}, sort_keys=False
    )
    return (
        WRITTEN.format(*HEADERS[CONDA_LOCK])
        + metadata
        + "package:\n"
        + "".join(lines)
        + f"# {len(lines)} packages\n"
    )


def lock(env: Environment, update: List[str]) -> str:
    """Writes the locks of an environment; with `update`, only those packages may change. Gives what it did, in one line."""
    asked = read_spec(env.folder / SPEC)
    if update and content_hash(env) != read_conda_lock(env.folder / CONDA_LOCK).content_hash:
        raise Stop(
            f"{env.folder / SPEC} or {VIRTUAL} has changed since it was locked; run scripts/lock.sh without --update"
        )
    if "python" not in asked.conda:
        raise Stop(
            f"{env.folder / SPEC}: asks for no python, which both layers are for; add a line such as python=3.N"
        )
    flash = flash_asked(env) if (env.folder / FLASH_ASKED).exists() else []
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        solved = solve(tmp, env, asked, update)
        python = ".".join(
            next(p["version"] for p in solved["package"] if p["name"] == "python").split(".")[:2]
        )
        conda, versions = provided(solved), tmp / "versions.txt"
        if update:  # uv keeps to what its output file says
            versions.write_text(
                "".join(
                    f"{p.name}=={p.version}\n" for p in env.wheels("pip") if p.name not in conda
                )
            )
        wanted = [pypi_name(name) for name in asked.conda if pypi_name(name) in conda] + [
            *asked.pip.values()
        ]
        inputs = {
            "wanted.in": wanted,
            "pip.in": asked.pip.values(),
            "conda.in": [f"{n}=={v}" for n, v in conda.items()],
        }
        for name, lines in {**inputs, "names.in": conda}.items():
            (tmp / name).write_text("".join(f"{line}\n" for line in lines))
        wheels, upgraded = ["--only-binary", ":all:"], [
            flag for name in update for flag in ("-P", name)
        ]
        compile_(
            python, tmp / "wanted.in", "-c", tmp / "conda.in", *wheels, *upgraded, "-o", versions
        )
        entries = [*pylock(python, tmp / "wanted.in", "-c", versions, *wheels).values()]
        both = [pin(entry, python) for entry in entries]
        if "torch" not in {p.name for p in both}:
            raise Stop(
                f"{env.folder / SPEC}: asks for no torch, which the verifier is about; add pytorch"
            )
        over = (
            pylock(python, tmp / "pip.in", "-c", versions, "--excludes", tmp / "names.in", *wheels)
            if asked.pip
            else {}
        )
        files = {PIP: [p for p in both if p.name in over], REQUIREMENTS: both}
        if flash:  # as source: PyPI has no wheel of it
            (tmp / "flash.in").write_text("\n".join(flash))
            source = pylock(python, tmp / "flash.in", "-c", versions)["flash-attn"]
            files[FLASH] = [pin({**source, "wheels": []}, python)]
        dev = pylock(python, "--group", "dev", "-c", versions, *wheels)
        files[DEV] = [
            pin(entry, python) for name, entry in dev.items() if name not in {p.name for p in both}
        ]
        entries += dev.values()
        if env.folder == ROOT:
            tools = pylock(python, "--group", "tools", *wheels)
            files[TOOLS] = [pin(entry, python) for entry in tools.values()]
            entries += tools.values()
        files = add_records(env, files, wheel_files(entries, python))
        both = files[REQUIREMENTS]
    texts = {
        CONDA_LOCK: conda_lock_text(solved),
        **{n: requirements_text(n, pins, python) for n, pins in files.items()},
    }
    if FLASH in texts:
        texts[FLASH] = requirements_text(FLASH, files[FLASH], python, prebuilt_lines(env))
    for (
        name,
        text,
    ) in (
        texts.items()
    ):  # all are written before the first is renamed, so that a full disk changes nothing
        (env.folder / name).parent.mkdir(exist_ok=True)
        (env.folder / f"{name}.new").write_text(text)
    for name in texts:
        (env.folder / f"{name}.new").replace(env.folder / name)
    count = f"{len(solved['package'])} conda and {len(files[PIP])} pip packages, {len(both)} wheels in all"
    return f"{env.name}: locked {count}"


def flash_asked(env: Environment) -> List[str]:
    """Which flash-attn an environment asks for as source: the lines of flash-attn.in without the prebuilt wheel."""
    lines = (env.folder / FLASH_ASKED).read_text().splitlines()
    asked = [line.partition("#")[0].strip() for line in lines if not WHEEL.fullmatch(line)]
    if not any(asked) or any(" @ " in line for line in asked):
        raise Stop(
            f"{env.folder / FLASH_ASKED}: has to name flash-attn as a requirement, and may name one wheel as: "
            "flash-attn @ URL --hash=sha256:HEX  # glibc N.N, sm 80 90"
        )
    return list(filter(None, asked))


def prebuilt_lines(env: Environment) -> List[str]:
    """The line of flash-attn.in that names a prebuilt wheel, which the lock has as it is."""
    return [
        f"{line}\n"
        for line in (env.folder / FLASH_ASKED).read_text().splitlines()
        if WHEEL.fullmatch(line)
    ]


def stale(env: Environment) -> List[str]:
    """Why the locks of an environment are not what lock.sh would have written for its specification; empty if they are."""
    root, groups = (
        env.folder,
        tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"],
    )
    asked = {PIP: [*read_spec(root / SPEC).pip.values()], DEV: groups["dev"]}
    if (root / FLASH_ASKED).exists():
        asked[FLASH] = flash_asked(env)
    if root == ROOT:
        asked[TOOLS] = groups["tools"]
    try:
        conda = read_conda_lock(root / CONDA_LOCK)
        locked = {
            name: {p.name: p for p in read_pip_lock(root / name)} for name in (*asked, REQUIREMENTS)
        }
    except LockError as error:
        return [str(error)]
    reasons = []
    if FLASH in asked and [
        f"{line}\n" for line in (root / FLASH).read_text().splitlines() if " @ " in line
    ] != prebuilt_lines(env):
        reasons.append(f"{root / FLASH}: has another prebuilt wheel than {FLASH_ASKED}")
    if content_hash(env) != conda.content_hash:
        reasons.append(
            f"{root / CONDA_LOCK}: {SPEC} or {VIRTUAL} has changed since it was locked (content hash)"
        )
    both = locked[REQUIREMENTS]
    locked[DEV] = {**both, **locked[DEV]}
    for name, specs in asked.items():
        for requirement in map(Requirement, specs):
            found = locked[name].get(canonical(requirement.name))
            if found is None or found.version not in requirement.specifier:
                has = found.version if found else "not at all"
                reasons.append(
                    f"{root / name}: has {requirement.name} {has}, asked for is {requirement}"
                )
    pip = locked[PIP]
    reasons += [f"{root / REQUIREMENTS}: lacks {name} of {PIP}" for name in pip if name not in both]
    reasons += [
        f"{root / REQUIREMENTS}: has another {name} than {PIP}"
        for name in pip
        if both.get(name, pip[name]) != pip[name]
    ]
    pairs = [
        (both[pypi_name(p.name)], p)
        for p in conda.packages
        if pypi_name(p.name) in both and (p.needs_python or p.name in PROGRAMS)
    ]
    pairs = [(wheel, p) for wheel, p in pairs if wheel.version != p.version]
    return reasons + [
        f"{root / REQUIREMENTS}: has {w.name} {w.version}, {CONDA_LOCK} has {p.version}"
        for w, p in pairs
    ]


def versions_at(env: Environment, revision: Optional[str]) -> Dict[str, str]:
    """'| environment | layer | name |' -> 'version build' of what is locked, now (None) or at a git revision that had it."""
    found: Dict[str, str] = {}
    for name, layer in (
        (CONDA_LOCK, "conda"),
        (PIP, "pip"),
        (FLASH, "source"),
        (DEV, "dev"),
        (TOOLS, "tools"),
    ):
        path = env.folder / name
        now = path.read_text() if path.exists() else ""
        text = ask(["git", "show", f"{revision}:./{name}"], cwd=env.folder)[1] if revision else now
        pins = re.findall(r"^(\S+)==(\S+)", text, re.M)
        if layer == "conda":  # by YAML, for what earlier versions wrote
            packages = (yaml.safe_load(text) or {}).get("package", [])
            pins = [
                (p["name"], f"{p['version']} " + re.sub(r".*-|\.(conda|tar\.bz2)$", "", p["url"]))
                for p in packages
            ]
        found.update(
            (f"| {env.name} | {layer} | {package} |", version) for package, version in pins
        )
    return found


def diff(environments: List[Environment], revision: str) -> str:
    """A Markdown table of what changed in the locks since a git revision."""
    rows: List[str] = []
    for env in environments:
        env.conda()  # says what is wrong with it
        before, after = versions_at(env, revision), versions_at(env, None)
        changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        rows += [f"{key} {before.get(key, '')} | {after.get(key, '')} |" for key in changed]
    head = ["| environment | layer | package | before | after |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else "No lock changed."


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="scripts/lock.sh", allow_abbrev=False)
    p.add_argument("--environment", metavar="NAME|DIR")
    p.add_argument("--version", action=ShowVersion, nargs=0)
    group = p.add_mutually_exclusive_group()
    group.add_argument("--update", metavar="NAME", action="append", default=[])
    group.add_argument("--check", action="store_true")
    group.add_argument("--diff", metavar="REVISION", nargs="?", const="HEAD")
    return p


def work() -> int:
    args = parser().parse_args()
    environments = [environment.find(args.environment)] if args.environment else environment.ours()
    if args.check:
        reasons = [reason for env in environments for reason in stale(env)]
        print("\n".join(reasons + ["run scripts/lock.sh"]) if reasons else "the locks are current")
        return 1 if reasons else 0
    if args.diff:
        print(diff(environments, args.diff))
        return 0
    asked = {env: read_spec(env.folder / SPEC) for env in environments}
    given = {env: {*asked[env].conda, *asked[env].pip} for env in environments}
    for name in args.update:
        if not any(name in names for names in given.values()):
            there = ", ".join(sorted(set().union(*given.values())))
            raise Stop(f"--update {name}: no {SPEC} asks for it; asked for are: {there}")
    for env in environments:
        names = [name for name in args.update if name in given[env]]
        if names or not args.update:
            print(lock(env, names))
    return 0


if __name__ == "__main__":
    sys.exit(run_script("lock.sh", work))
