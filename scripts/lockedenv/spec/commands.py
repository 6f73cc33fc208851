"""The commands that remedies name: always for this prefix and this environment, so that they can be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

SETUP = "scripts/setup_runpod_environment.sh"
POST_CREATE = "scripts/post_create.sh"
LOCK = "scripts/lock.sh"


def setup_command(prefix: Path, environment: str, *options: str) -> str:
    """The set-up of a prefix. `environment`: as --environment takes it; the default one needs no naming."""
    return _command(SETUP, prefix, environment, options)


def post_create_command(prefix: Path, environment: str, *options: str) -> str:
    """What puts the pip layer right, and verifies."""
    return _command(POST_CREATE, prefix, environment, options)


def lock_command(environment: str) -> str:
    """What locks one environment. `environment`: as --environment takes it."""
    return f"{LOCK} --environment {shlex.quote(environment)}"


def _command(
    script: str, prefix: Path, environment: str, options: tuple[str, ...]
) -> str:
    words = [script, "--prefix", str(prefix)]
    if environment != "default":
        words += ["--environment", environment]
    words += options
    return " ".join(shlex.quote(word) for word in words)
