"""The packages that people added: their list is kept while an environment is rebuilt, and
they are put back after it.
"""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

from lockedenv.backends import uv_program
from lockedenv.backends.base import Job
from lockedenv.errors import Stop
from lockedenv.host.files import write_atomically
from lockedenv.host.process import run
from lockedenv.prefix.extras import list_added
from lockedenv.prefix.place import Prefix, mark_or_none
from lockedenv.prefix.status import is_ours
from lockedenv.reporter import Reporter
from lockedenv.spec.environment import REQUIREMENTS

TITLE = "# What was in the environment beyond its lock."


def write_list(prefix: Prefix) -> Path | None:
    """Writes what was added beside the prefix, with what an earlier run could not put back;
    None if there is nothing.
    """
    lines = []
    if is_ours(prefix):
        lines = list_added(prefix.path)
    earlier = not_restored(prefix)
    if earlier:
        for line in earlier.read_text(encoding="utf-8").splitlines():
            if line not in lines and not line.startswith("#"):
                lines.append(line)
    if not lines:
        return None
    listed = prefix.beside(f"maximalcai-extras-{time.strftime('%Y%m%d-%H%M%S')}.txt")
    write_atomically(listed, "\n".join([TITLE, *lines, ""]))
    return listed


def not_restored(prefix: Prefix) -> Path | None:
    """The list of the user's packages that an earlier run could not install again."""
    mark = mark_or_none(prefix.path)
    if mark is None or not mark.missing_packages:
        return None
    listed = Path(mark.missing_packages)
    return listed if listed.is_file() else None


def restore(job: Job, listed: Path, uv: Path, reporter: Reporter) -> bool:
    """Installs the listed packages, the locked ones held; whether it could."""
    environ = uv_program.uv_environment(job.cache, job.prefix.path, dict(os.environ))
    try:
        run(
            restore_words(job, listed, uv),
            environ,
            "installing your packages",
            reporter,
        )
    except Stop as error:
        reporter.warn(str(error))
        return False
    return True


def restore_words(job: Job, listed: Path, uv: Path) -> list[str]:
    """The command that installs the packages of a list without touching a locked one."""
    constraints = job.environment.folder / REQUIREMENTS
    words = [
        uv,
        "pip",
        "install",
        "--python",
        job.prefix.path / "bin/python",
        "-r",
        listed,
    ]
    return [str(word) for word in [*words, "-c", constraints]]


def restore_command(job: Job, listed: Path) -> str:
    """The same for people, with the uv of the prefix."""
    return shlex.join(restore_words(job, listed, job.prefix.path / "bin/uv"))
