"""--uninstall: lists what the set-up has made for one prefix, and removes that and nothing else."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from lockedenv.backends.private_folders import temporary
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop, disk_text, printable
from lockedenv.host.files import FileRefused, read_regular
from lockedenv.host.places import default_cache
from lockedenv.install.extras import write_list
from lockedenv.prefix.lifecycle import hold, links_to
from lockedenv.prefix.ownership import own_paths
from lockedenv.prefix.place import (
    LOCK,
    Prefix,
    find_prefix,
    linked_environment,
    refuse_long_name,
)
from lockedenv.prefix.recovery import is_own_folder, unpacked_folders
from lockedenv.prefix.removal import mounts_in, refuse_removal, remove_environment
from lockedenv.prefix.status import is_ours
from lockedenv.spec.commands import DEFAULT, setup_command
from lockedenv.spec.environment import list_environments, name_in_mark
from lockedenv.spec.flash_attention_kernels import COMPILED_NOTE, KERNEL_FOLDER
from lockedenv.spec.locks import canonical

LOG_LIMIT = 10_000_000  # bytes
# What the set-up and its tools keep in the cache, by the form of the names: people may use
# the folder too, and a `bin` or `wheels` in it. `python` is not among them: other
# environments may run it.
CACHED = (
    "bin/micromamba-????????????",
    "bin/uv-????????????",
    "flash-attn/*.lock",
    f"flash-attn/*-{'[0-9a-f]' * 12}",
    "flash-attn/damaged-*",
    "flash-attn.json",
    # FlashAttention 4 names a folder by the sha256 over its sources.
    f"{KERNEL_FOLDER}/{'[0-9a-f]' * 64}",
    f"{KERNEL_FOLDER}/{COMPILED_NOTE}sm_*-{'[0-9a-f]' * 16}",
    "hashes.json",
    "mamba/.conda",
    "mamba/.mamba",
    "mamba/pkgs",
    "pkgs/*.conda",
    "pkgs/*.tar.bz2",
    "pkgs/*.part",
    "pkgs/cache",
    "pkgs/urls*",
    "pkgs.lock",
    "unpacked.json",
    "uv/*-v[0-9]*",
    "uv/.gitignore",
    "uv/.lock",
    "uv/CACHEDIR.TAG",
    "uv/interpreter-*",
    "uv.lock",
    "wheels/*.part",
    "wheels.lock",
)


@dataclass(frozen=True)
class Removal:
    """What is removed, and what stays. All paths are absolute.

    `links`: PREFIX, where it is a link of ours. `folders`: those that are empty then.
    """

    prefix: Prefix
    links: list[Path] = field(default_factory=list)
    environments: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    cached: list[Path] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)
    cache: Path | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remove."""
        return not (self.links or self.environments or self.files or self.cached)


def work(arguments: argparse.Namespace, prefix_path: Path) -> int:
    """Lists, and removes unless --dry-run was given; gives the exit status."""
    steps = Steps(0, arguments.quiet)
    prefix = find_prefix(prefix_path)
    refuse_long_name(prefix.public_path, f".{LOCK}")  # nothing of ours can be beside it
    cache = default_cache()
    if arguments.cache:
        cache = arguments.cache.expanduser()
    cache = cache.resolve()
    if arguments.dry_run:
        list_removal(prefix, cache, arguments.cache_too, steps)
        steps.say("this was a dry run: nothing was changed")
        return 0
    if find_removal(prefix, cache, arguments.cache_too).is_empty:
        list_removal(prefix, cache, arguments.cache_too, steps)
        return 0
    with hold(prefix, steps.warn):
        # A run that was waited for may have changed what is there.
        removal = list_removal(
            find_prefix(prefix_path), cache, arguments.cache_too, steps
        )
        again = uninstall_command(removal, arguments)
        try:
            remove(removal, steps)
        except (Stop, OSError) as error:
            text = str(error)
            if isinstance(error, OSError):
                text = disk_text(error)
            # The command of the environment may be gone by now.
            raise Stop(f"{text}\nrun it again with: {again}") from None
    return 0


def uninstall_command(removal: Removal, arguments: argparse.Namespace) -> str:
    """The command that goes on with a removal, of the clone's script."""
    environment = DEFAULT
    if removal.environments:
        environment = name_in_mark(removal.environments[0])
    options = ["--uninstall"]
    if arguments.cache:
        options += ["--cache", str(removal.cache)]
    if arguments.cache_too:
        options.append("--cache-too")
    return setup_command(removal.prefix.public_path, environment, *options)


def list_removal(
    prefix: Prefix, cache: Path, with_cache: bool, steps: Steps
) -> Removal:
    """Prints what there is of a prefix, and gives it.

    Raises Stop where something of it may not be removed.
    """
    removal = find_removal(prefix, cache, with_cache)
    for folder in removal.environments:
        refuse_removal(prefix, folder)
        links = links_to(prefix, folder)
        if links:
            raise Stop(
                f"{links[0]} is a link to the environment {folder}, not a copy of it, and would "
                f"lead nowhere; remove the link first: rm {links[0]}"
            )
    if removal.cached:
        refuse_mounted_cache(cache)
    for line in removal_lines(removal):
        steps.show(line)
    return removal


