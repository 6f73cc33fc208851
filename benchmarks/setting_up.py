"""The set-up beside uv alone and the pip line that it replaces: a first pod, a
later pod, a second run.

A first pod has empty caches. A later pod has a volume with every file, and nothing on its own
disk: a tmpfs in a mount namespace, for which this needs root and 12 GB of memory. A second run
finds a finished environment.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Iterable, Sequence

from lockedenv.backends import uv_program
from lockedenv.cli.output import Steps
from lockedenv.spec import locks
from measuring import ROOT, format_medians, remove, size_text, time_command

SCRIPT = ROOT / "scripts/setup_runpod_environment.sh"
REQUIREMENTS = ROOT / "requirements.txt"
PYTHON = "3.11"
PIP_LINE = (
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "peft",
    "scipy",
    "numpy",
)
TMPFS_SIZE = "12g"
# What the first word of a step's title means, for a reader who does not know the set-up.
STEP_WORDS = {
    "Look": "look at the machine",
    "Fetch": "fetch the installer",
    "Create": "create the environment",
    "Install": "fetch and install the packages",
    "flash-attn": "flash-attn",
    "Verify,": "verify the environment",
}
START = "start"
OURS = "setup_runpod_environment.sh"
UV = "uv alone, the same wheels"
PIP = f"pip install {' '.join(PIP_LINE)}"
FIRST_POD = "first pod: empty caches"
LATER_POD = "later pod: everything on the volume"
SECOND_RUN = "second run: all is there"


@dataclass(frozen=True)
class Step:
    """One step of a run, in words, and its seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Run:
    """One run of a contender, as its steps."""

    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)


