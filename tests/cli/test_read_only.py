"""A finished environment on a read-only disk can be verified again; nothing is written there."""

from __future__ import annotations

from fixtures.commands import VERIFIED
from fixtures.machine import Machine


def test_a_finished_environment_on_a_read_only_disk_is_verified(
    machine: Machine, installed: None
) -> None:
    """It was "choose another --prefix"."""
    script = "mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && cd {folder}"
    done = machine.setup_mounted(script, "--flash-attn", "none")
    assert done.returncode == 0, done.stdout
    assert VERIFIED in done.stdout, done.stdout
    assert (
        "the environment is on a read-only disk: nothing is noted in it" in done.stdout
    )
