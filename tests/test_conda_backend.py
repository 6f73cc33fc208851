"""The conda backend, end to end, on the local channel."""

from __future__ import annotations

from conftest import CondaEnvironment


def test_one_command_ends_in_a_verified_conda_environment(conda_environment: CondaEnvironment) -> None:
    said = conda_environment.said
    print(said)
    assert "[2/6] Fetch the archives" in said and "hashes right" in said
    assert "verified: every check that ran has passed" in said
    assert "micromamba activate" in said
    done = conda_environment.verify("--level", "quick")
    assert done.returncode == 0, done.stdout
