"""Starts `sleep 600` by process.started, says its process id, and waits."""

import subprocess

from lockedenv.host.process import started

with started(["sleep", "600"], stdout=subprocess.DEVNULL) as process:
    print(process.pid, flush=True)
    process.wait()
