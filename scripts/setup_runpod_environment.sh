#!/usr/bin/env bash
# A bare machine -> the locked environment, verified. What it does is in lockedenv/cli/setup.py; --help has the options.
set -euo pipefail

main() {
  local scripts name
  if ! type -P readlink dirname >/dev/null; then
    echo "setup_runpod_environment.sh: PATH=$PATH has no readlink or no dirname; give it the system's folders:" \
      "export PATH=\$PATH:/usr/local/bin:/usr/bin:/bin" >&2
    exit 1
  fi
  for name in "${!MAXIMALCAI_PYTHON@}"; do unset "$name"; done
  # With PYTHONHOME of another Python's, say, none starts. The verifier is to see what there was.
  for name in "${!PYTHON@}"; do
    export "MAXIMALCAI_$name=${!name}"
    case $name in PYTHONNOUSERSITE | PYTHONUSERBASE) ;; *) unset "$name" ;; esac
  done
  scripts=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    # A python3 of pyenv, say, starts from no such folder.
    if ! pwd -P >/dev/null 2>&1; then
      echo "setup_runpod_environment.sh: the current folder was removed, and python3 does not start from it; go to another one: cd ~" >&2
      exit 1
    fi
    echo "setup_runpod_environment.sh: needs python3 3.9 or newer to start; install it with: apt-get install python3" >&2
    exit 1
  fi
  PYTHONPATH=$scripts PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1 exec python3 "$scripts/lockedenv/cli/setup.py" "$@"
}

main "$@"
