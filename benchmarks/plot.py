# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib==3.11.2"]
# ///
"""Draws what run.py measured of the set-up, readable on a light and on a dark page.

    uv run --script benchmarks/plot.py [setup-times.json [setup-steps.svg]]

A group of bars for each situation: our set-up by steps, uv alone and the
pip line beside each other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
# Grey that can be read on white and on GitHub's dark page (contrast over 4.5 on both).
TEXT = "#7d8590"
# Okabe and Ito's colours, which tell steps apart for colour-blind readers and on both pages.
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00")
SHORTEST = 0.02  # of the longest bar: a step that is shorter in every bar has no colour of its own
OTHER = "other steps"
NAMES = {
    "setup_runpod_environment.sh": "this set-up, verified",
    "uv alone": "uv alone, same wheels",
    "pip install": "pip install torch ...",
}
BAR = 0.8
GAP = 0.7  # between two groups, in bars


def main(times: Path, target: Path) -> None:
    # Here, because the tests of what is drawn have no matplotlib.
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("svg")
    bars = json.loads(times.read_text())
    colours = choose_colours(bars)
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "setup-steps",
            "font.size": 10,
            "text.color": TEXT,
            "axes.edgecolor": TEXT,
            "axes.labelcolor": TEXT,
            "xtick.color": TEXT,
            "ytick.color": TEXT,
        }
    )
    figure, axes = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
    labels = []
    places = []
    place = 0.0
    situation = None
    for bar in bars:
        if bar["situation"] != situation:
            situation = bar["situation"]
            place += GAP
            axes.text(0, place - BAR / 2, situation, weight="bold", va="center")
            place += GAP / 2
        draw_bar(axes, place, bar, colours)
        labels.append(short_name(bar["contender"]))
        places.append(place)
        place += 1
    for name, colour in colours.items():
        axes.barh(0, 0, color=colour, label=name)
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_xmargin(0.1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", labelcolor=TEXT)
    figure.savefig(target, transparent=True, metadata={"Date": None})


def total(bar: dict[str, Any]) -> float:
    """The seconds of a whole bar."""
    return sum(step["seconds"] for step in bar["steps"])


def choose_colours(bars: list[dict[str, Any]]) -> dict[str, str]:
    """Step -> colour, in the order in which the steps come; short ones share one."""
    longest = 0.0
    for bar in bars:
        longest = max(longest, total(bar))
    names: dict[str, None] = {}
    for bar in bars:
        for step in bar["steps"]:
            if step["seconds"] >= SHORTEST * longest:
                names[step["name"]] = None
    colours = dict(zip(names, COLOURS))
    colours[OTHER] = TEXT
    return colours


def draw_bar(
    axes: Any, place: float, bar: dict[str, Any], colours: dict[str, str]
) -> None:
    """One contender: its steps one after another, and its time behind them."""
    left = 0.0
    for step in bar["steps"]:
        colour = colours.get(step["name"], colours[OTHER])
        axes.barh(place, step["seconds"], left=left, height=BAR, color=colour)
        left += step["seconds"]
    axes.text(left, place, f"  {left:.1f} s", va="center")


def short_name(contender: str) -> str:
    """A name that fits beside a bar."""
    for start, name in NAMES.items():
        if contender.startswith(start):
            return name
    return contender


if __name__ == "__main__":
    defaults = [FOLDER / "setup-times.json", FOLDER / "setup-steps.svg"]
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*given, *defaults[len(given) :])
