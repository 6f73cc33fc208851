"""From a bare machine to a verified environment (see
scripts/setup_runpod_environment.sh --help).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

from lockedenv import ROOT
from lockedenv.backends.registry import BACKENDS
from lockedenv.cli import check_pod, download_only, uninstall
from lockedenv.cli.options import (
    OptionGroup,
    Script,
    main,
    make_parser,
    make_request,
    usual_prefix,
)
from lockedenv.cli.output import INDENT, Steps
from lockedenv.cli.parser import Parser
from lockedenv.cli.plan_text import plan_json, plan_lines, plan_summary, rebuild_lines
from lockedenv.cli.surroundings import read_surroundings
from lockedenv.cli.usable import refuse_unusable
from lockedenv.errors import Stop, UsageError
from lockedenv.host.versions import version_tuple
from lockedenv.install.facts import PrefixFacts, read_facts, read_prefix_facts
from lockedenv.install.plan import (
    Plan,
    PlanAction,
    is_finished,
    plan_installation,
    plan_verification,
    refuse_prefix,
)
from lockedenv.install.request import SetupRequest
from lockedenv.install.run import SETUP_STEPS, VERIFY_STEPS, carry_out, verify_read_only
from lockedenv.prefix.lifecycle import hold
from lockedenv.prefix.place import find_prefix
from lockedenv.prefix.recovery import recover
from lockedenv.prefix.refused_places import refuse_place
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.platform_tags import GLIBC
from lockedenv.spec.specification import SPEC

EXAMPLES = """examples:
  scripts/setup_runpod_environment.sh                        the default one, into ~/maximalcai
  scripts/setup_runpod_environment.sh --environment current  today's, into ~/maximalcai-current
  scripts/setup_runpod_environment.sh --dry-run              what would be done, and where
  scripts/setup_runpod_environment.sh --force                rebuild, with what you have added
  scripts/setup_runpod_environment.sh --download-only /media/usb, then there: --offline /media/usb