@dataclass
class Situation:
    """What was measured in one situation: contender -> its runs."""

    name: str
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def add(self, contender: str, run: Run) -> None:
        self.runs.setdefault(contender, []).append(run)
        print(
            f"{self.name}: {contender}: {run.seconds:.2f} s",
            file=sys.stderr,
            flush=True,
        )

    def median_run(self, contender: str) -> Run:
        """The run whose time is the median; of an even number, the faster of the middle two."""
        runs = sorted(self.runs[contender], key=lambda run: run.seconds)
        return runs[(len(runs) - 1) // 2]

    def table(self, rounds: int) -> str:
        medians = {}
        for contender, runs in self.runs.items():
            seconds = [run.seconds for run in runs]
            medians[contender] = statistics.median(seconds)
        return format_medians(f"The whole set-up, {self.name}", medians, rounds)


@dataclass(frozen=True)
class Printed:
    """A part of what a program printed, and the time when it came."""

    text: str
    time: float


def divide_into_steps(parts: Iterable[Printed], began: float, ended: float) -> Run:
    """The steps of a set-up, by when their titles appeared.

    The title comes when a step begins, and the rest of its line when it ends. The title of a step
    that lasts is printed again then. What comes before the first is `START`.
    """
    text = ""
    names = {0: START}
    starts = {0: began}
    for part in parts:
        text += part.text
        for number, word in re.findall(r"^\[(\d+)/\d+\] (\S+) ", text, re.M):
            names.setdefault(int(number), STEP_WORDS.get(word, word))
            starts.setdefault(int(number), part.time)
    begins = list(starts.values())
    ends = [*begins[1:], ended]
    steps = []
    for name, begin, end in zip(names.values(), begins, ends):
        steps.append(Step(name, end - begin))
    return Run(tuple(steps))


@dataclass(frozen=True)
class TimedRun:
    """A run of the set-up, and what it printed."""

    run: Run
    output: str


def time_steps(*command: Any) -> TimedRun:
    """Runs the set-up."""
    began = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    parts = []
    printed = ""
    with process.stdout as output:
        for block in iter(lambda: os.read(output.fileno(), 65536), b""):
            text = block.decode(errors="replace")
            parts.append(Printed(text, time.monotonic()))
            printed += text
    process.wait()
    run = divide_into_steps(parts, began, time.monotonic())
    return TimedRun(run, printed)


def one_step(name: str, seconds: float) -> Run:
    return Run((Step(name, seconds),))


class Ours:
    """The set-up of this project, on the PyPI backend, with the quick verification."""

    def __init__(self, prefix: Path, cache: Path, within: Sequence[Any] = ()) -> None:
        self.prefix = prefix
        self.cache = cache
        self.within = within

    def run(self) -> Run:
        places = ["--prefix", self.prefix, "--cache", self.cache]
        options = ["--backend", "pip", "--level", "quick", *places]
        timed = time_steps(*self.within, SCRIPT, *options)
        assert "verified" in timed.output, timed.output
        return timed.run


class UvAlone:
    """The uv that the set-up installs with, alone: the wheels of the same lock, by hash."""

    def __init__(self, folder: Path, place: Path, options: Sequence[Any] = ()) -> None:
        self.uv = uv_program.bring_uv(folder / "tools", Steps(1, True))
        self.place = place
        self.options = options
        environ = uv_program.uv_environment(folder, place, dict(os.environ))
        environ["UV_CACHE_DIR"] = str(place / "uv")
        self.settings = []
        for name, value in environ.items():
            if name.startswith(("UV_", "SSL_")) and name not in uv_program.EXTRA:
                self.settings.append(f"{name}={value}")

    def run(self, within: Sequence[Any] = (), fresh: bool = True) -> Run:
        """`fresh`: with an empty cache of its own and a new environment."""
        install = [*uv_program.PLATFORM, *self.options, "--require-hashes", "--no-deps"]
        script = '"$0" pip install --quiet --python "$1/env" "${@:2}"'
        if fresh:
            remove(self.place / "uv", self.place / "env")
            script = (
                f'"$0" venv --quiet --no-project --python {PYTHON} "$1/env"\n{script}'
            )
        environ = ["env", *self.settings]
        shell = ["bash", "-e", "-c", script, self.uv, self.place]
        timing = time_command(*within, *environ, *shell, *install, "-r", REQUIREMENTS)
        assert not timing.output, timing.output
        return one_step("fetch and install the packages", timing.seconds)


class PipLine:
    """The line that people use: the newest of each, without hashes."""

    def __init__(self, environment: Path, cache: Path) -> None:
        self.environment = environment
        self.cache = cache
        self.output = ""

    def run(self, within: Sequence[Any] = (), fresh: bool = True) -> Run:
        """`fresh`: into a new environment."""
        script = '"$0/bin/pip" install --cache-dir "$1" "${@:3}"'
        if fresh:
            remove(self.environment)
            script = f'"$2" -m venv "$0"\n{script}'
        arguments = [self.environment, self.cache, f"python{PYTHON}", *PIP_LINE]
        timing = time_command(*within, "bash", "-e", "-c", script, *arguments)
        if fetched_bytes(timing.output) > fetched_bytes(self.output):
            self.output = timing.output
        return one_step("fetch and install the packages", timing.seconds)


def fetched_bytes(output: str) -> float:
    """What pip says it downloaded, in bytes, and the wheels that it took from a folder."""
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
    total = 0.0
    for number, unit in re.findall(r"Downloading \S+ \(([\d.]+) (kB|MB|GB)\)", output):
        total += float(number) * units[unit]
    for name in re.findall(r"Processing (\S+\.whl)", output):
        path = Path(name)
        if path.exists():
            total += path.stat().st_size
    return total


def in_new_memory_disk(folder: Path) -> list[Any]:
    """What starts a command with an empty tmpfs at `folder`."""
    mount = f'mount -t tmpfs -o size={TMPFS_SIZE} none "{folder}" && "$@"'
    return ["unshare", "--mount", "--map-root-user", "bash", "-c", mount, "bash"]


@dataclass(frozen=True)
class Measurements:
    """What was measured, and the pip line whose result is described beside it."""

    situations: list[Situation]
    pip: PipLine


def measure_pods(folder: Path, prefix: Path, rounds: int) -> Measurements:
    """All three situations, the contenders in turns; leaves a finished environment at `prefix`."""
    first = Situation(FIRST_POD)
    later = Situation(LATER_POD)
    second = Situation(SECOND_RUN)
    volume = folder / "cache"
    memory = folder / "memory"
    memory.mkdir()
    pod = in_new_memory_disk(memory)
    pip = PipLine(folder / "old", folder / "pip")
    uv = UvAlone(folder, folder / "alone")
    for _ in range(rounds):
        remove(prefix, Path(f"{prefix}.d"), volume)
        ours = Ours(prefix, volume)
        first.add(OURS, ours.run())
        second.add(OURS, ours.run())
        first.add(UV, uv.run())
        second.add(UV, uv.run(fresh=False))
        remove(pip.cache)
        first.add(PIP, pip.run())
        second.add(PIP, pip.run(fresh=False))
        later.add(OURS, Ours(memory / "env", volume, within=pod).run())
        local = ["--no-index", "--find-links", volume / "wheels"]
        later.add(UV, UvAlone(folder, memory, local).run(within=pod))
        later.add(PIP, PipLine(memory / "old", pip.cache).run(within=pod))
    return Measurements([first, later, second], pip)


def plot_data(situations: list[Situation]) -> list[dict[str, Any]]:
    """What plot.py draws: for each situation and contender, the steps of the median run."""
    bars = []
    for situation in situations:
        for contender in situation.runs:
            steps = [asdict(step) for step in situation.median_run(contender).steps]
            bars.append(
                {"situation": situation.name, "contender": contender, "steps": steps}
            )
    return bars


def describe_difference(prefix: Path, pip: PipLine) -> str:
    """What the pip line of today brings beside the lock: versions,
    sizes, the verifier's verdict.
    """
    pins = {pin.name: pin for pin in locks.read_pip_lock(REQUIREMENTS)}
    asked = ["list", "--format", "json", "--disable-pip-version-check"]
    listed = json.loads(time_command(pip.environment / "bin/pip", *asked).output)
    theirs = {}
    both = 0
    same = 0
    for package in listed:
        name = locks.canonical(package["name"])
        version = package["version"]
        theirs[name] = version
        if name in pins:
            both += 1
            if version.split("+")[0] == pins[name].version:
                same += 1
    verifier = [ROOT / "scripts/verify_environment.py", "--level", "quick"]
    verdict = time_command(
        pip.environment / "bin/python", *verifier
    ).output.splitlines()[-1]
    locked = size_text(sum(pin.size for pin in pins.values()))
    lines = ["| | setup_runpod_environment.sh | the pip line |", "|---|---|---|"]
    for name in PIP_LINE:
        lines.append(f"| {name} | {pins[name].version} | {theirs.get(name, 'none')} |")
    lines += [
        f"| files by hash | all {len(pins)} | none |",
        f"| packages | {len(pins)} | {len(theirs)} |",
        f"| fetched | {locked} | {size_text(fetched_bytes(pip.output))} |",
        f"| verified | yes | {verdict} |",
        "",
        f"Of the {both} packages that both have, the pip line of today brings {same} in the "
        "locked version.",
    ]
    if not pip.cache.exists():
        lines.append(
            "This machine's index lets pip keep nothing: pip's cache was empty each time."
        )
    return "\n".join([*lines, ""])


def set_up(folder: Path, prefix: Path, rounds: int, data: Path) -> str:
    """The section of the results; writes what plot.py draws into `data`."""
    measured = measure_pods(folder, prefix, rounds)
    data.write_text(json.dumps(plot_data(measured.situations), indent=1) + "\n")
    tables = [situation.table(rounds) for situation in measured.situations]
    return "\n".join([*tables, describe_difference(prefix, measured.pip)])
