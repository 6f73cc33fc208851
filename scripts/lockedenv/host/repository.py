"""What git reports about this repository, where git is installed."""

from __future__ import annotations

import os

from lockedenv import ROOT, VERSION
from lockedenv.host.process import ask

# A hook of git has these in its environment, and they name another repository.
NAME_ANOTHER = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
)


def git(*arguments: str) -> str | None:
    """What git reports about this repository, or None."""
    environ = {}
    for name, value in os.environ.items():
        if name not in NAME_ANOTHER:
            environ[name] = value
    answer = ask(["git", "-C", ROOT, *arguments], env=environ)
    return answer.output.strip() if answer.status == 0 else None


def describe_version() -> str:
    """This version, and the commit where git can tell."""
    commit = git("describe", "--always", "--dirty")
    return f"maximalcai {VERSION}, commit {commit if commit else 'unknown'}"
