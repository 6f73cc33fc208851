"""The command `maximalcai` inside an environment: each word is a line onto a
script, for this environment.
"""

from __future__ import annotations

import argparse
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Sequence

from lockedenv import ROOT
from lockedenv.cli.parser import Parser
from lockedenv.cli.script import run_script
from lockedenv.errors import Stop
from lockedenv.host.process import started
from lockedenv.host.repository import describe_version
from lockedenv.prefix.place import find_name
from lockedenv.spec.commands import POST_CREATE, SETUP, setup_command
from lockedenv.spec.environment import name_in_mark
from lockedenv.spec.level import Level

PROGRAM = "maximalcai"
VERIFY = "scripts/verify_environment.py"


@dataclass(frozen=True)
class Command:
    """One word of the command line: the script that it starts, and with which options.

    `operands`: what may follow it, for the help. What follows is given on as it is.
    """

    name: str
    operands: str
    script: str
    options: tuple[str, ...]
    help: str


COMMANDS = (
    Command(
        "verify",
        "[OPTIONS]",
        VERIFY,
        (),
        "check this environment; --level quick: in seconds",
    ),
    Command(
        "repair",
        "[OPTIONS]",
        POST_CREATE,
        (),
        "install again what is damaged, and keep what is yours",
    ),
    Command(
        "manifest",
        "FILE",
        VERIFY,
        ("--manifest",),
        "write all that a result depends on",
    ),
    Command(
        "compare",
        "A [B]",
        VERIFY,
        ("--compare",),
        "what differs between A and B, or A and here",
    ),
    Command(
        "certificate",
        "FILE",
        VERIFY,
        ("--certificate",),
        "write what a fixed task computes here",
    ),
    Command(
        "report", "FILE", VERIFY, ("--report",), "write one text to attach to a report"
    ),
    Command(
        "uninstall",
        "[OPTIONS]",
        SETUP,
        ("--uninstall",),
        "remove it; what is yours is moved",
    ),
)
DOCTOR = "doctor"
VERSION = "version"


def parser() -> Parser:
    rows = [
        (f"{command.name} {command.operands}", command.help) for command in COMMANDS
    ]
    rows.insert(
        1, (DOCTOR, "check the machine and, at the quick level, the environment")
    )
    rows.append(
        (VERSION, "print the version, the commit, the clone and the environment")
    )
    lines = ["commands:"]
    for words, text in rows:
        lines.append(f"  {words:<20} {text}")
    lines += [
        "",
        "each command takes the options of its script: maximalcai verify --help",
    ]
    made = Parser(
        PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="What can be done with the environment that this command lies in.",
        epilog="\n".join(lines),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [command.name for command in COMMANDS]
    made.add_argument(
        "command",
        choices=[*names, DOCTOR, VERSION],
        metavar="COMMAND",
        help=argparse.SUPPRESS,
    )
    made.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="...", help=argparse.SUPPRESS
    )
    return made


def main(prefix: str, words: Sequence[str]) -> int:
    """Does what the words ask for with an environment; gives the exit status.

    `prefix`: its folder, or PREFIX. Whatever is told or started names
    PREFIX where that leads to it.
    """
    return run_script(PROGRAM, lambda: parse_and_work(prefix, words))


def parse_and_work(prefix: str, words: Sequence[str]) -> int:
    arguments = parser().parse_args(words or ["--help"])
    return work(find_name(Path(prefix)), arguments.command, arguments.words)


def work(prefix: Path, name: str, words: Sequence[str]) -> int:
    if name == VERSION:
        print(f"{describe_version()}, in {ROOT}")
        print(f"environment {name_in_mark(prefix)} in {prefix}")
        return 0
    if name == DOCTOR:
        return examine(prefix, words)
    for command in COMMANDS:
        if command.name == name:
            become(prefix, script_words(prefix, command, words))
    raise AssertionError(name)


def script_words(prefix: Path, command: Command, words: Sequence[str]) -> list[str]:
    """The command line of a script. The verifier runs in the environment's own Python."""
    script = str(ROOT / command.script)
    if command.script == VERIFY:
        return [str(prefix / "bin/python"), script, *command.options, *words]
    return [script, "--prefix", str(prefix), *command.options, *words]


def become(prefix: Path, words: list[str]) -> NoReturn:
    """Replaces this process by a script. Raises Stop where it does not start."""
    try:
        os.execv(words[0], words)
    except OSError as error:
        raise not_started(prefix, words[0], error) from None


def not_started(prefix: Path, program: str, error: OSError) -> Stop:
    """The error for a program that cannot be started: in most cases the environment's Python."""
    if error.errno == errno.EACCES:
        return not_allowed(prefix, program)
    rebuild = setup_command(prefix, name_in_mark(prefix), "--force")
    return Stop(f"{program} does not start ({error.strerror}); rebuild it: {rebuild}")


def not_allowed(prefix: Path, program: str) -> Stop:
    """The error for a program that this user may not run: a rebuild would be refused, too."""
    real = os.path.realpath(program)
    where = program
    if real != program:
        where = f"{program} is {real}, which"
    closed = find_closed_folder(Path(real))
    what = "it"
    reason = "Permission denied"
    if closed is not None:
        what = str(closed)
        reason = f"{closed} is closed to this user"
    own = setup_command(Path("DIR"), name_in_mark(prefix))
    return Stop(
        f"{where} this user may not run ({reason}). Ask the owner of {what} to give access, or "
        f"make an environment of your own: {own}"
    )


def find_closed_folder(path: Path) -> Path | None:
    """The first folder on the way to a path that this user may not enter."""
    for folder in reversed(path.parents):
        if not os.access(folder, os.X_OK):
            return folder
    return None


def examine(prefix: Path, words: Sequence[str]) -> int:
    """What the machine is worth, then the environment at the quick
    level; gives the worse status.
    """
    python = str(prefix / "bin/python")
    machine = [str(ROOT / SETUP), "--prefix", str(prefix), "--check-pod"]
    environment = [python, str(ROOT / VERIFY), "--level", Level.QUICK.value, *words]
    statuses = []
    for title, command in (("The machine", machine), ("The environment", environment)):
        print(title, flush=True)
        try:
            with started(command, True) as process:
                statuses.append(process.wait())
        except OSError as error:
            raise not_started(prefix, command[0], error) from None
    return max(abs(status) for status in statuses)
