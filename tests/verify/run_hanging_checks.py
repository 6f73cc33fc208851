"""A verifier whose checks are those that the command line names."""

import os
import sys
import types
from pathlib import Path

from lockedenv.cli.script import run_script
from lockedenv.verify import runner
from lockedenv.verify.checks import Check, Context
from lockedenv.verify.report import CheckReport


def run() -> int:
    runner.child_environment = lambda *about: dict(os.environ)
    installed = types.SimpleNamespace(
        python=Path(sys.executable), prefix=Path(sys.prefix)
    )
    checks = [Check(name, name, print, child=True) for name in sys.argv[1:]]
    return len(runner.run_checks(Context(installed, None), checks, CheckReport()))


if __name__ == "__main__":
    run_script("verifier", run)
