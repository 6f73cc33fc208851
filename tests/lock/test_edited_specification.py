"""The set-up says in one line that environment.yml was edited after it was locked; conda-lock is not needed for that."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.lock_damage import copy_locks, replaced
from lockedenv.cli.output import Steps
from lockedenv.cli.setup import say_if_edited
from lockedenv.spec.environment import Environment


def test_an_edited_specification_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_locks(tmp_path)
    env = Environment(tmp_path)
    say_if_edited(env, Steps(1, False))
    assert capsys.readouterr().out == ""
    replaced("environment.yml", "peft>=0.6.0", "peft>=0.7.0")(tmp_path)
    say_if_edited(env, Steps(1, False))
    [line] = capsys.readouterr().out.splitlines()
    assert "environment.yml was edited after it was locked" in line
    assert line.endswith(f"scripts/lock.sh --environment {tmp_path}")


def test_locks_without_a_specification_are_not_called_old(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in an image that has the locks alone."""
    copy_locks(tmp_path)
    (tmp_path / "environment.yml").unlink()
    say_if_edited(Environment(tmp_path), Steps(1, False))
    assert capsys.readouterr().out == ""
