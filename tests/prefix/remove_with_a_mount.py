"""Tries to remove environments in which a volume is mounted: finished, unfinished, old, and with a name with a space."""

import subprocess
import sys
from pathlib import Path

from lockedenv.prefix.lifecycle import make_successor, refuse_mounted
from lockedenv.prefix.mark import State
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.prefix.removal import RemovalRefused, remove_environment
from lockedenv.spec.layers import BackendName
from small_environment import fill, install


def mount_volume(folder: Path, name: str) -> None:
    """Mounts the volume in an environment."""
    (folder / name).mkdir()
    subprocess.run(["mount", "--bind", base / "volume", folder / name], check=True)


def try_to_remove(prefix: Prefix) -> None:
    """Prints why the environment is not removed."""
    try:
        remove_environment(prefix, prefix.path)
    except RemovalRefused as error:
        print(error)


base = Path(sys.argv[1])
(base / "volume").mkdir()
(base / "volume/thesis.tex").write_text("years of work")

finished = install(find_prefix(base / "finished"))
mount_volume(finished.path, "data")
try_to_remove(finished)

unfinished = find_prefix(base / "unfinished")
try:
    with make_successor(unfinished, BackendName.PIP, "default", print) as new:
        fill(new.path)
        mount_volume(new.path, "my data")
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert new.path.is_dir()
    assert State.MAKING
try_to_remove(new)
try:
    refuse_mounted(unfinished)
except RemovalRefused as error:
    print(error)

deep = install(find_prefix(base / "deep"))
mount_volume(deep.path / "lib/python3.11/site-packages/idna", "data")
try_to_remove(deep)
print("volume:", (base / "volume/thesis.tex").read_text())
