"""From a created prefix to a verified one: the wheels of its layer, flash-attn,
the verifier, the manifest.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lockedenv.backends import mirror
from lockedenv.cli.options import Script, main, make_parser, make_request, usual_prefix
from lockedenv.cli.output import Steps
from lockedenv.cli.parser import Parser
from lockedenv.cli.surroundings import refuse_misleading_variables
from lockedenv.errors import Stop
from lockedenv.install.facts import asked_sources, make_job
from lockedenv.install.request import SetupRequest
from lockedenv.install.run import FINISH_STEPS, finish
from lockedenv.prefix.lifecycle import change_mark, hold
from lockedenv.prefix.mark import read_mark
from lockedenv.prefix.place import find_backend, find_prefix
from lockedenv.spec.environment import name_in_mark
from lockedenv.spec.level import USUAL

DESCRIPTION = """\
Installs the pip layer into a created environment, provides flash-attn, and verifies. Run again, it
repairs the pip layer and keeps what you have added."""
EXAMPLES = """\
examples:
  micromamba create -n maximalcai -f conda-lock.yml
  micromamba activate maximalcai && scripts/post_create.sh
  scripts/post_create.sh --flash-attn build         compile flash-attn from its source
  scripts/post_create.sh --prefix ~/maximalcai      repair this environment

default prefix: the active one (CONDA_PREFIX, VIRTUAL_ENV), or ~/maximalcai
--version prints the version
exit status: the verifier's; 1 also if something could not be installed, 2 wrong usage,
130 or 143 interrupted"""


def parser() -> Parser:
    return make_parser(
        Script(
            "post_create.sh", DESCRIPTION, EXAMPLES, usual=frozenset(["--flash-attn"])
        )
    )


def work(arguments: argparse.Namespace) -> int:
    """What the options ask for; gives the exit status."""
    path = arguments.prefix or active_prefix(arguments.environment)
    if not (path.expanduser() / "bin/python").exists():
        raise Stop(
            f"{path} has no bin/python: it is not an environment; make one with "
            "setup_runpod_environment.sh"
        )
    request = make_request(arguments, path)
    prefix = find_prefix(request.prefix)
    backend = find_backend(
        prefix.path
    )  # of the environment that is worked on, as its mark says
    refuse_misleading_variables(request.prefix, request.environment, backend)
    refuse_other_environment(request)
    steps = Steps(FINISH_STEPS, arguments.quiet, arguments.verbose)
    with hold(prefix, steps.warn):
        # A folder that is not the set-up's is marked as one that may never be removed.
        if read_mark(prefix.path) is None:
            change_mark(
                prefix,
                environment=request.environment.argument,
                cache=str(request.cache),
            )
        change_mark(prefix, backend=backend, verdicts={})
        sources = mirror.read_listings(asked_sources(request))
        job = make_job(request, prefix, sources)
        mirror.bring(job, backend, steps, archives=False)
        return finish(job, backend, request.level or USUAL, steps)


def refuse_other_environment(request: SetupRequest) -> None:
    """Raises Stop for a prefix of another environment, or of another Python than the locked one."""
    other = name_in_mark(request.prefix)
    wanted = request.environment
    if (
        read_mark(find_prefix(request.prefix).path) is not None
        and other != wanted.argument
    ):
        raise Stop(
            f"{request.prefix} is of the environment {other}, not {wanted.argument}; choose "
            "another --prefix"
        )
    pythons = []
    for folder in sorted(request.prefix.glob("lib/python3.*")):
        pythons.append(folder.name[len("python") :])
    if wanted.python not in pythons:
        has = " and ".join(pythons) or "of no known version"
        raise Stop(
            f"{request.prefix} has Python {has}, and the environment {wanted.name} is for "
            f"{wanted.python}; choose another --prefix, or --environment"
        )


def active_prefix(environment: str | None) -> Path:
    """The active environment: of those that the shell names, the one whose python
    runs this; else the usual.

    Raises Stop.
    """
    active = []
    for variable in ("CONDA_PREFIX", "VIRTUAL_ENV"):
        if os.environ.get(variable):
            active.append(Path(os.environ[variable]))
    for prefix in active:
        if prefix.resolve() == Path(sys.prefix).resolve():
            return prefix
    usual = usual_prefix(environment)
    if not active and (usual / "bin/python").exists():
        return usual
    if not active:
        raise Stop("no environment is active; name one with --prefix DIR")
    return active[0]


if __name__ == "__main__":
    sys.exit(main(parser(), work))
