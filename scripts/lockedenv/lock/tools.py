"""The programs that lock.sh runs, and the message where one is missing."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from lockedenv import ROOT
from lockedenv.errors import Stop
from lockedenv.host.process import ask

# conda-lock cannot read the output of micromamba 2.6 and newer:
#   https://github.com/conda/conda-lock/issues/906
MICROMAMBA = "https://micro.mamba.pm/api/micromamba/linux-64/2.5.0"
GET_TOOLS = (
    f"conda env create -f {ROOT}/environment-dev.yml && conda activate maximalcai-dev; or without "
    "conda: python3 -m venv ~/lock-tools && ~/lock-tools/bin/pip install conda-lock==4.0.3 uv && "
    f"curl -Ls {MICROMAMBA} | tar -xj -C ~/lock-tools bin/micromamba && "
    "export PATH=~/lock-tools/bin:$PATH"
)
_FRAMES = re.compile(r"^  File .*\n    .*\n(?: *\^+\n)?", re.M)
_LINES = 25


def run_tool(*command: str) -> str:
    """Standard output of a command.

    Raises Stop with what it said, without a traceback's frames, if it fails.
    """
    done = ask(command, timeout=3600, cwd=ROOT)
    if done.status != 0:
        lines = _FRAMES.sub("", done.output + done.error).strip().splitlines()[-_LINES:]
        name = Path(command[0]).name
        raise Stop(f"{name} {command[1]} failed ({done.status}):\n" + "\n".join(lines))
    return done.output


def find_solver() -> str:
    """The conda program that conda-lock solves with. Raises Stop."""
    solver = os.environ.get("CONDA_LOCK_SOLVER") or shutil.which("micromamba")
    if not solver:
        raise Stop(
            "micromamba is not on PATH and CONDA_LOCK_SOLVER is not set; conda-lock, uv and "
            f"micromamba 2.5.0 come with: {GET_TOOLS}"
        )
    return solver


def require_tools() -> None:
    """Raises Stop unless everything that locking needs is there.

    The message names all that is missing, and how to get it.
    """
    missing = []
    for name in ("conda-lock", "uv"):
        if not shutil.which(name):
            missing.append(name)
    if not os.environ.get("CONDA_LOCK_SOLVER") and not shutil.which("micromamba"):
        missing.append("micromamba 2.5.0")
    if missing:
        raise Stop(
            f"{', '.join(missing)} not on PATH; all that locking needs comes with: {GET_TOOLS}"
        )
