"""Whole numbers in texts of others: a variable, nvidia-smi's answer, a RECORD."""

from __future__ import annotations

import re


def parse_whole(text: str) -> int | None:
    """The number of a text of 1 to 18 digits; None for any other text.

    `isdigit` holds for "²" too, for which `int` raises ValueError, as it does for 5,000 digits.
    """
    if re.fullmatch("[0-9]{1,18}", text):
        return int(text)
    return None
