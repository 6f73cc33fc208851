#!/usr/bin/env bash
# The linters and all the tests, in a virtual environment that this makes itself.
#   tests/run.sh [--long] [PYTEST OPTIONS]     --long: the long proofs too (many kills, a whole flash-attn build)
#   tests/run.sh --lint                        the linters alone
set -euo pipefail

tools() {
  # The locked uv by hash, then the locked tools in the cache, and the Pythons of the environments. Prints what goes on PATH.
  PYTHONPATH=scripts PYTHONDONTWRITEBYTECODE=1 python3 - <<'PY'
import os, shutil, sys
from pathlib import Path
from lockedenv import ROOT
from lockedenv.console import Steps
from lockedenv.environment import Environment, ours
from lockedenv.install.wheels import PLATFORM, bring_uv, uv_environment
from lockedenv.machine import default_cache
from lockedenv.process import ask, run
cache = default_cache()
venv, steps = cache / "tests-venv", Steps(1, True)
uv = str(bring_uv(cache, steps))
# pyenv keeps its Pythons beside each other, and shows one of them.
pyenv = Path(os.path.realpath(shutil.which("pyenv") or "/")).parent.parent
versions = {Path(sys.base_prefix).parent, pyenv / "versions", Path.home() / ".pyenv/versions"}
beside = [path for env in ours() for folder in versions for path in sorted(folder.glob(f"{env.python}.*/bin"))]
path = ":".join([*map(str, beside), os.environ["PATH"]])
environ = {**uv_environment(cache, venv, dict(os.environ)), "PATH": path}
for version in [env.python for env in ours()]:
    if ask([uv, "python", "find", version], env=environ)[0] != 0:
        run([uv, "python", "install", "--no-bin", version], environ, f"fetching Python {version}", quiet=True)
if not (venv / "bin/python").exists():
    run([uv, "venv", "--python", Environment(ROOT).python, "--no-project", str(venv)], environ, "making the tests' environment", quiet=True)
python = str(venv / "bin/python")
run([uv, "pip", "sync", "--python", python, *PLATFORM, "--require-hashes", str(ROOT / "locks/tools.txt")], environ, "the tests' tools", quiet=True)
print(":".join(map(str, [venv / "bin", *beside])))
PY
}

main() {
  case ${1:-} in -h | --help) sed -n 's/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed 1d; exit 0 ;; esac
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  local bin
  bin=$(tools)
  export PATH=$bin:$PATH
  export PYTHONDONTWRITEBYTECODE=1

  black --check --diff --quiet scripts tests benchmarks
  isort --check --diff --quiet scripts tests benchmarks
  flake8 --max-line-length 130 --extend-ignore E203,E704,W503 --per-file-ignores "tests/*:E501,E128" scripts tests benchmarks
  mypy
  shellcheck scripts/*.sh tests/*.sh examples/slurm.sbatch .ci/run
  # What must start on an old Python; scripts/lockedenv/lock runs in conda-lock's.
  find scripts -name '*.py' ! -path '*/lock/*' -exec vermin --quiet --no-tips --target=3.8- --violations {} +
  hadolint Dockerfile
  actionlint
  zizmor --offline --quiet .github
  echo "linters: clean"
  # A file stays with one worker: what it makes once is made once, and its tests may look at all processes of theirs.
  if [[ ${1:-} != --lint ]]; then pytest --numprocesses logical --maxprocesses 4 --dist loadfile "$@"; fi
}

main "$@"
