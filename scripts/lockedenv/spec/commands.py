"""The commands that remedies name: for this prefix and this environment.

Those of the set-up work from any folder. What locks is run in the clone, beside the specification.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from lockedenv import ROOT

SETUP = "scripts/setup_runpod_environment.sh"
POST_CREATE = "scripts/post_create.sh"
LOCK = "scripts/lock.sh"
DEFAULT = "default"  # the environment that the scripts take where none is named


def setup_command(prefix: Path, environment: str, *options: str) -> str:
    """The set-up of a prefix. `environment`: as --environment takes it."""
    return _command(SETUP, prefix, environment, options)


def post_create_command(prefix: Path, environment: str, *options: str) -> str:
    """What puts the pip layer right, and verifies."""
    return _command(POST_CREATE, prefix, environment, options)


def lock_command(environment: str) -> str:
    """What locks one environment, in the clone. `environment`: as --environment takes it."""
    return shlex.join([LOCK, "--environment", environment])


def _command(
    script: str, prefix: Path, environment: str, options: tuple[str, ...]
) -> str:
    words = [str(ROOT / script), "--prefix", str(prefix)]
    if environment != DEFAULT:
        words += ["--environment", environment]
    return shlex.join([*words, *options])
