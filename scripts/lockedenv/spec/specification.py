"""Whether a lock is of the present specification.

Neither conda-lock nor a YAML library is needed to tell.
Each lock names, in its header, the sha256 of the specification that it was written for.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from lockedenv import ROOT

SPEC = "environment.yml"
VIRTUAL = "locks/virtual-packages.yml"
FLASH_ASKED = "locks/flash-attn.in"


def find_virtual_packages(folder: Path) -> Path:
    """The file that says what the solver may assume of a machine.

    The environment's own, or the repository's.
    """
    own = folder / VIRTUAL
    return own if own.exists() else ROOT / VIRTUAL


def specification_digest(folder: Path) -> str:
    """The sha256 of what the specification in a folder says.

    Raises OSError for a file that cannot be read.

    Comments, blank lines and spaces at the ends of lines do not count; flash-attn.in may be
    missing.
    """
    lines = meaningful_lines(_read_text(folder / SPEC))
    lines += meaningful_lines(_read_text(find_virtual_packages(folder)))
    flash = folder / FLASH_ASKED
    if (
        flash.exists()
    ):  # what stands behind a # there says what the prebuilt wheel needs
        for line in _read_text(flash).splitlines():
            if line.strip() and not line.startswith("#"):
                lines.append(line.rstrip())
    text = "".join(f"{line}\n" for line in lines)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _read_text(path: Path) -> str:
    """The text of a file; what is not UTF-8 has a digest too, and lock.sh refuses it."""
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def meaningful_lines(text: str) -> list[str]:
    """The lines of a YAML file without comments, spaces at their ends and blank lines."""
    lines = []
    for line in text.splitlines():
        kept = strip_comment(line).rstrip()
        if kept:
            lines.append(kept)
    return lines


def strip_comment(line: str) -> str:
    """A line of YAML up to its comment: a # at its start or behind a space, outside of quotes."""
    quote = ""
    for position, character in enumerate(line):
        before = line[position - 1] if position else " "
        if quote:
            if character == quote:
                quote = ""
        elif character in "'\"" and before in " [{,:-":
            quote = character
        elif character == "#" and before.isspace():
            return line[:position]
    return line
