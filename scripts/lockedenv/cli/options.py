"""The options of the two scripts that install: the command line becomes a SetupRequest."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Callable, Sequence

from lockedenv import ROOT
from lockedenv.cli.parser import Parser
from lockedenv.cli.script import ShowVersion, run_script
from lockedenv.errors import UsageError
from lockedenv.host.places import default_cache, home
from lockedenv.install.flash_attention.target import choose_architectures
from lockedenv.install.request import FlashRequest, SetupRequest
from lockedenv.prefix.place import find_prefix
from lockedenv.spec import environment
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import LEVEL_NAMES, Level


class HelpAll(argparse.Action):
    """The option --help-all, which shows the options that --help leaves out."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for action in parser._actions:
            hidden = getattr(action, "full_help", None)
            if hidden:
                action.help = hidden
        parser.print_help()
        parser.exit()


class OptionGroup(Enum):
    """Where --help-all lists an option; the usual ones are all that --help lists."""

    USUAL = ""
    PLACES = "where from and where to"
    FLASH = "flash-attn"
    VERIFYING = "machine and verification"
    REMOVING = "rebuilding and removing"
    OUTPUT = "output"


@dataclass(frozen=True)
class Script:
    """A script that installs: what its help says.

    `usual`: its options that --help lists, besides those of both.
    """

    name: str
    description: str
    epilog: str
    usual: frozenset[str] = frozenset()


