"""The conda layer: conda-lock solves it, with micromamba or another solver, for an x86_64 Linux."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import yaml
from lockedenv.errors import Stop
from lockedenv.lock.specification import Specification, pypi_name
from lockedenv.lock.tools import find_solver, run_tool
from lockedenv.spec.environment import CONDA_LOCK, Environment
from lockedenv.spec.specification import SPEC, find_virtual_packages
from packaging.version import VERSION_PATTERN

PROGRAMS = {"ninja", "uv"}  # conda's do not depend on Python; PyPI has them too


def solve(
    folder: Path, env: Environment, asked: Specification, update: list[str]
) -> dict[str, Any]:
    """conda-lock's result, each package with its size. Raises Stop.

    With `update`, only those packages may change; where it names only packages of the pip layer,
    the conda layer stays as it is. `folder` is a temporary one.
    """
    sizes = {}
    if update:  # a solver reports only what it would fetch
        sizes = {package.url: package.size for package in env.conda()}
    lock = env.folder / CONDA_LOCK
    if not update or set(update) & set(asked.conda):
        lock = folder / CONDA_LOCK
        if update:
            shutil.copy(env.folder / CONDA_LOCK, lock)
        sizes.update(_run_conda_lock(folder, env, asked, lock, update))
    solved: dict[str, Any] = yaml.safe_load(lock.read_text(encoding="utf-8"))
    solved["metadata"]["content_hash"] = {
        "linux-64": compute_content_hash(folder, env, asked)
    }
    for package in solved["package"]:
        package["size"] = sizes.get(package["url"], 0)
    return solved


def _run_conda_lock(
    folder: Path, env: Environment, asked: Specification, lock: Path, update: list[str]
) -> dict[str, int]:
    """Writes conda-lock's lock file.

    Gives the sizes of the archives that the solver reported, by address.
    """
    specification = folder / SPEC
    wanted = {"channels": asked.channels, "dependencies": [*asked.conda.values()]}
    specification.write_text(yaml.safe_dump(wanted))
    command = [
        "conda-lock",
        "lock",
        "--conda",
        str(_wrap_solver(folder, find_solver())),
    ]
    command += [
        "--file",
        str(specification),
        "--platform",
        "linux-64",
        "--lockfile",
        str(lock),
    ]
    command += ["--virtual-package-spec", str(find_virtual_packages(env.folder))]
    if "PYPI_TO_CONDA_MAPPING" in os.environ:
        command += ["--pypi_to_conda_lookup_file", os.environ["PYPI_TO_CONDA_MAPPING"]]
    for name in update:
        if name in asked.conda:
            command += ["--update", name]
    try:
        run_tool(*command)
    except Stop as error:
        problems = []
        for output in _read_outputs(folder):
            problems += read_problems(output)
        if not problems:
            raise
        cause = name_packages("; ".join(problems), list(asked.conda))
        raise Stop(
            f"{asked.path}: the solver finds no packages for it: {cause}; mend the "
            "names and bounds of the conda packages, or add the channel that has them"
        ) from error
    sizes: dict[str, int] = {}
    for output in _read_outputs(folder):
        sizes.update(read_solver_sizes(output))
    return sizes


def _read_outputs(folder: Path) -> list[str]:
    """What the solver printed in each of its runs."""
    outputs = []
    for path in sorted(folder.glob("solver.*")):
        outputs.append(path.read_text(encoding="utf-8"))
    return outputs


def read_problems(output: str) -> list[str]:
    """Why a solver found nothing, out of what it printed: micromamba's list, or conda's message."""
    try:
        printed = json.loads(output[output.index("{") : output.rindex("}") + 1])
    except ValueError:
        return []
    problems = printed.get("solver_problems") or []
    if not problems and not printed.get("success"):
        problems = [printed.get("message") or ""]
    texts = []
    for problem in problems:
        if problem:
            texts.append(" ".join(str(problem).split()))
    return texts


def name_packages(cause: str, names: list[str]) -> str:
    """A solver's problems, with the packages that were asked for where it names none of them.

    micromamba may say no more than "unsupported request".
    """
    for name in names:
        if name in cause:
            return cause
    return f"{cause} (asked for: {', '.join(names)})"


def _wrap_solver(folder: Path, solver: str) -> Path:
    """A script that runs the solver and keeps what it prints, one file a run.

    The archives' sizes are in there, and conda-lock drops them.
    """
    wrapper = folder / Path(solver).name
    output = shlex.quote(str(folder / "solver.XXXXXX"))
    wrapper.write_text(
        "#!/usr/bin/env bash\nset -o pipefail\n"
        f'{shlex.quote(solver)} "$@" | tee "$(mktemp {output})"\n'
    )
    wrapper.chmod(0o755)
    return wrapper


def read_solver_sizes(output: str) -> dict[str, int]:
    """Address -> bytes of the archives that a solver would fetch, out of what it printed."""
    sizes = {}
    with contextlib.suppress(ValueError):  # no JSON, or a list of what is installed
        printed = json.loads(output[output.index("{") : output.rindex("}") + 1])
        actions = printed.get("actions") or {}
        for archive in actions.get("FETCH", []):
            if archive.get("size"):
                sizes[archive["url"]] = archive["size"]
    return sizes


def compute_content_hash(folder: Path, env: Environment, asked: Specification) -> str:
    """conda-lock's own hash over environment.yml and virtual-packages.yml.

    Nothing is solved or fetched.
    """
    from conda_lock.content_hash import compute_content_hashes
    from conda_lock.src_parser import make_lock_spec
    from conda_lock.virtual_package import virtual_package_repo_from_specification

    mapping = folder / "mapping.json"
    mapping.write_text(
        "{}"
    )  # the hash does not depend on names, and conda-lock would fetch them
    whole = folder / "whole" / SPEC
    whole.parent.mkdir(exist_ok=True)
    dependencies: list[Any] = [*asked.conda.values()]
    if asked.pip:
        dependencies.append({"pip": [*asked.pip.values()]})
    whole.write_text(
        yaml.safe_dump({"channels": asked.channels, "dependencies": dependencies})
    )
    specification = make_lock_spec(
        src_files=[whole], platform_overrides=["linux-64"], mapping_url=mapping.as_uri()
    )
    virtual = virtual_package_repo_from_specification(find_virtual_packages(env.folder))
    return str(compute_content_hashes(specification, virtual)["linux-64"])


def find_provided(solved: dict[str, Any]) -> dict[str, str]:
    """PyPI name -> version of what the conda layer has of PyPI.

    These are the packages that depend on Python, and a few programs.
    """
    provided = {}
    for package in solved["package"]:
        from_pypi = "python" in package["dependencies"] or package["name"] in PROGRAMS
        if from_pypi and re.fullmatch(VERSION_PATTERN, package["version"], re.X | re.I):
            provided[pypi_name(package["name"])] = package["version"]
    return provided
