"""The life of a prefix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict


def stamp_path(prefix: Path) -> Path:
    return prefix / "maximalcai.json"


def read_stamp(prefix: Path) -> Dict[str, str]:
    """What a finished prefix says of itself: backend, locks, finished. Empty if it is not finished."""
    try:
        stamp = json.loads(stamp_path(prefix).read_text())
        return stamp if isinstance(stamp, dict) else {}
    except (OSError, ValueError):
        return {}
