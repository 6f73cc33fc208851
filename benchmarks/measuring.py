"""What the benchmarks share: timing commands, contenders that run in turns, tables in Markdown."""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

from lockedenv.host.disks import size_text
from lockedenv.host.limits import cpu_limit, read_memory

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Timing:
    """How long a command took, in seconds, and what it printed."""

    seconds: float
    output: str


Contender = Callable[[], float]


def time_command(*command: Any) -> Timing:
    """Runs a command, whatever its exit status."""
    started = time.monotonic()
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Timing(time.monotonic() - started, done.stdout)


def remove(*paths: Path) -> None:
    """Removes folders of the benchmark's own; what is not there is no error."""
    for path in paths:
        subprocess.run(["rm", "-rf", path], check=True)


def measure(
    title: str, contenders: Mapping[str, Contender], rounds: int
) -> dict[str, float]:
    """Runs the contenders in turns; the median seconds of each, by name."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds = run()
            times[name].append(seconds)
            print(f"{title}: {name}: {seconds:.2f} s", file=sys.stderr, flush=True)
    medians = {}
    for name, values in times.items():
        medians[name] = statistics.median(values)
    return medians


def format_medians(title: str, medians: Mapping[str, float], rounds: int) -> str:
    """A Markdown table of medians, and how many times the first one's each is."""
    base = next(iter(medians.values()))
    lines = [
        f"### {title}",
        "",
        f"| | median of {rounds}, s | ratio |",
        "|---|---|---|",
    ]
    for name, median in medians.items():
        lines.append(f"| {name} | {median:.2f} | {median / base:.2f} |")
    return "\n".join([*lines, ""])


def compare(title: str, contenders: Mapping[str, Contender], rounds: int) -> str:
    """Measures the contenders; a Markdown table."""
    return format_medians(title, measure(title, contenders, rounds), rounds)


def describe_machine() -> str:
    """One line: what the figures were measured on."""
    model = platform.machine()
    match = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    if match:
        model = match[1]
    memory = size_text(read_memory().total)
    system = (
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    day = time.strftime("%Y-%m-%d")
    return (
        f"{cpu_limit():g} CPUs ({model}), {memory} of memory, no GPU, {system}, {day}"
    )
