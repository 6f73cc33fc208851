"""Versions as numbers that can be compared."""

from __future__ import annotations

import re


def version_tuple(version: str) -> tuple[int, ...]:
    """The numbers in a version: (2, 5, 1, 124) for "2.5.1+cu124"."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
