"""Kills runs that replace an environment, at random moments, where a volume is mounted and people's files lie in it.

    python3 kill_at_random.py FOLDER KILLS

A run installs a successor, verifies it, exchanges it for the old one or rolls back, and removes what is given
up. Each kill waits for one of these phases in turn, and falls at a random moment of it. After it PREFIX must be
the old environment or the new one, whole; then a volume is mounted in one of the environments and a run is tried;
then it is unmounted, and a run must end well. Nothing of people's may be gone. To be started where it may mount.
Prints in which phases the kills fell, and what they left.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from enum import IntEnum
from mmap import mmap
from pathlib import Path

from lockedenv.prefix.compare_inventory import compare_quick
from lockedenv.prefix.inventory import read_inventory, write_inventory
from lockedenv.prefix.lifecycle import (
    finish_installation,
    hold,
    make_successor,
    record_verdict,
    settle,
)
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.mark import State, read_mark
from lockedenv.prefix.place import find_prefix
from lockedenv.prefix.recovery import recover
from lockedenv.prefix.removal import RemovalRefused
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level
from small_environment import IDNA, SITE, add_wheel, fill

SLOWLY = (
    0.03  # seconds between the steps of an installation, so that kills meet all of them
)
EDITED = f"{SITE}/idna/core.py"
MANY = replace(IDNA, name="many", version="1.0")
MODULES = 150  # a removal lasts


class Phase(IntEnum):
    """What a run is doing."""

    BEGIN = 0
    INSTALL = 1
    VERIFY = 2
    EXCHANGE = 3
    REMOVAL = 4
    ROLL_BACK = 5
    END = 6


PHASES = (Phase.INSTALL, Phase.VERIFY, Phase.EXCHANGE, Phase.REMOVAL, Phase.ROLL_BACK)
# Seconds that it takes at least; a kill falls within them.
LENGTHS = {
    Phase.INSTALL: 0.1,
    Phase.VERIFY: SLOWLY,
    Phase.EXCHANGE: 0.001,
    Phase.REMOVAL: 0.02,
    Phase.ROLL_BACK: 0.02,
}
PATIENCE = 60  # seconds
reached = mmap(-1, 1)  # shared with the run, which writes its phase


def enter(phase: Phase) -> None:
    reached[0] = phase


def said_by_nobody(text: str) -> None:
    """What a run says is not shown."""


def follow(text: str) -> None:
    """A run says what it removes before it does."""
    if text.startswith("removing the old environment"):
        enter(Phase.REMOVAL)
    elif "did not verify" in text:
        enter(Phase.ROLL_BACK)


def run(place: Path, passes: bool) -> None:
    """One run of the set-up, with --force."""
    prefix = find_prefix(place)
    enter(Phase.BEGIN)
    with hold(prefix, print):
        recover(prefix, said_by_nobody)
        with make_successor(
            find_prefix(place), BackendName.PIP, "default", said_by_nobody
        ) as new:
            enter(Phase.INSTALL)
            time.sleep(SLOWLY)
            fill(new.path)
            modules = {f"many/m{number}.py": b"pass\n" for number in range(MODULES)}
            add_wheel(new.path, MANY.name, MANY.version, modules)
            for number in range(20):
                (new.path / "bin" / f"half-{number}").touch()
                time.sleep(SLOWLY / 10)
                (new.path / "bin" / f"half-{number}").unlink()
            taken = take_inventory(new.path, [IDNA, MANY], with_interpreter=False)
            write_inventory(new.path, taken)
            time.sleep(SLOWLY)
            finish_installation(new, "default", "a")
            enter(Phase.VERIFY)
            time.sleep(SLOWLY)
            mark = read_mark(new.path)
            assert mark is not None
            record_verdict(new.path, Level.QUICK, passes, mark.made)
            enter(Phase.EXCHANGE)
            settle(new, passes, True, follow)
    enter(Phase.END)


def run_and_kill(place: Path, wanted: Phase, chance: random.Random) -> Phase:
    """Starts a run and kills it with -9 in a phase; gives the one in which it fell, END where it was too late."""
    enter(Phase.BEGIN)
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            run(place, wanted is not Phase.ROLL_BACK)
        finally:
            os._exit(0)
    deadline = time.monotonic() + PATIENCE
    while reached[0] < wanted:
        assert time.monotonic() < deadline, f"{wanted.name} is never reached"
    time.sleep(chance.uniform(0, LENGTHS[wanted]))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return Phase(reached[0]) if os.WIFSIGNALED(status) else Phase.END


def assert_whole(place: Path) -> None:
    """PREFIX is an environment in which nothing but people's edit differs from the inventory."""
    assert place.is_symlink(), f"{place} is no link"
    mark = read_mark(place)
    assert mark is not None, mark
    assert mark.state is State.INSTALLED, mark
    inventory = read_inventory(place)
    assert inventory is not None
    different = {
        difference.path for difference in compare_quick(place.resolve(), inventory)
    }
    assert different <= {EDITED}, different