default prefix: ~/maximalcai, or ~/maximalcai-NAME for another environment
--version prints the version
exit status: 0 verified, 1 not, 2 wrong usage, 130 or 143 interrupted"""


def parser() -> Parser:
    made = make_parser(
        Script(
            "setup_runpod_environment.sh",
            "Turns a bare Linux machine into the locked environment, verified. Run it "
            "again at any time.",
            EXAMPLES,
        )
    )
    add = made.add_option
    add(
        OptionGroup.USUAL,
        "--force",
        action="store_true",
        help="rebuild a finished environment; the old one stays until it is verified",
    )
    add(
        OptionGroup.USUAL,
        "--check-pod",
        action="store_true",
        help="say what this machine is worth, its disks and network too; 20 s, and nothing is kept "
        "but uv",
    )
    add(
        OptionGroup.USUAL,
        "--download-only",
        type=Path,
        metavar="DIR",
        help="collect everything in DIR, and install nothing",
    )
    add(
        OptionGroup.USUAL,
        "--uninstall",
        action="store_true",
        help="remove the environment and what was made for it; what is yours is moved or left",
    )
    add(
        OptionGroup.USUAL,
        "--dry-run",
        action="store_true",
        help="say what would be done, and do nothing",
    )
    add(
        OptionGroup.PLACES,
        "--backend",
        choices=["auto", *map(str, BACKENDS)],
        default="auto",
        help="auto: conda where its channels answer, otherwise PyPI's wheels of the same versions",
    )
    add(
        OptionGroup.PLACES,
        "--mirror",
        default=os.environ.get("MAXIMALCAI_MIRROR", ""),
        metavar="URL,...",
        dest="mirrors",
        type=split_addresses,
        help="fetch from here first: a conda channel's mirror, or where a folder of "
        "--download-only is served (default: $MAXIMALCAI_MIRROR); any is safe",
    )
    add(
        OptionGroup.VERIFYING,
        "--any-pod",
        action="store_true",
        help="go on where the machine should be given back",
    )
    add(
        OptionGroup.REMOVING,
        "--drop-extras",
        action="store_true",
        help="in a rebuild: leave out the packages that you added; their list is kept",
    )
    add(
        OptionGroup.REMOVING,
        "--keep-extras",
        action="store_true",
        help="the default, and needs no naming",
    )
    add(
        OptionGroup.REMOVING,
        "--cache-too",
        action="store_true",
        help="with --uninstall: the cache too, which other environments may be made from",
    )
    add(
        OptionGroup.OUTPUT,
        "--json",
        action="store_true",
        help="with --dry-run: the plan as JSON on standard output",
    )
    return made


def split_addresses(text: str) -> list[str]:
    """The addresses of a list with commas."""
    return [address for address in text.split(",") if address]


def work(arguments: argparse.Namespace) -> int:
    """What the options ask for; gives the exit status."""
    refuse_other_machines()
    refuse_contradictions(arguments)
    if arguments.download_only:
        return download_only.work(arguments)
    prefix = arguments.prefix or usual_prefix(arguments.environment)
    if arguments.uninstall:
        return uninstall.work(arguments, prefix)
    request = make_setup_request(arguments, prefix)
    quiet = arguments.quiet or arguments.json
    verbose = arguments.verbose or arguments.dry_run
    refuse_places(request)
    if not arguments.check_pod and is_read_only(request.prefix):
        place = read_prefix_facts(request, ROOT)
        if is_finished(request, place):
            steps = Steps(1, quiet, verbose)
            return verify_in_place(request, place, arguments.json, steps)
    for folder in (request.prefix, request.cache):
        refuse_unusable(folder)
    if arguments.check_pod:
        return check_pod.work(request)
    steps = Steps(SETUP_STEPS, quiet, verbose)
    if request.dry_run:
        return set_up(request, arguments.json, steps)
    # Nothing that was written before this line is left (`refuse_unusable` tries a file and removes
    # it). From here the lock is held, and whatever changes the prefix or what is beside it follows.
    prefix = find_prefix(request.prefix)
    with hold(prefix, steps.warn):
        recover(prefix, steps.warn)
        return set_up(request, arguments.json, steps)


def refuse_places(request: SetupRequest) -> None:
    """Raises Stop for a prefix or a cache that cannot be used, before a file is written there."""
    refuse_place(find_prefix(request.prefix), request.cache)
    if request.backend is not None:
        problem = BACKENDS[request.backend].prefix_problem(request.prefix)
        if problem:
            raise Stop(str(problem))


def make_setup_request(arguments: argparse.Namespace, prefix: Path) -> SetupRequest:
    """The request of both scripts' options, and of those that this script alone has.

    Raises UsageError or Stop.
    """
    backend = None
    if arguments.backend != "auto":
        backend = BackendName(arguments.backend)
    return replace(
        make_request(arguments, prefix),
        mirrors=tuple(arguments.mirrors),
        backend=backend,
        force=arguments.force,
        keep_extras=not arguments.drop_extras,
        any_pod=arguments.any_pod,
        dry_run=arguments.dry_run,
    )


def set_up(request: SetupRequest, as_json: bool, steps: Steps) -> int:
    """Plans, and does what the plan says unless only the plan was asked
    for; gives the exit status.
    """
    place = read_prefix_facts(request, ROOT)
    refuse_prefix(request, place)
    finished = is_finished(request, place)
    say_if_edited(request.environment, steps)
    if finished:
        steps.total = VERIFY_STEPS
        plan = plan_verification(request, place)
        say_finished(plan, steps)
    else:
        plan = plan_installation(request, read_facts(request, place, read_surroundings))
        show_plan(plan, steps)
    if request.dry_run:
        end_dry_run(plan, as_json, steps)
        return 0
    return carry_out(plan, steps)


def say_if_edited(environment: Environment, steps: Steps) -> None:
    """One line where environment.yml was edited after it was locked: what
    is installed is the lock.
    """
    if environment.edited_since_locked():
        steps.say(
            f"{environment.folder / SPEC} was edited after it was locked, and the lock is what is "
            f"installed; lock it anew with: scripts/lock.sh --environment {environment.argument}"
        )


def show_plan(plan: Plan, steps: Steps) -> None:
    """Prints what is going to be done. Raises Stop for what is in the way."""
    if plan.early_problems:
        raise Stop(str(plan.early_problems[0]))
    with steps.step("Look at the machine"):
        if steps.verbose or plan.problems:
            for line in plan_lines(plan):
                steps.say(INDENT + line)
        else:
            steps.outcome(plan_summary(plan))
            for line in rebuild_lines(plan):
                steps.say(line)
        if plan.problems:
            raise Stop(str(plan.problems[0]))


def verify_in_place(
    request: SetupRequest, place: PrefixFacts, as_json: bool, steps: Steps
) -> int:
    """A finished environment on a read-only disk: it is verified, and nothing is written."""
    plan = plan_verification(request, place)
    say_finished(plan, steps)
    if request.dry_run:
        end_dry_run(plan, as_json, steps)
        return 0
    return verify_read_only(plan, steps)


def end_dry_run(plan: Plan, as_json: bool, steps: Steps) -> None:
    """The last words of --dry-run, and with --json the plan on standard output."""
    steps.say("this was a dry run: nothing was changed")
    if as_json:
        print(plan_json(plan))


def say_finished(plan: Plan, steps: Steps) -> None:
    assert plan.action is PlanAction.VERIFY
    steps.say(
        f"{plan.job.prefix.public_path} is installed, from these locks: it is verified again "
        "(--force rebuilds it)"
    )


def is_read_only(prefix: Path) -> bool:
    """Whether a prefix is there and its disk cannot be written to."""
    return prefix.is_dir() and not os.access(prefix, os.W_OK)


def refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Raises UsageError for options that cannot be meant together."""
    modes = []
    if arguments.download_only:
        modes.append("--download-only")
    if arguments.check_pod:
        modes.append("--check-pod")
    if arguments.uninstall:
        modes.append("--uninstall")
    if len(modes) > 1:
        raise UsageError(f"{' and '.join(modes)} are different tasks: give one of them")
    if arguments.json and modes:
        raise UsageError(
            f"--json is the plan of --dry-run: give both, and no {modes[0]}"
        )
    if arguments.json and not arguments.dry_run:
        raise UsageError("--json is the plan of --dry-run: give both")
    if arguments.download_only and arguments.offline:
        raise UsageError(
            "--download-only fetches what --offline later takes everything from: give one of them"
        )
    if arguments.cache_too and not arguments.uninstall:
        raise UsageError("--cache-too goes with --uninstall: give both")
    if arguments.uninstall and arguments.force:
        raise UsageError(
            "--uninstall removes the environment, --force makes it again: give one of them"
        )
    if arguments.keep_extras and arguments.drop_extras:
        raise UsageError("--keep-extras and --drop-extras: give one of them")


def refuse_other_machines() -> None:
    """Raises Stop where the locked packages cannot run."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Stop(
            f"this is {platform.system()} {platform.machine()}; the locked packages are for Linux "
            "x86_64 (a contributor's laptop: conda env update -f environment-dev.yml)"
        )
    name, glibc = platform.libc_ver()
    if name == "glibc" and version_tuple(glibc) < version_tuple(GLIBC):
        raise Stop(
            f"this machine has glibc {glibc}; the locked packages need {GLIBC} (Ubuntu 20.04 "
            "or newer)"
        )


if __name__ == "__main__":
    sys.exit(main(parser(), work))
