"""Runs the set-up where one thing is other than on this machine: set_up_with.py CASE OPTIONS...

crash         the first thing that it asks of the machine ends in an error that nobody foresaw
volume=DIR    the pod's volume is this folder
python=3.19   the locked Python is this one, which is nowhere
"""

import sys
from pathlib import Path

from lockedenv.host import places


def crash() -> None:
    raise ZeroDivisionError("division by zero")


case = sys.argv.pop(1)
if case.startswith("volume="):
    # Before the modules are imported that take it from there.
    places.POD_VOLUME = Path(case.partition("=")[2])

from lockedenv.cli import setup  # noqa: E402
from lockedenv.cli.options import main  # noqa: E402
from lockedenv.spec.environment import Environment  # noqa: E402

if case == "crash":
    setup.refuse_other_machines = crash
if case.startswith("python="):
    Environment.python = case.partition("=")[2]
sys.exit(main(setup.parser(), setup.work))
