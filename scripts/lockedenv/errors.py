"""The error that ends a script with one message, and the words for what the
operating system refuses.
"""

from __future__ import annotations

import errno

FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK_TEXT = (
    "No space left on device. Free some disk, or name other places with --prefix, --cache and "
    "TMPDIR, and run again: what was downloaded is kept"
)


class Stop(Exception):
    """Ends a script with one clear message: what is wrong, where, and what to do."""

    exit_status = 1


class UsageError(Stop):
    """The command was called with options or names that cannot be meant; nothing was done."""

    exit_status = 2


def disk_text(error: OSError) -> str:
    """An operating system's error for people: which file, what, and what
    to do if the disk is full.
    """
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL_DISK_ERRNOS:
        return where + FULL_DISK_TEXT
    return f"{where}{error.strerror or error}; mend it and run again"


def printable(text: str) -> str:
    """A text from outside, safe to print on one line: what is not printable is escaped."""
    if text.isprintable():
        return text
    shown = []
    for character in text:
        if character.isprintable():
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape").decode("ascii"))
    return "".join(shown)
