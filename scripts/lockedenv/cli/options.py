"""What the two scripts that install are asked for, and how they start."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from lockedenv import ROOT
from lockedenv.errors import Stop
from lockedenv.host.machine import default_cache, home
from lockedenv.host.process import ShowVersion, run_script
from lockedenv.install.flash_attention import plan as flash_plan
from lockedenv.prefix.lifecycle import Prefix
from lockedenv.spec import environment
from lockedenv.spec.environment import Environment


class Options(argparse.Namespace):
    """The parsed options. `level` None: what the prefix's past asks for.

    `offline` is a folder made by --download-only, or the cache, into which its files come from `source`, where it is served.
    """

    target: Prefix
    of: Environment
    cache: Path
    offline: Optional[Path]
    force: bool = False  # the set-up alone has these
    json: bool = False
    any_pod: bool = False
    pod: List[Dict[str, Any]] = []  # what was found of the machine
    mirrors: List[str]  # without a value here: argparse would take it for given
    source: str = ""
    lists: Dict[str, Dict[str, str]] = {}  # mirror -> sha256 -> path

    def usual(self) -> Path:
        """Where the named environment is, if no prefix is named."""
        named = environment.find(self.environment or "default")
        return home() / ("maximalcai" + f"-{named.name}" * (named.folder != ROOT))

    def settle(self, path: Path) -> None:
        """Makes the paths absolute, with `path` as the prefix, whose own environment is meant if none is named.

        Raises Stop for options that contradict each other.
        """
        if self.sha256 and not self.wheel:
            raise Stop("--sha256 is the hash of --wheel; give both")
        if self.wheel and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise Stop(
                "--wheel needs --sha256 with the wheel's 64 hex digits: nothing is installed that was not hashed"
            )
        self.cache = (self.cache.expanduser() if self.cache else default_cache()).resolve()
        if isinstance(self.offline, str):
            self.source, self.offline = self.offline.rstrip("/"), self.cache
        elif self.offline and not self.offline.is_dir():
            raise Stop(
                f"--offline {self.offline}: is not a folder; make it with --download-only {self.offline}"
            )
        if self.jobs is not None and self.jobs < 1:
            raise Stop(f"--jobs {self.jobs}: give a positive number")
        self.offline = self.offline.resolve() if self.offline else None
        try:
            self.target = Prefix(path.expanduser().resolve())  # through a link: what it points to
        except RuntimeError as error:
            raise Stop(f"--prefix {path}: {error}; name another") from None
        self.of = (
            environment.find(self.environment)
            if self.environment
            else environment.of(self.target.path)
        )
        self.of.names()  # both locks can be read
        flash_plan.architectures([], self.of.cuda("conda") or self.of.cuda("pip"), self.arch)


def make_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of a script, with the options that both have."""
    parser = argparse.ArgumentParser(
        f"scripts/{name}",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(mirrors=[])
    add = parser.add_argument
    add("--prefix", type=Path, metavar="DIR", help="the environment (default: see below)")
    add(
        "--environment",
        metavar="NAME|DIR",
        help="default, current, or a folder of your own with an environment.yml and its "
        "locks (default: the one that the prefix is of)",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where downloads and built wheels are kept "
        "(default: /workspace/.cache/maximalcai on a pod, otherwise ~/.cache/maximalcai)",
    )
    add(
        "--offline",
        type=lambda text: text if "://" in text else Path(text),
        metavar="DIR|URL",
        help="take everything from a folder made by --download-only, here or at an address",
    )
    add(
        "--arch",
        default="",
        metavar="LIST",
        help="build flash-attn for these: 90 is an H100, 80 an A100 "
        "(default: the GPUs present; without a GPU it is left out)",
    )
    add("--jobs", type=int, metavar="N", help="compile jobs (default: by CPUs and free memory)")
    add(
        "--flash-attn",
        choices=["auto", "build", "wheel", "none"],
        default="auto",
        help="wheel: its project's own, by hash; build: from its source; none: leave it out "
        "(default: the cache's, else the wheel if it fits, else built)",
    )
    add("--wheel", default="", metavar="FILE|URL", help="install this flash-attn wheel")
    add("--sha256", default="", metavar="HEX", help="the hash of --wheel")
    add(
        "--level",
        choices=["quick", "full"],
        help="how much is verified (default: full, until that has passed)",
    )
    add("--quiet", action="store_true", help="print the verdict and errors only")
    add("--version", action=ShowVersion, nargs=0, help="print the version and the commit")
    return parser


def main(parser: argparse.ArgumentParser, work: Callable[[Options], int]) -> int:
    """Does a script's work with the options that it was called with; gives the exit status."""
    options = parser.parse_args(namespace=Options())
    return run_script(Path(parser.prog).name, lambda: work(options))
