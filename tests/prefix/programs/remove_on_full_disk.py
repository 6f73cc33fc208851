"""Removes an environment on a disk that is full: remove_on_full_disk.py FOLDER. To be started where it may mount."""

import subprocess
import sys
from pathlib import Path

from lockedenv.prefix.lifecycle import hold
from lockedenv.prefix.place import find_prefix
from lockedenv.prefix.removal import remove_environment
from small_environment import install

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
prefix = install(find_prefix(disk / "env"))
try:
    with open(disk / "results.bin", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    print("full")
with hold(prefix, print):
    remove_environment(prefix, prefix.path)
print("left" if prefix.path.exists() else "removed")
