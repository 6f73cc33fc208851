"""Prints docs/VARIABLES.md from the table that the set-up uses.

PYTHONPATH=scripts python3 -m lockedenv.cli.variables_page > docs/VARIABLES.md
"""

from __future__ import annotations

from lockedenv.host.launchers import FAMILIES
from lockedenv.spec.variables import FILES, RULES, Treatment

HEAD = """\
# Variables and files of the machine

Written by `python3 -m lockedenv.cli.variables_page` from the table that the code uses. The set-up
decides about each variable before it starts pip, uv, micromamba, curl or Python. The first row that
fits a name decides; a star stands for any ending. A variable that is in no row is passed on.
"""
TITLES = {
    Treatment.CLEARED: "cleared",
    Treatment.KEPT: "kept",
    Treatment.SET: "set by the set-up",
    Treatment.REFUSED: "refused or warned of",
}
FILE_TITLES = {
    Treatment.CLEARED: "not read",
    Treatment.KEPT: "read",
    Treatment.SET: "written by the set-up",
    Treatment.REFUSED: "warned of",
}


def make_page() -> str:
    """The page, in Markdown."""
    lines = [HEAD, "| variable | read by | treatment | why |", "|---|---|---|---|"]
    for rule in RULES:
        lines.append(
            f"| `{rule.pattern}` | {rule.readers} | {TITLES[rule.treatment]} | {rule.why} |"
        )
    lines += ["", "Files, of which the same tools read settings:", ""]
    lines += ["| file | read by | treatment | why |", "|---|---|---|---|"]
    for rule in FILES:
        lines.append(
            f"| `{rule.pattern}` | {rule.readers} | {FILE_TITLES[rule.treatment]} | {rule.why} |"
        )
    lines.append("")
    lines.append(
        "The verifier's checks run without the variables of launchers and clusters:"
    )
    lines.append(", ".join(f"`{family}*`" for family in FAMILIES) + ".")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(make_page(), end="")
