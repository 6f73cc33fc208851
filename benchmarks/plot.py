# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib==3.11.2"]
# ///
"""Draws the set-up's time by step, from run.py's JSON on standard input: uv run --script benchmarks/plot.py FILE.svg"""

import json
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "setup-steps"
from matplotlib import pyplot  # noqa: E402

runs = json.load(sys.stdin)
figure, axes = pyplot.subplots(figsize=(8, 2.4), layout="constrained")
titles = list(dict.fromkeys(title for steps in runs.values() for title, _ in steps))
for row, steps in enumerate(runs.values()):
    left = 0.0
    for title, seconds in steps:
        axes.barh(row, seconds, left=left, color=f"C{titles.index(title)}")
        left += seconds
    axes.text(left, row, f"  {left:.1f} s", va="center")
for title in titles:
    axes.barh(0, 0, color=f"C{titles.index(title)}", label=title)
axes.set_yticks(range(len(runs)), list(runs))
axes.invert_yaxis()
axes.set_xlabel("seconds")
axes.set_xmargin(0.12)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(ncols=3, fontsize="small", frameon=False, loc="lower right")
figure.savefig(sys.argv[1], metadata={"Date": None})
