"""Versions as numbers that can be compared."""

from __future__ import annotations

import re


def version_tuple(version: str) -> tuple[int, ...]:
    """The numbers in a version: (1, 2, 3, 100) for "1.2.3+cu100"; of a longer
    one its first 18 digits.
    """
    return tuple(int(part[:18]) for part in re.findall(r"\d+", version))
