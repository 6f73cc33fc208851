"""Kills runs that replace an environment, at random moments, where a volume is mounted and people's files lie in it.

    python3 kill_at_random.py FOLDER KILLS

A run installs a successor, verifies it (every third one does not pass), exchanges or rolls back, and removes
what is given up. After each kill PREFIX must be the old environment or the new one, whole; then a volume is
mounted in one of the environments and a run is tried; then it is unmounted, and a run must end well. Nothing
of people's may be gone. To be started where it may mount. Prints what the kills met.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from lockedenv.prefix.inventory import (
    compare_quick,
    read_inventory,
    take_inventory,
    write_inventory,
)
from lockedenv.prefix.lifecycle import (
    finish_installation,
    hold,
    make_successor,
    record_verdict,
    recover,
    settle,
)
from lockedenv.prefix.mark import State, read_mark
from lockedenv.prefix.place import find_prefix
from lockedenv.prefix.removal import RemovalRefused
from small_environment import IDNA, SITE, fill

SLOWLY = 0.03  # seconds between the steps of an installation, so that kills meet all of them
EDITED = f"{SITE}/idna/core.py"


def said_by_nobody(text: str) -> None:
    """What a run says is not shown."""


def run(place: Path, passes: bool) -> None:
    """One run of the set-up, with --force."""
    prefix = find_prefix(place)
    with hold(prefix):
        recover(prefix, said_by_nobody)
        with make_successor(find_prefix(place), "pip", "default", said_by_nobody) as new:
            time.sleep(SLOWLY)
            fill(new.path)
            for number in range(20):
                (new.path / "bin" / f"half-{number}").touch()
                time.sleep(SLOWLY / 10)
                (new.path / "bin" / f"half-{number}").unlink()
            taken = take_inventory(new.path, [IDNA], with_interpreter=False)
            write_inventory(new.path, taken)
            time.sleep(SLOWLY)
            finish_installation(new, "default", "a")
            time.sleep(SLOWLY)
            mark = read_mark(new.path)
            assert mark is not None
            record_verdict(new.path, "quick", passes, mark.made)
            settle(new, passes, True, said_by_nobody)


def run_and_kill(place: Path, passes: bool, after: float) -> bool:
    """Starts a run and kills it with -9; whether it was still running."""
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            run(place, passes)
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def assert_whole(place: Path) -> None:
    """PREFIX is an environment in which nothing but people's edit differs from the inventory."""
    assert place.is_symlink(), f"{place} is no link"
    mark = read_mark(place)
    assert mark is not None and mark.state is State.INSTALLED, mark
    inventory = read_inventory(place)
    assert inventory is not None
    different = {difference.path for difference in compare_quick(place.resolve(), inventory)}
    assert different <= {EDITED}, different


def put_own_files(place: Path, number: int) -> None:
    """A file of people's, and an edit of a package's file."""
    (place / "results").mkdir(exist_ok=True)
    (place / "results" / f"run-{number}.csv").write_text(f"years of work {number}")
    (place / EDITED).write_text(f"edited {number}\n")


def assert_nothing_is_gone(place: Path, number: int) -> None:
    """Both are in an environment that is there, or in what was kept of one."""
    places = [*place.parent.glob(f"{place.name}.d/*"), *place.parent.glob(f"{place.name}.kept-*")]
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
        path for path in sorted((place.parent / f"{place.name}.d").iterdir()) if path.is_dir()
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
    assert (place.parent / "volume/thesis.tex").read_text() == "years of work", "the volume"
    assert_whole(place)
    return ended


def main(base: Path, kills: int) -> None:
    chance = random.Random(7)
    place = base / "env"
    (base / "volume").mkdir()
    (base / "volume/thesis.tex").write_text("years of work")
    run(place, True)
    started = time.monotonic()
    run(place, True)
    whole = time.monotonic() - started
    met: Counter[str] = Counter()
    killed = 0
    number = 0
    while killed < kills:
        number += 1
        put_own_files(place, number)
        if run_and_kill(place, number % 3 != 0, chance.uniform(0, whole * 1.1)):
            killed += 1
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
    print(f"{killed} kills: " + ", ".join(f"{state} {count}" for state, count in met.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
