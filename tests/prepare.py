"""What the test command needs on this machine (see tests/run.sh): it is named, or made in the user's cache.

packages [--lint]   prints the distribution's packages that are missing, for the linters alone or for all
tools               makes the Pythons and the tools of locks/tools.txt; prints what goes on PATH
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from lockedenv import ROOT
from lockedenv.backends.index import pip_command
from lockedenv.backends.uv_program import PLATFORM, bring_uv, uv_environment
from lockedenv.cli.output import Steps
from lockedenv.host.places import default_cache
from lockedenv.host.process import ask, run
from lockedenv.host.pythons import find_python
from lockedenv.spec.cuda import COMMON_GCC
from lockedenv.spec.environment import Environment, list_environments

# Program -> the package that has it on Debian and Ubuntu.
PROGRAMS = {
    "git": "git",
    "curl": "curl",
    "pgrep": "procps",
    "mount": "mount",
    "g++": "g++",
    f"g++-{COMMON_GCC}": f"g++-{COMMON_GCC}",
}


def missing_packages(lint_alone: bool) -> list[str]:
    """The distribution's packages that are missing."""
    missing = []
    if not pip_command():
        missing.append("python3-pip")
    if lint_alone:
        return missing
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            missing.append(package)
    for environment in list_environments():
        python = find_python(environment.python, os.environ)
        # The distribution's own Python has pip and its headers in packages of their own.
        if python != Path(f"/usr/bin/python{environment.python}"):
            continue
        if ask([python, "-c", "import pip"]).status != 0:
            missing.append("python3-pip")
        if not Path(f"/usr/include/python{environment.python}/Python.h").exists():
            missing.append(f"python{environment.python}-dev")
    return list(dict.fromkeys(missing))


def make_tools() -> list[str]:
    """Makes what is missing; gives the folders that go on PATH, the tools' first."""
    cache = default_cache()
    venv = cache / "tests-venv"
    uv = bring_uv(cache, Steps(1, True))
    environ = uv_environment(cache, venv, os.environ)
    folders = [venv / "bin"]
    known = os.environ["PATH"].split(os.pathsep)
    pythons = {}
    for environment in list_environments():
        version = environment.python
        pythons[version] = require_python(version, cache, uv, environ)
        folder = pythons[version].parent
        if str(folder) not in known:
            folders.append(folder)
    if not (venv / "bin/python").exists():
        python = pythons[Environment(ROOT).python]
        create = [uv, "venv", "--python", python, "--no-project", venv]
        run(create, environ, "making the tests' environment")
    sync = [
        uv,
        "pip",
        "sync",
        "--python",
        venv / "bin/python",
        *PLATFORM,
        "--require-hashes",
    ]
    run([*sync, ROOT / "locks/tools.txt"], environ, "the tests' tools")
    return [str(folder) for folder in folders]


def require_python(
    version: str, cache: Path, uv: Path, environ: dict[str, str]
) -> Path:
    """A Python of the version: the machine's, or one that uv fetches into the cache. Raises Stop."""
    found = find_python(version, os.environ, more=[cache / "python"])
    if found is None:
        install = [uv, "python", "install", "--no-bin", version]
        run(install, environ, f"fetching Python {version}")
        found = find_python(version, os.environ, more=[cache / "python"])
    if found is None:
        sys.exit(f"uv fetched Python {version}, and it is not in {cache / 'python'}")
    return found


def main() -> None:
    sys.tracebacklimit = 0  # an error is one message
    if sys.argv[1] == "packages":
        print(*missing_packages("--lint" in sys.argv))
    else:
        print(os.pathsep.join(make_tools()))


if __name__ == "__main__":
    main()
