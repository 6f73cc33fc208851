"""The pip backend: a virtual environment of the locked Python, and both layers as PyPI's wheels, by
hash.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from lockedenv.backends import uv_program
from lockedenv.backends.base import FileOrigin, Job, Obstacle, Offer, Space
from lockedenv.backends.cache import CacheFolder
from lockedenv.errors import Stop
from lockedenv.host.process import run
from lockedenv.host.pythons import find_python, how_to_get
from lockedenv.redaction import redact
from lockedenv.reporter import Reporter
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.locks import CondaPackage


@dataclass(frozen=True)
class Pip:
    """Both layers as wheels, in a virtual environment of the machine's Python, or of one that uv
    fetches.
    """

    name: BackendName = BackendName.PIP
    fetch_title: str = "Fetch uv"
    brings_compiler: bool = False
    brings_python: bool = False

    def offer(self, job: Job) -> Offer:
        return Offer(True, "PyPI has wheels of the same versions")

    def prefix_problem(self, path: Path) -> Obstacle | None:
        return None

    def tool_problem(self, job: Job) -> Obstacle | None:
        if job.sources.offline or job.sources.has(uv_program.uv_pin().sha256):
            return None
        return uv_program.uv_problem(job.cache)

    def space(self, job: Job) -> Space:
        return Space(fetched=0, archives=0, unpacked=0)

    def archives(self, environment: Environment) -> list[CondaPackage]:
        return []

    def origins(self, job: Job) -> list[FileOrigin]:
        return []

    def fetch(self, job: Job, reporter: Reporter) -> Path:
        uv = uv_program.bring_uv(job.cache, reporter, job.sources.offline)
        reporter.outcome(f"uv {uv_program.uv_pin().version}")
        return uv

    def create(self, job: Job, program: Path, reporter: Reporter) -> None:
        """An empty virtual environment. Raises Stop."""
        create_venv(job, program, reporter)

    def lock(self, environment: Environment) -> Path:
        return environment.lock(self.name)


def create_venv(job: Job, uv: Path, reporter: Reporter) -> None:
    """An empty virtual environment of the locked Python: the machine's, or one that uv fetches.
    Raises Stop.
    """
    version = job.environment.python
    environ = uv_program.uv_environment(job.cache, job.prefix.path, dict(os.environ))
    archives = (job.sources.offline or job.cache) / CacheFolder.PYTHON.value
    if archives.is_dir():
        environ["UV_PYTHON_CACHE_DIR"] = str(archives)
    if job.sources.offline:
        environ["UV_OFFLINE"] = "1"
    python = find_python(
        version,
        dict(os.environ),
        more=[job.cache / "python"],
        without=[job.prefix.public_path, job.prefix.container],
    )
    try:
        if python is None:
            # uv venv would not take the archive of an offline folder.
            install = [uv, "python", "install", "--no-bin", version]
            run(install, environ, f"fetching Python {version}", reporter)
        # The mark lies in the folder already.
        create = [uv, "venv", "--quiet", "--no-project", "--allow-existing"]
        command = [*create, "--python", python or version, job.prefix.path]
        run(command, environ, "making the virtual environment", reporter)
    except Stop as error:
        if "UV_PYTHON_CACHE_DIR" in environ and not job.sources.offline:
            # What a mirror gave is of no use: the next try asks the origin.
            shutil.rmtree(archives)
            create_venv(job, uv, reporter)
            return
        if python is not None:
            raise
        raise Stop(_no_python(version, job, error)) from None
    reporter.outcome(f"Python {version}: {python or 'fetched by uv'}")


def _no_python(version: str, job: Job, error: Stop) -> str:
    why = "uv could not fetch one"
    source = job.sources.address or job.sources.offline
    if source:
        why = f"{redact(str(source))} has none"
    remedy = f"put any python{version} on PATH"
    command = how_to_get(version, os.environ)
    if command:
        remedy = f"{command}, or {remedy}"
    return (
        f"no Python {version} here, and {why}: {remedy}, or use --backend conda, which brings its "
        f"own\n  {error}"
    )