def put_own_files(place: Path, number: int) -> None:
    """A file of people's, and an edit of a package's file."""
    (place / "results").mkdir(exist_ok=True)
    (place / "results" / f"run-{number}.csv").write_text(f"years of work {number}")
    (place / EDITED).write_text(f"edited {number}\n")


def assert_nothing_is_gone(place: Path, number: int) -> None:
    """Both are in an environment that is there, or in what was kept of one."""
    places = [
        *place.parent.glob(f"{place.name}.d/*"),
        *place.parent.glob(f"{place.name}.kept-*"),
    ]
    results = [folder / "results" / f"run-{number}.csv" for folder in places]
    assert any(path.exists() for path in results), f"run-{number}.csv is gone"
    edits = []
    for folder in places:
        path = folder / EDITED
        if path.exists():
            edits.append(path.read_text())
    assert f"edited {number}\n" in edits, (number, edits)


def try_with_a_mount(place: Path, chance: random.Random) -> str:
    """Mounts the volume in one of the environments, tries a run, and unmounts it; gives how the run ended."""
    folders = [
        path
        for path in sorted((place.parent / f"{place.name}.d").iterdir())
        if path.is_dir()
    ]
    folder = chance.choice(folders)
    mounted = folder / "data"
    mounted.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", place.parent / "volume", mounted], check=True)
    try:
        run(place, True)
        ended = "went on beside the mount"
    except RemovalRefused:
        ended = "refused"
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert (
        place.parent / "volume/thesis.tex"
    ).read_text() == "years of work", "the volume"
    assert_whole(place)
    return ended


def main(base: Path, kills: int) -> None:
    chance = random.Random(7)
    place = base / "env"
    (base / "volume").mkdir()
    (base / "volume/thesis.tex").write_text("years of work")
    run(place, True)
    met: Counter[str] = Counter()
    phases: Counter[Phase] = Counter()
    number = 0
    while phases.total() < kills:
        number += 1
        put_own_files(place, number)
        phase = run_and_kill(place, PHASES[number % len(PHASES)], chance)
        if phase is not Phase.END:
            phases[phase] += 1
        assert_whole(place)
        states = []
        for _, mark in find_prefix(place).environments():
            states.append(mark.state.value)
        met[" and ".join(sorted(states))] += 1
        assert_nothing_is_gone(place, number)
        met[try_with_a_mount(place, chance)] += 1
        assert_nothing_is_gone(place, number)
        run(place, True)
        assert_whole(place)
        assert_nothing_is_gone(place, number)
        left = [path for path in (base / "env.d").iterdir()]
        assert len(left) == 1, [(path.name, os.listdir(path)) for path in left]
    fell = ", ".join(
        f"{phase.name} {phases[phase]}" for phase in Phase if phases[phase]
    )
    print(f"{phases.total()} kills: {fell}")
    print("then: " + ", ".join(f"{state} {count}" for state, count in met.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