class ScriptParser(Parser):
    """The parser of a script that installs, whose options are in groups."""

    def __init__(self, script: Script) -> None:
        super().__init__(
            f"scripts/{script.name}",
            description=script.description,
            epilog=script.epilog,
            allow_abbrev=False,
            add_help=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._added_groups: dict[OptionGroup, argparse._ArgumentGroup] = {}

    def add_option(self, group: OptionGroup, *names: str, **settings: Any) -> None:
        """Adds an option; --help leaves out what is not usual."""
        if group is OptionGroup.USUAL:
            self.add_argument(*names, **settings)
            return
        if group not in self._added_groups:
            self._added_groups[group] = self.add_argument_group(group.value)
        shown = settings.pop("help")
        action = self._added_groups[group].add_argument(
            *names, help=argparse.SUPPRESS, **settings
        )
        action.full_help = shown  # type: ignore[attr-defined]


def make_parser(script: Script) -> ScriptParser:
    """The parser of a script, with the options that both have."""
    parser = ScriptParser(script)
    add = parser.add_option
    add(
        OptionGroup.USUAL,
        "--environment",
        metavar="NAME|DIR",
        help="default, current, or a folder of your own with an environment.yml and its locks "
        "(default: the one that the prefix is of)",
    )
    add(
        OptionGroup.USUAL,
        "--prefix",
        type=Path,
        metavar="DIR",
        help="the environment (default: see below)",
    )
    add(
        OptionGroup.USUAL,
        "--offline",
        metavar="DIR|URL",
        help="take everything from a folder made by --download-only, here or at an address",
    )
    add(
        OptionGroup.USUAL,
        "--verbose",
        action="store_true",
        help="print every detail and every check",
    )
    add(OptionGroup.USUAL, "--help-all", action=HelpAll, nargs=0, help="all options")
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    add(
        OptionGroup.PLACES,
        "--cache",
        type=Path,
        metavar="DIR",
        help="where downloads and built wheels are kept (default: /workspace/.cache/maximalcai on "
        "a pod, otherwise ~/.cache/maximalcai)",
    )
    flash_group = OptionGroup.FLASH
    if "--flash-attn" in script.usual:
        flash_group = OptionGroup.USUAL
    add(
        flash_group,
        "--flash-attn",
        choices=["auto", "build", "wheel", "none"],
        default="auto",
        help="wheel: its project's own, by hash; build: from its source; none: leave it out "
        "(default: the cache's, else the wheel if it fits, else built)",
    )
    add(
        OptionGroup.FLASH,
        "--arch",
        default="",
        metavar="LIST",
        help="build flash-attn for these: 90 is an H100, 80 an A100 (default: the GPUs present; "
        "without a GPU it is left out)",
    )
    add(
        OptionGroup.FLASH,
        "--jobs",
        type=int,
        metavar="N",
        help="compile jobs at a time (default: by CPUs and free memory)",
    )
    add(
        OptionGroup.FLASH,
        "--wheel",
        default="",
        metavar="FILE|URL",
        help="install this flash-attn wheel; FILE#sha256=HEX names its hash too",
    )
    add(
        OptionGroup.FLASH,
        "--sha256",
        default="",
        metavar="HEX",
        help="the hash of --wheel",
    )
    add(
        OptionGroup.VERIFYING,
        "--level",
        choices=LEVEL_NAMES,
        help="how much is verified (default: full, until that has passed)",
    )
    add(
        OptionGroup.OUTPUT,
        "--quiet",
        action="store_true",
        help="print the verdict and errors only",
    )
    add(
        OptionGroup.OUTPUT,
        "--version",
        action=ShowVersion,
        nargs=0,
        help="print the version and the commit",
    )
    return parser


def usual_prefix(name: str | None) -> Path:
    """Where the environment of a name is, if no prefix is named. Raises Stop."""
    found = environment.find(name or "default")
    if found.folder == ROOT:
        return home() / "maximalcai"
    return home() / f"maximalcai-{found.name}"


def make_request(arguments: argparse.Namespace, prefix: Path) -> SetupRequest:
    """The request that the options of both scripts make, for a prefix.

    Raises UsageError or Stop.
    """
    cache = default_cache()
    if arguments.cache:
        cache = arguments.cache.expanduser()
    cache = cache.resolve()
    # A link that the user made: the folder that it points to.
    path = find_prefix(prefix).public_path
    offline = _read_offline(arguments.offline, cache)
    wanted = _environment(arguments.environment, path)
    flash = _flash(arguments)
    # Wrong architectures are refused now, and not after the downloads.
    choose_architectures([], _find_cuda(wanted), flash.arch)
    return SetupRequest(
        prefix=path,
        environment=wanted,
        cache=cache,
        offline=offline.folder,
        address=offline.address,
        flash=flash,
        level=_level(arguments.level),
        any_disk=bool(os.environ.get("MAXIMALCAI_ANY_DISK")),
    )


def _find_cuda(wanted: Environment) -> str:
    """The CUDA of the first backend whose torch is built for one; empty for CPU builds."""
    for backend in BackendName:
        cuda = wanted.cuda(backend)
        if cuda:
            return cuda
    return ""


def _level(name: str | None) -> Level | None:
    if name is None:
        return None
    return Level(name)


def _environment(name: str | None, prefix: Path) -> Environment:
    """The named environment, or the one that the prefix is of.

    Raises Stop if a lock cannot be read.
    """
    found = environment.find(name) if name else environment.find_by_prefix(prefix)
    found.names()  # both locks can be read
    return found


@dataclass(frozen=True)
class Offline:
    """--offline.

    `folder`: what everything is taken from. `address`: what fills that folder first.
    """

    folder: Path | None = None
    address: str = ""


def _read_offline(text: str | None, cache: Path) -> Offline:
    """The value of --offline; the files of an address go to the cache. Raises UsageError."""
    if not text:
        return Offline()
    if "://" in text:
        return Offline(cache, text.rstrip("/"))
    folder = Path(text)
    if not folder.is_dir():
        raise UsageError(
            f"--offline {folder}: is not a folder; make it with --download-only {folder}"
        )
    return Offline(folder.resolve())


def _flash(arguments: argparse.Namespace) -> FlashRequest:
    """How flash-attn is to be had. Raises UsageError for options that contradict each other."""
    wheel, _, fragment = arguments.wheel.partition("#sha256=")
    sha256 = arguments.sha256 or fragment
    if sha256 and not wheel:
        raise UsageError("--sha256 is the hash of --wheel; give both")
    if wheel and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UsageError(
            "--wheel needs --sha256 with the wheel's 64 hex digits: nothing is installed that was "
            "not hashed"
        )
    if wheel and arguments.flash_attn == "none":
        raise UsageError(
            "--wheel gives a flash-attn, and --flash-attn none leaves it out; give one of them"
        )
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UsageError(f"--jobs {arguments.jobs}: give a positive number")
    return FlashRequest(
        mode=arguments.flash_attn,
        wheel=wheel,
        sha256=sha256,
        arch=arguments.arch,
        jobs=arguments.jobs,
    )


def main(
    parser: Parser,
    work: Callable[[argparse.Namespace], int],
    words: Sequence[str] | None = None,
) -> int:
    """Does a script's work with the options that it was called with; gives the exit status."""
    return run_script(Path(parser.prog).name, lambda: work(parser.parse_args(words)))
