"""The figures of the benchmarks: the steps of a set-up by its output, the median run, what the plot shows."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from fixtures.commands import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import plot  # noqa: E402
import setting_up  # noqa: E402
from setting_up import Printed, Run, Situation, Step  # noqa: E402

# As the set-up prints them where there is no terminal; the last step lasts.
PARTS = [
    Printed("[1/3] Look at the machine   ", 1.0),
    Printed(" default, pip backend (0.1 s)\n", 1.5),
    Printed("[2/3] Install the wheels    ", 2.0),
    Printed(" 75 wheels (16.0 s)\n[3/3] Verify, quick level   ", 18.0),
    Printed("\n      PASS  packages, 15 s\n", 33.0),
    Printed("[3/3] Verify, quick level    40 checks (20.0 s)\nverified\n", 38.0),
]


def test_a_step_lasts_from_its_title_to_the_next_one() -> None:
    assert setting_up.divide_into_steps(PARTS, 0.5, 40.0).steps == (
        Step("start", 0.5),
        Step("look at the machine", 1.0),
        Step("fetch and install the packages", 16.0),
        Step("verify the environment", 22.0),
    )


def test_a_program_without_steps_is_one() -> None:
    assert setting_up.divide_into_steps([], 0.5, 2.0).steps == (Step("start", 1.5),)


def test_the_title_of_a_step_is_seen_before_its_line_ends() -> None:
    script = "printf '[1/2] Fetch uv   '; sleep 0.3; printf 'done\\n[2/2] flash-attn  '; sleep 0.1"
    timed = setting_up.time_steps("bash", "-c", script)
    names = [step.name for step in timed.run.steps]
    assert names == ["start", "fetch the installer", "flash-attn"]
    assert "done" in timed.output


def one_step(seconds: float) -> Run:
    return Run((Step("fetch and install the packages", seconds),))


@pytest.fixture
def bars() -> list[dict[str, Any]]:
    """Three situations, three contenders, three rounds."""
    situations = []
    for name, factor in (("first pod", 1.0), ("later pod", 0.5), ("second run", 0.01)):
        situation = Situation(name)
        for seconds in (30.0, 20.0, 25.0):
            install = Step("fetch and install the packages", seconds * factor)
            verify = Step("verify the environment", 2.0)
            look = Step("look at the machine", 0.1)
            situation.add(setting_up.OURS, Run((look, install, verify)))
            situation.add(setting_up.UV, one_step(seconds * factor + 1))
            situation.add(setting_up.PIP, one_step(3 * seconds * factor))
        situations.append(situation)
    return setting_up.plot_data(situations)


def test_the_plot_has_every_contender_in_every_situation(
    bars: list[dict[str, Any]],
) -> None:
    shown = [(bar["situation"], plot.short_name(bar["contender"])) for bar in bars]
    names = ["this set-up, verified", "uv alone, same wheels", "pip install torch ..."]
    wanted = []
    for situation in ("first pod", "later pod", "second run"):
        wanted += [(situation, name) for name in names]
    assert shown == wanted
    assert [plot.total(bar) for bar in bars[:3]] == [
        27.1,
        26.0,
        75.0,
    ], "the median of the runs"


def test_a_short_step_has_no_colour_of_its_own(bars: list[dict[str, Any]]) -> None:
    colours = plot.choose_colours(bars)
    named = ["fetch and install the packages", "verify the environment", plot.OTHER]
    assert list(colours) == named
    assert len(set(colours.values())) == 3
