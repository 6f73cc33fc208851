"""What verify_environment.py is asked for: the options, and a frozen request of them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from lockedenv.cli.parser import Parser
from lockedenv.cli.script import ShowVersion
from lockedenv.errors import UsageError
from lockedenv.spec.level import LEVEL_NAMES, USUAL, Level

PROGRAM = "verify_environment.py"
STDOUT = "-"
EPILOG = """examples, in the environment (source ~/maximalcai/activate):
  python scripts/verify_environment.py --level quick            the locked packages, in seconds
  python scripts/verify_environment.py --only qlora,sdpa        these two checks
  python scripts/verify_environment.py --manifest results/manifest.json
  python scripts/verify_environment.py --compare results/manifest.json
  python scripts/verify_environment.py --certificate certificate.json   what a fixed task computes
  python scripts/verify_environment.py --report report.txt  what to attach to a report of a problem
  torchrun --nproc-per-node 8 scripts/verify_environment.py --distributed [--certificate FILE]

exit status: 0 all good, 1 a check failed or --compare found a difference that is not allowed,
2 wrong usage, 130 or 143 interrupted"""


@dataclass(frozen=True)
class VerifyRequest:
    """What the command line asks for; `prefix` is the environment of the Python that runs this."""

    prefix: Path
    level: Level
    only: tuple[str, ...]
    skip: tuple[str, ...]
    environment: str
    gpu: str
    timeout: int
    strict: bool
    verbose: bool
    with_uuids: bool
    json: str | None
    manifest: str | None
    report: str | None
    certificate: str | None
    compare: tuple[Path, ...]
    distributed: bool
    list: bool

    @property
    def whole(self) -> bool:
        """Whether all of the level is looked at, with the prefix's own locks:
        only then is it a verdict."""
        skipped = set(self.skip) - {"flash-attn"}
        return not (self.only or skipped or self.environment or self.gpu == "off")


def parser() -> Parser:
    p = Parser(
        prog=PROGRAM,
        description="Proves that this Python's environment is the locked one "
        "and that it works on this GPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument
    add(
        "--level",
        choices=LEVEL_NAMES,
        default=USUAL.value,
        help="quick: the locked packages; full: all (default)",
    )
    add("--only", metavar="NAME,...", default="", help="run these checks alone")
    add("--skip", metavar="NAME,...", default="", help="leave these checks out")
    add(
        "--environment",
        metavar="NAME|DIR",
        default="",
        help="compare with this one's locks (default: the prefix's own)",
    )
    add(
        "--gpu",
        choices=["auto", "require", "off"],
        default="auto",
        help="require: no GPU is a failure",
    )
    add(
        "--json",
        metavar="FILE",
        help="write the results as JSON, or what --list and --compare say; - is standard output",
    )
    add(
        "--manifest",
        metavar="FILE",
        help="write the session manifest: all that a result depends on",
    )
    add(
        "--report",
        metavar="FILE",
        help="write one text to attach to a report: results, versions, last log lines, no secrets",
    )
    add(
        "--with-uuids", action="store_true", help="the GPUs' UUIDs too, in the manifest"
    )
    add(
        "--certificate",
        metavar="FILE",
        help="write what a fixed training task computes here, and run no check",
    )
    compared = (
        "what differs between two manifests or certificates, or one and this machine"
    )
    add("--compare", metavar="FILE", nargs="+", type=Path, default=[], help=compared)
    add(
        "--distributed",
        action="store_true",
        help="under torchrun: the same environment on every rank?",
    )
    add(
        "--timeout",
        type=int,
        default=0,
        metavar="SECONDS",
        help="time limit of each check (default: its own)",
    )
    add("--strict", action="store_true", help="a warning fails too")
    add(
        "--verbose",
        action="store_true",
        help="a line for each check, not for each group of them",
    )
    add("--list", action="store_true", help="say what each check proves, and run none")
    version = "print the version and the commit"
    add(
        "--version",
        action=ShowVersion,
        nargs=0,
        default=argparse.SUPPRESS,
        help=version,
    )
    return p


def make_request(args: argparse.Namespace) -> VerifyRequest:
    """The request of a command line. Raises UsageError for options that do not go together."""
    run_no_check = args.certificate or args.distributed
    if args.compare and (run_no_check or args.manifest or args.report):
        raise UsageError(
            "--compare makes what it compares itself: leave out --certificate, --manifest, "
            "--report and --distributed"
        )
    if run_no_check and (args.json or args.manifest or args.report):
        raise UsageError(
            "--certificate and --distributed run no check: write --json, --manifest and --report "
            "in another run"
        )
    if args.timeout < 0:
        raise UsageError(f"--timeout {args.timeout}: give a number of seconds")
    fields = dict(vars(args))
    fields["level"] = Level(args.level)
    fields["only"] = _split_names("--only", args.only)
    fields["skip"] = _split_names("--skip", args.skip)
    fields["compare"] = tuple(args.compare)
    return VerifyRequest(prefix=Path(sys.prefix), **fields)


def _split_names(option: str, text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if text and not names:
        raise UsageError(f"{option} {text}: names no check; --list has the names")
    return names
