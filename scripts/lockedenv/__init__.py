"""What the entry points in scripts/ share: the locks as data, what a prefix holds, and the difference.

Runs on any Python >= 3.9 with the standard library alone; only lockedenv.lock and the bodies of the checks need more.
"""

from pathlib import Path

VERSION = "2.0"
ROOT = Path(__file__).resolve().parent.parent.parent
