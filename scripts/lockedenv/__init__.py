"""The rules and the code behind the scripts. docs/ARCHITECTURE.md shows the rooms.

Runs on any Python >= 3.9 with the standard library alone; only lockedenv.lock and the bodies
of the checks need more.
"""

from pathlib import Path

VERSION = "2.0"
ROOT = Path(__file__).resolve().parent.parent.parent
