#!/usr/bin/env bash
# The linters and all the tests, on Debian 12 and 13 and Ubuntu 22.04 and 24.04. What it needs it makes itself in the user's cache;
# the distribution's packages that are missing it installs with apt-get if it is root, and otherwise names.
#   tests/run.sh [--long] [--no-skips] [PYTEST OPTIONS]
#                             --long: the long proofs too (many kills, a whole flash-attn build)
#                             --no-skips: a test that this machine does not allow (named, and counted in the last line) has failed
#   tests/run.sh --lint       the linters alone
set -euo pipefail

with_python() {
  # What is missing ("lacking", with --lint for the linters alone), or the Pythons and tools, made: prints what goes on PATH ("made").
  PYTHONPATH=scripts PYTHONDONTWRITEBYTECODE=1 python3 - "$@" <<'PY'
import os, shutil, sys
from pathlib import Path
from lockedenv import ROOT
from lockedenv.cli.output import Steps
from lockedenv.spec.environment import Environment, list_environments
from lockedenv.spec.cuda import COMMON_GCC
from lockedenv.backends.index import pip_command
from lockedenv.backends.uv_program import PLATFORM, bring_uv, uv_environment
from lockedenv.host.machine import default_cache
from lockedenv.host.process import ask, run
sys.tracebacklimit = 0  # an error is one message
cache, versions = default_cache(), [env.python for env in list_environments()]
# pyenv keeps its Pythons beside each other, and shows one of them.
pyenv = Path(os.path.realpath(shutil.which("pyenv") or "/")).parent.parent
folders = {Path(sys.base_prefix).parent, pyenv / "versions", Path.home() / ".pyenv/versions"}
beside = [str(path) for version in versions for folder in folders for path in sorted(folder.glob(f"{version}.*/bin"))]
path = ":".join([*beside, os.environ["PATH"]])
if sys.argv[1] == "lacking":
    lacking = [] if pip_command() else ["python3-pip"]
    if "--lint" not in sys.argv:
        needed = {"git": "git", "curl": "curl", "pgrep": "procps", "mount": "mount", "g++": "g++", f"g++-{COMMON_GCC}": f"g++-{COMMON_GCC}"}
        lacking += [package for program, package in needed.items() if not shutil.which(program)]
        own = [version for version in versions if shutil.which(f"python{version}", path=path) == f"/usr/bin/python{version}"]
        lacking += ["python3-pip" for version in own if ask([f"/usr/bin/python{version}", "-c", "import pip"])[0]]
        lacking += [f"python{version}-dev" for version in own if not Path(f"/usr/include/python{version}/Python.h").exists()]
    sys.exit(print(*dict.fromkeys(lacking)))
venv, steps = cache / "tests-venv", Steps(1, True)
uv = str(bring_uv(cache, steps))
environ = {**uv_environment(cache, venv, dict(os.environ)), "PATH": path}
find = lambda version: ask([uv, "python", "find", "--system", version], env=environ)[1].strip()
for version in versions:
    if not find(version):
        run([uv, "python", "install", "--no-bin", version], environ, f"fetching Python {version}", quiet=True)
if not (venv / "bin/python").exists():
    run([uv, "venv", "--python", Environment(ROOT).python, "--no-project", str(venv)], environ, "making the tests' environment", quiet=True)
python = str(venv / "bin/python")
run([uv, "pip", "sync", "--python", python, *PLATFORM, "--require-hashes", str(ROOT / "locks/tools.txt")], environ, "the tests' tools", quiet=True)
known = os.environ["PATH"].split(":")
print(":".join([str(venv / "bin"), *(bin for bin in (os.path.dirname(find(version)) for version in versions) if bin not in known)]))
PY
}

packages() {
  local lacking install="apt-get install --yes --no-install-recommends"
  lacking=$(with_python lacking "$@")
  if [[ -z $lacking ]]; then return; fi
  if ((EUID)) || ! command -v apt-get >/dev/null; then
    echo "tests/run.sh: this machine lacks $lacking; nothing was done. Install them, and run it again:" >&2
    echo "sudo apt-get update && sudo $install $lacking" >&2
    exit 1
  fi
  echo "tests/run.sh: apt-get installs what is missing: $lacking"
  apt-get -qq update
  # shellcheck disable=SC2086  # words
  DEBIAN_FRONTEND=noninteractive $install -qq $lacking >/dev/null
}

main() {
  case ${1:-} in -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  packages "$@"
  echo "tests/run.sh: uv, the tools of locks/tools.txt and the Pythons that are missing go to the cache, ~/.cache/maximalcai"
  local bin
  bin=$(with_python made)
  export PATH=$bin:$PATH
  export PYTHONDONTWRITEBYTECODE=1

  black --check --diff --quiet scripts tests benchmarks
  isort --check --diff --quiet scripts tests benchmarks
  flake8 --max-line-length 130 --extend-ignore E203,E704,W503 --per-file-ignores "tests/*:E501,E128" scripts tests benchmarks
  mypy
  shellcheck scripts/*.sh tests/*.sh .github/*.sh examples/slurm.sbatch .ci/run
  # What must start on an old Python; scripts/lockedenv/lock runs in conda-lock's.
  find scripts -name '*.py' ! -path '*/lock/*' -exec vermin --quiet --no-tips --target=3.9- --violations {} +
  hadolint Dockerfile
  actionlint
  zizmor --offline --quiet .github
  echo "linters: clean"
  # A file stays with one worker: what it makes once is made once, and its tests may look at all processes of theirs. One worker
  # more than CPUs, since many tests wait.
  if [[ ${1:-} != --lint ]]; then
    pytest --numprocesses "$(($(nproc) + 1))" --maxprocesses 4 --dist loadfile --no-loadscope-reorder --no-fold-skipped "$@"
  fi
}

main "$@"
