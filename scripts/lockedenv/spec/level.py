"""The levels of a verification, from the least to the most that is looked at.

The command line, the mark and the checks all take them from here.
"""

from __future__ import annotations

from enum import Enum


class Level(str, Enum):
    """How much is verified. The values stand on the command line, in --json and in the mark.

    QUICK: what the records and the files' sizes and times say. FULL: all of that, each file's hash,
    and whether the packages work here. A level looks at all that the ones before it look at.
    """

    QUICK = "quick"
    FULL = "full"

    def __str__(self) -> str:
        return str(self.value)

    def includes(self, other: Level) -> bool:
        """Whether this level looks at all that `other` looks at."""
        levels = list(Level)
        return levels.index(other) <= levels.index(self)


USUAL = Level.FULL  # where no level is asked for
LEVEL_NAMES = tuple(level.value for level in Level)
