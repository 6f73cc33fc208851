"""What the set-up shows: one line a step, progress on that line of a terminal, details on demand."""

from __future__ import annotations

import io
from typing import Any

import pytest
from lockedenv.cli import output
from lockedenv.cli.output import FIRST_PAUSE, Steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that time.monotonic gives."""
    now = [100.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    return now


def work(steps: Steps, clock: list[float], seconds: int = 2) -> None:
    """A step that lasts."""
    with steps.step("Fetch"):
        steps.note("a detail")
        for second in range(seconds):
            clock[0] += 1
            steps.progress(lambda: f"{second + 1} of {seconds}")
        steps.outcome("2 files")
        steps.outcome("hashes right")


def test_a_step_is_one_line(clock: list[float]) -> None:
    out = io.StringIO()
    work(Steps(3, False, out=out), clock)
    assert out.getvalue() == f"[1/3] {'Fetch':<22} 2 files; hashes right (2.0 s)\n"


def test_the_title_is_there_while_the_step_runs(clock: list[float]) -> None:
    out = io.StringIO()
    with Steps(3, False, out=out).step("Fetch"):
        assert out.getvalue().rstrip() == "[1/3] Fetch"


def test_a_step_that_lasts_says_so_in_growing_pauses(clock: list[float]) -> None:
    out = io.StringIO()
    work(Steps(3, False, out=out), clock, 3600)
    lines = out.getvalue().splitlines()
    assert lines[:4] == [
        f"[1/3] {'Fetch':<22}",
        "      15 of 3600",
        "      45 of 3600",
        "      105 of 3600",
    ]
    assert len(lines) < 15
    assert lines[-1].startswith("[1/3] Fetch")


def test_on_a_terminal_there_is_one_line_at_a_time(clock: list[float]) -> None:
    out = Terminal()
    work(Steps(3, False, out=out), clock, 40)
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.count("\r\033[K[1/3] Fetch") > 40
    assert text.endswith(
        f"\r\033[K[1/3] {'Fetch':<22} 2 files; hashes right (40.0 s)\n"
    )


def test_details_are_lines_where_they_are_wanted(clock: list[float]) -> None:
    out = io.StringIO()
    work(Steps(3, False, verbose=True, out=out), clock)
    assert out.getvalue().splitlines() == [
        "[1/3] Fetch",
        "      a detail",
        "      2 files",
        "      hashes right",
        "      2.0 s",
    ]


def test_quiet_shows_nothing_of_it(clock: list[float]) -> None:
    out = Terminal()
    steps = Steps(3, True, verbose=True, out=out)
    work(steps, clock, int(FIRST_PAUSE) + 1)
    assert out.getvalue() == ""
    steps.show("verified")
    assert out.getvalue() == "verified\n"


def test_an_error_begins_on_a_line_of_its_own(clock: list[float], capsys: Any) -> None:
    out = io.StringIO()
    with pytest.raises(OSError):
        with Steps(3, False, out=out).step("Fetch"):
            raise OSError
    assert out.getvalue().splitlines() == [f"[1/3] {'Fetch':<22}"]
    with Steps(3, False, out=out).step("Fetch") as _:
        pass


def test_a_secret_is_hidden(clock: list[float]) -> None:
    out = io.StringIO()
    steps = Steps(3, False, out=out)
    with steps.step("Fetch"):
        steps.outcome("from https://user:s3cret@index.example/")
    assert "s3cret" not in out.getvalue()
