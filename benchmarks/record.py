# /// script
# requires-python = ">=3.11"
# dependencies = ["rich==15.0.0"]
# ///
"""Runs the set-up and a quick second run under a pseudo-terminal, and draws what they printed.

    uv run --script benchmarks/record.py docs/recording.svg [OPTIONS OF THE SET-UP]

Of a long run the middle is left out, and the picture says so. Nothing else is changed.
"""

import io
import os
import pty
import re
import shlex
import sys

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 120
RUNS = (
    ([], 17, 15),
    (["--level", "quick"], 17, 6),
)  # further options; lines shown of the start and of the end
# Without the fonts that rich would fetch from elsewhere.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S)


def run(words: list[str]) -> tuple[list[str], int]:
    """The lines that a command leaves on a terminal of WIDTH columns, and its exit status."""
    said = b""

    def read(fd: int) -> bytes:
        nonlocal said
        new = os.read(fd, 65536)
        said += new
        return new

    status = os.waitstatus_to_exitcode(pty.spawn(words, read))
    lines = said.decode(errors="replace").replace("\r\n", "\n").rstrip("\n").split("\n")
    return [
        line.rpartition("\r")[2].replace("\033[K", "") for line in lines
    ], status  # progress is overwritten, as on a terminal


def main() -> int:
    target, *options = sys.argv[1:]
    os.environ.update(COLUMNS=str(WIDTH), TERM="xterm-256color")
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="standard"
    )
    status = 0
    for more, head, tail in RUNS:
        words = ["scripts/setup_runpod_environment.sh", *options, *more]
        console.print(Text(f"$ {shlex.join(words)}", style="bold"))
        lines, failed = run(words)
        if len(lines) > head + tail + 1:
            lines[head:-tail] = [f"\033[2m[{len(lines) - head - tail} lines left out]\033[0m"]
        for line in lines:
            console.print(Text.from_ansi(line), soft_wrap=False)
        status = status or failed
    svg = console.export_svg(title="maximalcai", theme=MONOKAI, code_format=FORMAT, unique_id="run")
    with open(target, "w") as out:
        out.write(svg)
    return status


if __name__ == "__main__":
    sys.exit(main())
