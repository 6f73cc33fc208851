"""Runs the verifier's --distributed on a rank after one thing was spoiled on it: spoiled_rank.py HOW OPTIONS.

The test says in HOW what to spoil; each function below is one way.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
VERIFIER = str(SCRIPTS / "verify_environment.py")
RANK = int(os.environ["RANK"])


def other_prefix() -> None:
    """Rank 1 runs in another prefix."""
    if RANK == 1:
        python = os.environ["OTHER_PYTHON"]
        os.execv(python, [python, VERIFIER, "--distributed"])


def killed() -> None:
    """Rank 1 dies in the collectives."""
    from lockedenv.provenance.ranks import collectives

    if RANK == 1:
        collectives.check_collectives = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def never_joins() -> None:
    """Rank 1 never gets to the meeting."""
    if RANK == 1:
        time.sleep(600)


def hang(*_: Any) -> None:
    """Until SIGTERM: torchrun would wait 30 s before it kills."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(600)


def hangs_in_collectives() -> None:
    """Rank 1 hangs before it joins the process group."""
    from lockedenv.provenance.ranks import run

    if RANK == 1:
        run.run_in_thread = hang


def hangs_in_bandwidth() -> None:
    """Rank 1 hangs instead of measuring."""
    from lockedenv.provenance.ranks import run

    if RANK == 1:
        run.RankCheck.measure = hang


def wrong_values() -> None:
    """all_reduce gives rank 1 twice the sum."""
    import torch.distributed as dist

    right = dist.all_reduce

    def twice(tensor: Any) -> None:
        right(tensor)
        tensor.mul_(2)

    if RANK == 1:
        dist.all_reduce = twice


def slow_node() -> None:
    """Each all_reduce of torchrun's node 1 takes a tenth of a second more."""
    import torch.distributed as dist

    right = dist.all_reduce

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.1)
        return right(*arguments, **options)

    if os.environ["GROUP_RANK"] == "1":
        dist.all_reduce = slow


def hanging_link() -> None:
    """Three ranks as three nodes; the link between the first two hangs."""
    import torch.distributed as dist
    from lockedenv.provenance.ranks import bandwidth

    os.environ["GROUP_RANK"] = str(RANK)
    bandwidth.SECONDS = 8.0
    right = dist.all_reduce

    def hanging(tensor: Any, group: Any = None) -> Any:
        if group is not None:
            time.sleep(600)
        return right(tensor)

    if RANK == 1:
        dist.all_reduce = hanging


def other_kernels() -> None:
    """Two steps in place of 50; rank 1 chooses other kernels of MKL."""
    from lockedenv.provenance.certificate import make

    make.make_certificate = partial(make.make_certificate, steps=2)
    if RANK == 1:
        os.environ["MKL_CBWR"] = "COMPATIBLE"


if __name__ == "__main__":
    sys.path.insert(0, str(SCRIPTS))
    globals()[sys.argv[1]]()
    sys.argv = [VERIFIER, "--distributed", *sys.argv[2:]]
    runpy.run_path(VERIFIER, run_name="__main__")
