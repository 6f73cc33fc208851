#!/usr/bin/env -S MAXIMALCAI_PWD=${PWD} PWD=/proc/self/cwd sh
""":"
# A shell reads the lines down to exec, and Python takes them for a text. A python3 of pyenv, say,
# does not start from a folder that was removed, and would not say what to do.
PWD=$MAXIMALCAI_PWD
unset MAXIMALCAI_PWD
if [ -z "$(pwd -P 2>/dev/null)" ] && ! python3 -I -c "" 2>/dev/null; then
  set -- "the current folder was removed, and python3 does not start from it"
  echo "maximalcai: $1; go to another one: cd ~" >&2
  exit 1
fi
exec python3 -I "$0" "$@"
"""

# The command `maximalcai` of an environment; the set-up copies this file to PREFIX/bin/maximalcai.
#
# It starts scripts/maximalcai.py of the clone that last worked on the environment. It is read by
# any Python 3 on PATH. The first line gives the shell a PWD that is right in a removed folder too:
# it would complain there.

import json
import os
import sys

VARIABLE = "MAXIMALCAI_CLONE"
MARK = "maximalcai.json"
LIMIT = 4000000  # bytes of a mark, as prefix/mark.py has it
PROGRAM = "scripts/maximalcai.py"


def read_noted_clone(prefix: str) -> str:
    """The clone that the environment's mark names, or an empty text."""
    try:
        with open(os.path.join(prefix, MARK), encoding="utf-8") as file:
            noted = json.loads(file.read(LIMIT)).get("clone")
    except (OSError, ValueError, AttributeError):
        return ""
    if isinstance(noted, str):
        return noted
    return ""


def find_clone(prefix: str) -> str:
    """The folder of the clone. Ends the program with a message where there is none."""
    place = os.environ.get(VARIABLE, "")
    source = "$" + VARIABLE
    if not place:
        place = read_noted_clone(prefix)
        source = os.path.join(prefix, MARK)
    if place and os.path.isfile(os.path.join(place, PROGRAM)):
        return place
    looked = f"{source} names no clone"
    if place:
        looked = f"{place}, which {source} names, has no {PROGRAM}"
    sys.exit(
        f"maximalcai: the code of this environment was not found: {looked}. Say where the clone "
        f"is:\nexport {VARIABLE}=/path/to/the/clone\n"
        "If it is gone, clone the repository again. To have the new place noted, run there:\n"
        f"scripts/post_create.sh --prefix {prefix}"
    )


def main() -> None:
    if sys.version_info < (3, 9):
        sys.exit(
            "maximalcai: needs Python 3.9 or newer to start; enter the environment first"
        )
    # The link PREFIX, not the folder that it leads to.
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = os.path.join(find_clone(prefix), PROGRAM)
    os.execv(sys.executable, [sys.executable, "-I", program, prefix, *sys.argv[1:]])


if __name__ == "__main__":
    main()
