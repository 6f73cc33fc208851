"""What mends a damaged environment, as commands for this very prefix,
the least destructive first."""

from __future__ import annotations

import os
import shlex
from enum import Enum
from pathlib import Path
from typing import Iterable

from lockedenv import ROOT
from lockedenv.prefix.mark import MadeBy, Mark
from lockedenv.prefix.place import find_backend, find_name, mark_or_none
from lockedenv.spec.commands import DEFAULT, post_create_command, setup_command
from lockedenv.spec.environment import CONDA_LOCK, REQUIREMENTS, find


class RemedyKind(str, Enum):
    """What has to be done about a failure, the least destructive first."""

    REMOVE = "remove"
    REPAIR = "repair"
    REBUILD = "rebuild"


def repair_command(prefix: Path) -> str:
    """Puts the wheels of the lock right, and what the set-up wrote; keeps all that was added."""
    return post_create_command(find_name(prefix), _environment(mark_or_none(prefix)))


def verify_command(prefix: Path, *options: str) -> str:
    """Runs the verifier in the environment's own Python."""
    words = [
        f"{find_name(prefix, to_work_on=False)}/bin/python",
        f"{ROOT}/scripts/verify_environment.py",
        *options,
    ]
    return shlex.join(words)


def rebuild_command(prefix: Path) -> str:
    """Makes the environment again, in the way in which it was made."""
    mark = mark_or_none(prefix)
    if mark and mark.made_by is MadeBy.SETUP:
        options = ["--force"]
        if mark.backend:
            options += ["--backend", mark.backend]
        return setup_command(find_name(prefix), mark.environment, *options)
    folder = find(_environment(mark)).folder
    if find_backend(prefix).has_conda_layer:
        lock = folder / CONDA_LOCK
        create = shlex.join(
            ["micromamba", "create", "-y", "-p", str(prefix), "-f", str(lock)]
        )
        return f"{create} && {repair_command(prefix)}"
    requirements = str(folder / REQUIREMENTS)
    create = shlex.join(["python3", "-m", "venv", "--clear", str(prefix)])
    install = shlex.join([f"{prefix}/bin/pip", "install", "-r", requirements])
    return f"{create} && {install}"


def remove_command(prefix: Path, paths: list[str]) -> str:
    """Removes paths of a prefix."""
    folder = find_name(prefix, to_work_on=False)
    words = [_shell_word(str(folder / path)) for path in paths]
    return " ".join(["rm", "-r", *words])


def _shell_word(text: str) -> str:
    """A word for bash and zsh that can be printed in one line, whatever is in a file's name."""
    if text.isprintable():
        return shlex.quote(text)
    shown = ""
    for byte in os.fsencode(text):
        plain = 32 <= byte < 127 and chr(byte) not in "\\'"
        shown += chr(byte) if plain else f"\\x{byte:02x}"
    return f"$'{shown}'"


def pip_uninstall_command(prefix: Path, names: Iterable[str]) -> str:
    """Removes packages by the environment's own pip."""
    python = find_name(prefix, to_work_on=False) / "bin/python"
    return f"{python} -m pip uninstall -y {' '.join(names)}"


def command_for(action: RemedyKind, prefix: Path) -> str:
    """The command of an action that is one and the same for a whole prefix."""
    if action is RemedyKind.REBUILD:
        return rebuild_command(prefix)
    return repair_command(prefix)


def _environment(mark: Mark | None) -> str:
    """The environment that a prefix is of, as --environment takes it."""
    if mark is None:
        return DEFAULT
    return mark.environment
