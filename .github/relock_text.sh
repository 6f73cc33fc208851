#!/usr/bin/env bash
# The text of the pull request that .github/workflows/relock.yml opens.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: .github/relock_text.sh FOLDER NEWEST

Prints Markdown: what changed, what pip-audit says, and what the verifier says on both backends.

  FOLDER   the artifacts of the workflow: relock/changes.md, relock/audit.md, verdict-*/*.md
  NEWEST   the date after which wheels were left out
USAGE
}

main() {
  if [[ ${1:-} == --help ]]; then
    usage
    exit 0
  fi
  if (($# != 2)); then
    usage >&2
    exit 2
  fi
  local folder=$1 newest=$2 verdicts
  printf 'What the specifications mean today. Wheels published after %s are left out; conda packages are not held back.\n' "$newest"
  printf '\n## What changed\n\n'
  cat "$folder/relock/changes.md"
  printf '\n## Known vulnerabilities, by pip-audit\n\n'
  cat "$folder/relock/audit.md"
  printf '\n## The verifier, without a GPU\n\n'
  shopt -s nullglob
  verdicts=("$folder"/verdict-*/*.md)
  if ((${#verdicts[@]})); then
    printf '| environment | backend | result |\n|---|---|---|\n'
    cat "${verdicts[@]}"
  else
    printf 'It has not run.\n'
  fi
}

main "$@"
