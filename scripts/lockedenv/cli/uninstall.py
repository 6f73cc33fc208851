"""--uninstall: lists what the set-up has made for one prefix, and removes that and nothing else."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from lockedenv.backends.private_folders import temporary
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop
from lockedenv.host.files import FileRefused, read_regular
from lockedenv.host.places import default_cache
from lockedenv.install.extras import write_list
from lockedenv.prefix.lifecycle import hold, is_ours
from lockedenv.prefix.place import Prefix, find_prefix, linked_environment
from lockedenv.prefix.removal import mounts_in, own_paths, refuse_removal, remove_environment

LOG_LIMIT = 10_000_000  # bytes
# What the set-up keeps in its cache. `python` is not among them: other environments may run it.
CACHED = (
    "bin",
    "flash-attn",
    "flash-attn.json",
    "hashes.json",
    "mamba",
    "pkgs",
    "pkgs.lock",
    "unpacked.json",
    "uv",
    "uv.lock",
    "wheels",
    "wheels.lock",
)


@dataclass(frozen=True)
class Removal:
    """What is removed, and what stays. All paths are absolute."""

    prefix: Prefix
    environments: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    cached: list[Path] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)


def work(arguments: argparse.Namespace, prefix_path: Path) -> int:
    """Lists, and removes unless --dry-run was given; gives the exit status."""
    steps = Steps(0, arguments.quiet)
    prefix = find_prefix(prefix_path)
    cache = default_cache()
    if arguments.cache:
        cache = arguments.cache.expanduser()
    removal = find_removal(prefix, cache.resolve(), arguments.cache_too)
    for folder in removal.environments:
        refuse_removal(prefix, folder)
    if removal.cached:
        refuse_mounted_cache(cache)
    for line in removal_lines(removal):
        steps.show(line)
    if arguments.dry_run:
        steps.say("this was a dry run: nothing was changed")
        return 0
    if removal.environments or removal.files or removal.cached:
        with hold(prefix):
            remove(removal, steps)
    return 0


def find_removal(prefix: Prefix, cache: Path, with_cache: bool) -> Removal:
    """What there is of a prefix. Raises Stop for an environment that people made."""
    name = prefix.name
    environments = [folder for folder, _ in prefix.environments()]
    if name.is_dir() and not name.is_symlink() and any(name.iterdir()):
        if not is_ours(Prefix(name)):
            raise Stop(
                f"{name} was not made by this set-up, or is a copy of what it made; it is left as it is"
            )
        environments.append(name)
    files = []
    lock = prefix.beside("maximalcai-lock")
    if lock.is_file():
        files.append(lock)
    for folder in [*environments, name]:
        unpacked = Prefix(folder).beside("maximalcai-uv")
        files += [path for path in (unpacked, temporary("uv", folder)) if is_own_folder(path)]
    files += find_logs(name)
    cached = []
    if with_cache:
        cached = [cache / entry for entry in CACHED if os.path.lexists(cache / entry)]
    left = sorted(name.parent.glob(f"{name.name}.kept-*"))
    left += sorted(name.parent.glob(f"{name.name}.maximalcai-extras-*.txt"))
    if cache.is_dir() and not with_cache:
        left.append(cache)
    return Removal(prefix, environments, files, cached, left)


def is_own_folder(path: Path) -> bool:
    """Whether a folder is there and is this user's; all users can write beside it."""
    return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid()


def find_logs(name: Path) -> list[Path]:
    """The logs of unforeseen errors that were written while this prefix was worked on."""
    found = []
    for path in sorted(Path(tempfile.gettempdir()).glob("maximalcai-*.log")):
        try:
            first = read_regular(path, LOG_LIMIT).decode(errors="replace").split("\n", 1)[0]
        except (OSError, FileRefused):
            continue
        if str(name) in first.split() and path.stat().st_uid == os.getuid():
            found.append(path)
    return found


def refuse_mounted_cache(cache: Path) -> None:
    """Raises Stop where something is mounted below the cache; the cache itself may be on a volume."""
    for place in mounts_in(cache):
        if place != os.path.realpath(cache):
            raise Stop(f"{place} is mounted in the cache; unmount it first: umount {place}")


def removal_lines(removal: Removal) -> list[str]:
    """What is removed, moved and left, for people."""
    lines = []
    if removal.prefix.name.is_symlink():
        lines.append(f"removed  {removal.prefix.name}, the link")
    for folder in removal.environments:
        lines.append(f"removed  {folder}, an environment")
        for path in own_paths(folder):
            lines.append(f"moved    {path}, yours, to {removal.prefix.name}.kept-*")
    lines += [f"removed  {path}" for path in [*removal.files, *removal.cached]]
    if not lines:
        lines.append(f"there is nothing of this set-up at {removal.prefix.name}")
    lines += [f"left     {path}" for path in removal.left]
    return lines


def remove(removal: Removal, steps: Steps) -> None:
    """Removes it: the link first, so that nobody enters an environment that is going away."""
    prefix = removal.prefix
    if is_ours(prefix):
        extras = write_list(prefix)
        if extras:
            steps.show(f"the packages that you added are listed in {extras}")
    if linked_environment(prefix.name):
        prefix.name.unlink()
    for folder in removal.environments:
        kept = remove_environment(prefix, folder)
        if kept:
            for line in kept.lines():
                steps.show(line)
    if prefix.container.is_dir() and not any(prefix.container.iterdir()):
        prefix.container.rmdir()
    for path in [*removal.files, *removal.cached]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    steps.show("uninstalled")
