"""The verifier, whose ranks halt before the collectives.

Each says in a folder, HALT_FOLDER, that it is there, and waits for a file `go` in it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["HALT_FOLDER"])
sys.dont_write_bytecode = True
sys.path.insert(0, os.environ["HALT_SCRIPTS"])

from lockedenv.cli.verify import main  # noqa: E402
from lockedenv.provenance.ranks import collectives  # noqa: E402

check_collectives = collectives.check_collectives


def halt_first(rank: int, world: int, device: str) -> object:
    (FOLDER / f"rank{rank}").touch()
    while not (FOLDER / "go").exists():
        time.sleep(0.05)
    return check_collectives(rank, world, device)


if __name__ == "__main__":
    collectives.check_collectives = halt_first
    sys.exit(main())
