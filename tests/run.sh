#!/usr/bin/env bash
# The linters and all the tests, on Debian 12 and 13 and Ubuntu 22.04 and 24.04. What it needs it makes itself in the user's
# cache; the distribution's packages that are missing it installs with apt-get if it is root, and otherwise names.
#   tests/run.sh [--long] [--no-skips] [PYTEST OPTIONS]
#                             --long: the long proofs too (many kills, a whole flash-attn build)
#                             --no-skips: a test that this machine does not allow (named, and counted in the last line) has failed
#   tests/run.sh --fast       the linters, and the tests that need no installed environment: three minutes, for the inner loop
#   tests/run.sh --lint       the linters alone
set -euo pipefail

usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

prepare() {
  PYTHONPATH=scripts PYTHONDONTWRITEBYTECODE=1 python3 tests/prepare.py "$@"
}

install_packages() {
  local missing install="apt-get install --yes --no-install-recommends"
  missing=$(prepare packages "$@")
  if [[ -z $missing ]]; then return; fi
  if ((EUID)) || ! command -v apt-get >/dev/null; then
    echo "tests/run.sh: this machine lacks $missing; nothing was done. Install them, and run it again:" >&2
    echo "sudo apt-get update && sudo $install $missing" >&2
    exit 1
  fi
  echo "tests/run.sh: apt-get installs what is missing: $missing"
  apt-get -qq update
  # shellcheck disable=SC2086  # words
  DEBIAN_FRONTEND=noninteractive $install -qq $missing >/dev/null
}

lint() {
  black --check --diff --quiet scripts tests benchmarks
  isort --check --diff --quiet scripts tests benchmarks
  flake8 --max-line-length 100 --extend-ignore E203,E704,W503 --per-file-ignores "tests/*:E501,E128" scripts tests benchmarks
  mypy
  shellcheck scripts/*.sh tests/*.sh tests/*/*.sh .github/*.sh examples/slurm.sbatch .ci/run
  # What must start on an old Python; scripts/lockedenv/lock runs in conda-lock's.
  find scripts -name '*.py' ! -path '*/lock/*' -exec vermin --quiet --no-tips --target=3.9- --violations {} +
  hadolint Dockerfile
  actionlint
  zizmor --offline --quiet .github
  echo "linters: clean"
}

run_tests() {
  # A file stays with one worker: what it makes once is made once, and its tests may look at all processes of theirs. One
  # worker more than CPUs, since many tests wait.
  pytest --numprocesses "$(($(nproc) + 1))" --maxprocesses 4 --dist loadfile --no-loadscope-reorder --no-fold-skipped "$@"
}

main() {
  local mode=${1:-}
  if [[ $mode == -h || $mode == --help ]]; then
    usage
    return
  fi
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  install_packages "$@"
  echo "tests/run.sh: uv, the tools of locks/tools.txt and the Pythons that are missing go to the cache, ~/.cache/maximalcai"
  PATH=$(prepare tools):$PATH
  export PATH PYTHONDONTWRITEBYTECODE=1
  lint
  case $mode in
    --lint) ;;
    --fast)
      shift
      run_tests -m "not installed" "$@"
      ;;
    *) run_tests "$@" ;;
  esac
}

main "$@"
