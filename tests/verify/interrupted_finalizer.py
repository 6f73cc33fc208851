"""A program that is interrupted where Python drops what is raised: in a finalizer."""

import os
import signal

from lockedenv.cli.script import run_script
from lockedenv.host.process import ask


class Late:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def work() -> int:
    late = Late()
    del late
    print(ask(["sleep", "600"]))
    return 0


run_script("program", work)
