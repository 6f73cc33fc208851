"""The two commands that install flash-attn, on an installed prefix."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fixtures.commands import ROOT, clean_environ, sh

BY_SETUP = ["setup_runpod_environment.sh", "--backend", "pip"]
BY_POST_CREATE = ["post_create.sh"]  # hashes all of the prefix each time


def provide(
    prefix: Path,
    *options: Any,
    by: list[str] = BY_SETUP,
    project: Path = ROOT,
    check: bool = True,
    **environ: str,
) -> str:
    """What the command prints, at the quick level; with `check` it has to exit 0, without it 1."""
    script = project / "scripts" / by[0]
    command = [
        script,
        *by[1:],
        "--prefix",
        prefix,
        "--level",
        "quick",
        "--verbose",
        *options,
    ]
    done = sh(*command, check=check, env=clean_environ(**environ))
    expected = 0 if check else 1
    assert done.returncode == expected, done.stdout
    return done.stdout


def copy_project(folder: Path) -> Path:
    """A copy of the repository in which a lock can be changed."""
    folder.mkdir()
    for name in ("scripts", "locks", "environments"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("requirements.txt", "conda-lock.yml", "environment.yml"):
        shutil.copy2(ROOT / name, folder)
    return folder