def find_removal(prefix: Prefix, cache: Path, with_cache: bool) -> Removal:
    """What there is of a prefix. Raises Stop for an environment that people made."""
    name = prefix.public_path
    environments = [folder for folder, _ in prefix.environments()]
    if name.is_dir() and not name.is_symlink() and any(name.iterdir()):
        if not is_ours(Prefix(name)):
            raise Stop(
                f"{name} was not made by this set-up, or is a copy of what it made; it is "
                "left as it is"
            )
        environments.append(name)
    links = []
    target = linked_environment(name)
    if target is not None and (target in environments or not target.exists()):
        links.append(name)
    folders = []
    container = prefix.container
    unpacked = unpacked_folders(prefix)
    ours = {*environments, *unpacked}
    if ours and container.is_dir() and set(container.iterdir()) <= ours:
        folders.append(container)
    files = []
    lock = prefix.beside(LOCK)
    if lock.is_file():
        files.append(lock)
    files += unpacked
    for folder in [*environments, name]:
        path = temporary("uv", folder)
        if is_own_folder(path):
            files.append(path)
    files += find_logs(name)
    cached = []
    if with_cache:
        cached = find_cached(cache)
        for kind in sorted({pattern.partition("/")[0] for pattern in CACHED}):
            folder = cache / kind
            if folder.is_dir() and set(folder.iterdir()) <= set(cached):
                folders.append(folder)
    left = sorted(name.parent.glob(f"{name.name}.kept-*"))
    left += sorted(name.parent.glob(f"{name.name}.maximalcai-extras-*.txt"))
    if cache.is_dir() and not with_cache:
        left.append(cache)
    return Removal(prefix, links, environments, folders, files, cached, left, cache)


def find_cached(cache: Path) -> list[Path]:
    """What of a cache the set-up and its tools have made."""
    found: set[Path] = set()
    for pattern in CACHED:
        found.update(cache.glob(pattern))
    for index in (cache / "pkgs").glob("*/info/index.json"):
        found.add(index.parent.parent)  # a conda package, unpacked
    locked = {"uv", "pip"}
    for known in list_environments():
        locked.update(known.names())
    for wheel in (cache / "wheels").glob("*.whl"):
        if canonical(wheel.name.partition("-")[0]) in locked:
            found.add(wheel)
    return sorted(found)


def find_logs(name: Path) -> list[Path]:
    """The logs of unforeseen errors that were written while this prefix was worked on."""
    found = []
    for path in sorted(Path(tempfile.gettempdir()).glob("maximalcai-*.log")):
        try:
            first = (
                read_regular(path, LOG_LIMIT).decode(errors="replace").split("\n", 1)[0]
            )
        except (OSError, FileRefused):
            continue
        if str(name) in first.split() and path.stat().st_uid == os.getuid():
            found.append(path)
    return found


def refuse_mounted_cache(cache: Path) -> None:
    """Raises Stop where something is mounted below the cache; the cache
    itself may be on a volume.
    """
    for place in mounts_in(cache):
        if place != os.path.realpath(cache):
            raise Stop(
                f"{place} is mounted in the cache; unmount it first: umount {place}"
            )


def removal_lines(removal: Removal) -> list[str]:
    """What is removed, moved and left, for people."""
    lines = []
    for link in removal.links:
        lines.append(f"removed  {link}, the link")
    for folder in removal.environments:
        lines.append(f"removed  {folder}, an environment")
        for own in own_paths(folder):
            lines.append(
                f"moved    {printable(own)}, yours, to {removal.prefix.public_path}.kept-*"
            )
    for path in [*removal.folders, *removal.files, *removal.cached]:
        lines.append(f"removed  {path}")
    if not lines:
        lines.append(f"there is nothing of this set-up at {removal.prefix.public_path}")
    lines += [f"left     {path}" for path in removal.left]
    if removal.cache in removal.left:
        lines.append(
            "the cache has what an environment was installed from; --cache-too removes it"
        )
    return lines


def remove(removal: Removal, steps: Steps) -> None:
    """Removes it: the link first, so that no shell enters an environment that is being removed."""
    prefix = removal.prefix
    if is_ours(prefix):
        extras = write_list(prefix)
        if extras:
            steps.show(f"the packages that you added are listed in {extras}")
    for link in removal.links:
        link.unlink()
    for folder in removal.environments:
        kept = remove_environment(prefix, folder)
        if kept:
            for line in kept.lines():
                steps.show(line)
    for path in [*removal.files, *removal.cached]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for folder in removal.folders:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only an empty one
    steps.show("uninstalled")
