"""Did you mean ...? For a name that was given and is not known."""

from __future__ import annotations

import difflib
from typing import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message, `; did you mean X?`, with the closest known
    name; empty if none is close.
    """
    close = difflib.get_close_matches(given, list(known), n=1)
    if not close:
        return ""
    return f"; did you mean {close[0]}?"
