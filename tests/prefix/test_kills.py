"""Kills in every phase of the life cycle, with a mounted volume, own files and an edited file present each time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fixtures.commands import ROOT, apart, sh


def kill(folder: Path, kills: int) -> None:
    program = Path(__file__).with_name("kill_at_random.py")
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts:{program.parent}"}
    done = sh(
        *apart("--mount"),
        "python3",
        program,
        folder,
        str(kills),
        check=False,
        env=environ,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert f"{kills} kills: " in done.stdout, done.stdout


def test_six_kills_lose_nothing(folder: Path) -> None:
    kill(folder, 6)


@pytest.mark.long
def test_a_hundred_kills_lose_nothing(folder: Path) -> None:
    kill(folder, 100)
