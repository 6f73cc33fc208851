#!/usr/bin/env python3
"""Proves that the environment of the Python that runs this is the locked one, and
that it works on this GPU.

    PREFIX/bin/python scripts/verify_environment.py [--level quick|full]

Starts with any Python >= 3.9; needs nothing installed to say what is missing. --help has the
options, --list the checks.
"""

import os
import sys
from pathlib import Path

if sys.version_info < (3, 9):
    sys.exit(
        "verify_environment.py: needs Python 3.9 or newer to start; run it with the environment's "
        "own python"
    )
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

if __name__ == "__main__":
    from lockedenv.cli.verify import main

    try:
        status = main()
    except SystemExit as error:  # --help, and wrong usage
        status = int(error.code or 0)
    if sys.flags.inspect:
        # With PYTHONINSPECT, Python would wait for input now, and end with another status.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
