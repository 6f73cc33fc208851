#!/usr/bin/env python3
"""The figures of this project, as ratios within one run: what is compared runs in
turns on the same machine.

    python3 benchmarks/run.py                  all of them, into benchmarks/RESULTS.md and the plot
    python3 benchmarks/run.py verifier fetch   some, printed; --prefix PREFIX names the environment

    setup      the whole set-up (PyPI backend) against uv alone and the pip line that it replaces:
               a first pod, a later pod, a second run; it needs root, 30 GB of disk and 12 GB of
               memory, and fetches 10 GB a round
    verifier   quick level against `pip check` and torch's collect_env; the full level against
               version 1.0's
    manifest   writing the session manifest
    fetch      the fetcher against curl one file after another, and a second run
    meeting    the meeting of 64 to 1,024 ranks that --distributed begins with

Standard library alone. The plot is drawn by plot.py, which uv runs, from
benchmarks/setup-times.json: `uv run --script benchmarks/plot.py` draws it again. Without a GPU,
flash-attn is in none of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scripts"), str(HERE.parent / "tests")]

from fetching import fetch_files  # noqa: E402
from measuring import describe_machine  # noqa: E402
from meeting import compare_meetings  # noqa: E402
from setting_up import set_up  # noqa: E402
from verifying import verify, write_manifest  # noqa: E402

RESULTS = HERE / "RESULTS.md"
TIMES = HERE / "setup-times.json"
PLOT = HERE / "plot.py"
HEAD = """# Results

Written by `python3 benchmarks/run.py`, which repeats them: medians, and ratios within one run.
"""
PICTURE = "![the time of a first pod, a later pod and a second run, by step](setup-steps.svg)\n"
WITHOUT_PREFIX = ("setup", "fetch")


def make_sections(
    folder: Path, prefix: Path, rounds: int
) -> dict[str, Callable[[], str]]:
    """Name -> what measures it and gives its part of the results."""
    return {
        "setup": lambda: set_up(folder, prefix, rounds, TIMES),
        "verifier": lambda: verify(prefix, rounds),
        "manifest": lambda: write_manifest(prefix, rounds),
        "fetch": lambda: fetch_files(rounds),
        "meeting": lambda: compare_meetings(prefix, rounds),
    }


def draw(prefix: Path) -> None:
    """Draws the plot with the environment's uv."""
    subprocess.run([prefix / "bin/uv", "run", "--quiet", "--script", PLOT], check=True)


def make_parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; none: all"
    )
    parser.add_argument(
        "--prefix", type=Path, help="a finished environment, where `setup` is left out"
    )
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        folder = Path(name)
        names = list(make_sections(folder, folder, 0))
        parser = make_parser(names)
        args = parser.parse_args()
        unknown = sorted(set(args.what) - set(names))
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}")
        wanted = args.what
        if not wanted:
            wanted = names
        if (
            not args.prefix
            and "setup" not in wanted
            and set(wanted) - set(WITHOUT_PREFIX)
        ):
            parser.error("--prefix names the environment to measure in")
        prefix = folder / "env"
        if args.prefix and "setup" not in wanted:
            prefix = args.prefix
        sections = make_sections(folder, prefix, args.rounds)
        texts = [f"{describe_machine()}.\n"]
        for section in wanted:
            texts.append(sections[section]())
            if section == "setup":
                draw(prefix)
    if args.what:
        print("\n".join(texts))
    else:
        RESULTS.write_text("\n".join([HEAD, texts[0], PICTURE, *texts[1:]]))


if __name__ == "__main__":
    main()
