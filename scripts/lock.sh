#!/usr/bin/env bash
# environment.yml -> conda-lock.yml, locks/pip.txt, locks/flash-attn.txt, requirements.txt, requirements-dev.txt, locks/tools.txt
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/lock.sh                    lock everything anew
       scripts/lock.sh --update NAME      update one package that an environment.yml asks for (may be repeated)
       scripts/lock.sh --check            are the locks current? Solves nothing, reaches nothing; exit 1 if not
       scripts/lock.sh --diff [REVISION]  what changed in the locks since REVISION (default HEAD), as a table
       scripts/lock.sh --audit FILE...    write the list of known vulnerabilities from pip-audit's reports (JSON) of
                                          requirements.txt of every environment; exit 1 if it lacked one
options:
  --environment NAME|DIR                  one environment alone: default, current, or a folder of your own with an
                                          environment.yml (default: all of the repository)
  --version                               print the version and the commit

Needs conda-lock 4.0 and uv on PATH (environment-dev.yml has them) and, to solve, micromamba 2.5.0: conda-lock cannot
read the output of 2.6 and newer (https://github.com/conda/conda-lock/issues/906).

  CONDA_LOCK_SOLVER      another solver for conda-lock to use (default: micromamba)
  PYPI_TO_CONDA_MAPPING  address of another PyPI-to-conda name mapping (default: conda-lock's own)
USAGE
}

main() {
  local root conda_lock python get_tools name
  if ! type -P readlink dirname cat >/dev/null; then
    echo "lock.sh: PATH=$PATH has no readlink, no dirname or no cat; give it the system's folders:" \
      "export PATH=\$PATH:/usr/local/bin:/usr/bin:/bin" >&2
    exit 1
  fi
  case ${1:-} in -h | --help) usage; exit 0 ;; esac
  # With PYTHONHOME of another Python's, say, none starts.
  for name in "${!PYTHON@}"; do unset "$name"; done
  root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
  # As scripts/lockedenv/lock/tools.py says it; a test holds both together.
  get_tools="conda env create -f $root/environment-dev.yml && conda activate maximalcai-dev; or without conda:"
  get_tools+=" python3 -m venv ~/lock-tools && ~/lock-tools/bin/pip install conda-lock==4.0.3 uv &&"
  get_tools+=" curl -Ls https://micro.mamba.pm/api/micromamba/linux-64/2.5.0 | tar -xj -C ~/lock-tools bin/micromamba &&"
  get_tools+=" export PATH=~/lock-tools/bin:\$PATH"
  conda_lock=$(command -v conda-lock) || {
    echo "lock.sh: conda-lock is not on PATH; all that locking needs, micromamba 2.5.0 too, comes with: $get_tools" >&2
    exit 2
  }
  # conda-lock's own interpreter has the YAML and packaging libraries that the locking uses.
  python=$(dirname "$(readlink -f "$conda_lock")")/python
  "$python" -c 'import tomllib' 2>/dev/null || {
    # A Python of pyenv, say, starts from no such folder.
    pwd -P >/dev/null 2>&1 || {
      echo "lock.sh: the current folder was removed, and Python does not start from it; go to another one: cd ~" >&2
      exit 1
    }
    echo "lock.sh: $conda_lock runs in a Python without tomllib, or in none; a newer one comes with: $get_tools" >&2
    exit 2
  }
  PYTHONPATH=$root/scripts PYTHONDONTWRITEBYTECODE=1 exec "$python" -m lockedenv.cli.lock "$@"
}

main "$@"
