# /// script
# requires-python = ">=3.11"
# dependencies = ["rich==15.0.0"]
# ///
"""Runs the set-up and a quick second run under a pseudo-terminal, and draws what they printed.

    uv run --script benchmarks/record.py docs/recording.svg [OPTIONS OF THE SET-UP]

Of a long run the middle is left out, and the picture says so. Nothing else is changed.
"""

import io
import math
import os
import pty
import re
import shlex
import sys
from dataclasses import dataclass

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 120
ROWS = 25  # that a page shows without scrolling
# Without the fonts that rich would fetch from elsewhere.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S)
SCRIPT = "scripts/setup_runpod_environment.sh"


@dataclass(frozen=True)
class Take:
    """One run to record: further options, and how many lines of its start
    and of its end are shown.
    """

    options: tuple[str, ...]
    head: int
    tail: int


TAKES = (Take((), head=8, tail=7), Take(("--level", "quick"), head=3, tail=4))


@dataclass(frozen=True)
class Recorded:
    """The lines that a command left on a terminal of WIDTH columns, and its exit status."""

    lines: list[str]
    status: int


def record(words: list[str]) -> Recorded:
    """Runs a command under a pseudo-terminal."""
    blocks = []

    def read(descriptor: int) -> bytes:
        block = os.read(descriptor, 65536)
        blocks.append(block)
        return block

    status = os.waitstatus_to_exitcode(pty.spawn(words, read))
    text = b"".join(blocks).decode(errors="replace").replace("\r\n", "\n").rstrip("\n")
    lines = []
    for line in text.split("\n"):
        # Progress is overwritten, as on a terminal.
        lines.append(line.rpartition("\r")[2].replace("\033[K", ""))
    return Recorded(lines, status)


def shorten(lines: list[str], take: Take) -> list[str]:
    """Leaves out the middle, and says so."""
    left_out = len(lines) - take.head - take.tail
    if left_out <= 1:
        return lines
    note = f"\033[2m[{left_out} lines left out]\033[0m"
    return [*lines[: take.head], note, *lines[-take.tail :]]


def count_rows(lines: list[str]) -> int:
    """The rows of a picture that these lines take; a long line takes more than one."""
    rows = 0
    for line in lines:
        rows += max(1, math.ceil(Text.from_ansi(line).cell_len / WIDTH))
    return rows


def main() -> int:
    target, *options = sys.argv[1:]
    os.environ.update(COLUMNS=str(WIDTH), TERM="xterm-256color")
    console = Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard",
    )
    status = 0
    rows = 0
    for take in TAKES:
        words = [SCRIPT, *options, *take.options]
        recorded = record(words)
        lines = shorten(recorded.lines, take)
        console.print(Text(f"$ {shlex.join(words)}", style="bold"))
        for line in lines:
            console.print(Text.from_ansi(line), soft_wrap=False)
        rows += 1 + count_rows(lines)
        status = max(status, recorded.status)
    if rows > ROWS:
        print(f"{rows} rows: more than the {ROWS} that a page shows", file=sys.stderr)
    svg = console.export_svg(
        title="maximalcai", theme=MONOKAI, code_format=FORMAT, unique_id="run"
    )
    with open(target, "w") as file:
        file.write(svg)
    return status


if __name__ == "__main__":
    sys.exit(main())
