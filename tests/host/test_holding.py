"""A lock between runs: its holder is named, it is waited for, and none is ever stale."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ
from lockedenv.errors import Stop
from lockedenv.host.locking import holding

HOLDER = Path(__file__).with_name("hold_a_lock.py")


def test_a_lock_is_waited_for_names_its_holder_and_is_never_stale(
    tmp_path: Path,
) -> None:
    environ = clean_environ(PYTHONPATH=str(ROOT / "scripts"))
    command = [sys.executable, str(HOLDER), str(tmp_path / "lock")]
    holder = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    said = (
        rf"it is held by process {holder.pid} on \S+ since .*; wait for it, or stop it"
    )
    with pytest.raises(Stop, match=said):
        with holding(tmp_path / "lock", "it", print, patience=0.3):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with holding(tmp_path / "lock", "it", print, patience=0.3):
        pass


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    """A pipe of that name ended in "File or stream is not seekable", without a name."""
    lock = tmp_path / "lock"
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to("/dev/zero")
    with pytest.raises(
        Stop, match=f"{lock} is not a regular file, and cannot be locked; remove"
    ):
        with holding(lock, "it", print):
            pass
