"""A verdict is what the verifier wrote; an exit status of its own is none."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from lockedenv.install.verification import callers_variables, read_outcome
from lockedenv.verify.result import CheckOutcome


def written(folder: Path, status: int, *verdicts: str) -> Path:
    document = {
        "exit_status": status,
        "results": [{"verdict": verdict} for verdict in verdicts],
    }
    path = folder / "verdict.json"
    path.write_text(json.dumps(document))
    return path


def test_a_verdict_that_was_written_counts(tmp_path: Path) -> None:
    outcome = read_outcome(0, written(tmp_path, 0, "pass", "pass", "warn", "skip"))
    assert outcome.passed
    assert outcome.counts["pass"] == 2
    assert outcome.counts["warn"] == 1
    assert not read_outcome(1, written(tmp_path, 1, "pass", "fail")).passed


@pytest.mark.parametrize("verdict", CheckOutcome)
def test_every_verdict_of_the_verifier_is_counted(
    verdict: CheckOutcome, tmp_path: Path
) -> None:
    """One of them was not, so that a finished set-up ended in a KeyError."""
    counted = read_outcome(0, written(tmp_path, 0, verdict.value)).counts
    assert counted[verdict.value] == 1


def test_exit_status_zero_is_no_verdict(tmp_path: Path) -> None:
    """Where SIGCHLD was ignored, every child ended with 0."""
    outcome = read_outcome(0, tmp_path / "nothing.json")
    assert not outcome.passed
    assert "wrote no verdict (exit status 0)" in outcome.problem
    assert not read_outcome(0, written(tmp_path, 1, "pass", "fail")).passed
    assert not read_outcome(0, written(tmp_path, 0, "pass", "fail")).passed
    assert not read_outcome(1, written(tmp_path, 0, "pass")).passed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_verifier_that_was_killed_is_said_to_be(
    number: signal.Signals, tmp_path: Path
) -> None:
    """It was "exit 247" and "see the checks that failed above"."""
    outcome = read_outcome(-number, written(tmp_path, 0, "pass"))
    assert not outcome.passed
    assert outcome.problem.startswith(f"the verifier was killed by {number.name}")
    assert ("if memory ran out" in outcome.problem) == (number is signal.SIGKILL)


def test_the_verifier_has_the_callers_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/our/scripts")
    monkeypatch.setenv("MAXIMALCAI_PYTHONPATH", "/theirs")
    assert callers_variables()["PYTHONPATH"] == "/theirs"
    # A Python with these does not start: the verifier is told of them by the other name.
    monkeypatch.setenv("MAXIMALCAI_PYTHONHOME", "/theirs")
    assert "PYTHONHOME" not in callers_variables()
    assert callers_variables()["MAXIMALCAI_PYTHONHOME"] == "/theirs"
    monkeypatch.delenv("MAXIMALCAI_PYTHONPATH")
    assert "PYTHONPATH" not in callers_variables()
