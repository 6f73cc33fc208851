"""Holds a lock until it is killed: hold_a_lock.py FILE."""

import sys
import time
from pathlib import Path

from lockedenv.host.locking import holding

with holding(Path(sys.argv[1]), "it", print):
    print("held", flush=True)
    time.sleep(600)
