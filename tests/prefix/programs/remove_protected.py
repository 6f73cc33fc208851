"""Removes an environment with folders that people protected: remove_protected.py PREFIX. Prints what was kept."""

import sys
from pathlib import Path

from lockedenv.prefix.place import find_prefix
from lockedenv.prefix.removal import remove_environment
from small_environment import SITE, install

prefix = install(find_prefix(Path(sys.argv[1])))
for name, mode in (("results", 0o555), ("lib/mine", 0o000)):
    folder = prefix.path / name
    folder.mkdir()
    (folder / "loss.csv").write_text("years of work")
    folder.chmod(mode)
(prefix.path / SITE / "idna").chmod(0o555)
kept = remove_environment(prefix, prefix.path)
assert kept is not None
assert not prefix.path.exists()
for name in kept.names:
    print(name, oct((kept.folder / name).stat().st_mode & 0o777))
