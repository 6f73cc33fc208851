"""--download-only: everything for both layers into a folder, which --offline takes,
here or where it is served.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from lockedenv.backends import download as fetch
from lockedenv.backends import mirror, uv_program
from lockedenv.backends.base import Sources
from lockedenv.backends.cache import CacheFolder
from lockedenv.backends.conda import archive_items, channel_problem
from lockedenv.cli.output import Steps
from lockedenv.cli.usable import refuse_unusable
from lockedenv.errors import Stop
from lockedenv.host.disks import free_bytes, size_text
from lockedenv.host.process import ask
from lockedenv.install.flash_attention.sources import make_prebuilt_item
from lockedenv.install.request import Installation
from lockedenv.prefix.place import Prefix
from lockedenv.spec import environment
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.programs import MICROMAMBA

STEPS = 3
UV_SECONDS = 600


def work(arguments: argparse.Namespace) -> int:
    """Collects, or says what would be collected; gives the exit status."""
    folder = arguments.download_only.expanduser().resolve()
    refuse_unusable(folder)
    wanted = environment.find(arguments.environment or "default")
    mirrors = tuple(arguments.mirrors)
    problem = uv_program.uv_problem(folder)
    if problem:
        raise Stop(str(problem))
    steps = Steps(STEPS, arguments.quiet, arguments.verbose)
    unreachable = channel_problem(wanted.conda(), mirrors)
    if arguments.dry_run:
        say_plan(wanted, folder, unreachable, steps)
        return 0
    collect(wanted, folder, mirrors, unreachable, steps)
    return 0


def say_plan(
    wanted: Environment, folder: Path, unreachable: str | None, steps: Steps
) -> None:
    needed = {}
    for backend in BackendName:
        if not (unreachable and backend.has_conda_layer):
            needed.update(mirror.list_needed_files(wanted, backend))
    total = sum(file.size for file in needed.values())
    steps.say(
        f"{len(needed)} files, about {size_text(total)}, and Python {wanted.python} would go to "
        f"{folder}, {size_text(free_bytes(folder))} free"
    )
    left_out = f"no conda archives: {unreachable}; " if unreachable else ""
    steps.say(f"{left_out}this was a dry run: nothing was changed")


def collect(
    wanted: Environment,
    folder: Path,
    mirrors: tuple[str, ...],
    unreachable: str | None,
    steps: Steps,
) -> None:
    """Fetches archives, wheels, flash-attn's source and wheel, micromamba, uv
    and Python, and lists them.
    """
    lacking = []
    archives = archive_items([*wanted.conda(), MICROMAMBA], mirrors)
    with steps.step(f"Fetch {len(archives)} conda archives"):
        if unreachable:
            steps.outcome(
                f"left out: {unreachable}; the folder will do for the pip backend alone"
            )
            lacking.append("the conda archives")
        else:
            fetch.fetch(archives, folder / "pkgs", steps)
    pins = [*wanted.wheels(BackendName.PIP), uv_program.uv_pin()]
    source = wanted.flash_attn()
    if source:
        pins.append(source)
    with steps.step(f"Fetch {len(pins)} wheels and sources"):
        uv = uv_program.bring_uv(folder, steps)
        uv_program.fetch_files(pins, folder / "wheels", uv, wanted.python, steps)
        if not fetch_prebuilt(wanted, folder, steps):
            lacking.append("flash-attn's prebuilt wheel")
    with steps.step(f"Fetch Python {wanted.python}, for machines without"):
        if not fetch_python(wanted.python, folder, uv, steps):
            lacking.append(f"Python {wanted.python}")
    mirror.write_index(folder)
    if lacking:
        steps.warn(f"not in {folder}: {', '.join(lacking)} (why is told above)")
    steps.end(
        "install from it, or from where it is served, with: scripts/setup_runpod_environment.sh "
        f"--offline {folder}"
    )


def fetch_prebuilt(wanted: Environment, folder: Path, steps: Steps) -> bool:
    """Fetches the flash-attn wheel that the lock names, if it names one;
    False if it could not be had.
    """
    prebuilt = wanted.flash_wheel()
    if not prebuilt:
        return True
    job = Installation(wanted, Prefix(folder), folder, Sources())
    item = make_prebuilt_item(job, prebuilt)
    try:
        fetch.fetch([item], folder / "wheels", steps, rounds=3)
    except Stop as error:
        steps.say(f"left out, so flash-attn will be built there: {error}")
        return False
    return True


def fetch_python(version: str, folder: Path, uv: Path, steps: Steps) -> bool:
    """Keeps the archive of a Python that uv fetches; False if it could not be had."""
    with tempfile.TemporaryDirectory() as tmp:
        environ = uv_program.uv_environment(folder, folder, dict(os.environ))
        environ["UV_PYTHON_INSTALL_DIR"] = tmp
        environ["UV_PYTHON_CACHE_DIR"] = str(folder / CacheFolder.PYTHON.value)
        command = [uv, "python", "install", "--no-bin", version]
        fetched = ask(command, UV_SECONDS, env=environ)
    if fetched.status == 0:
        return True
    last = fetched.error.strip().splitlines()[-1:]
    steps.outcome(f"left out: uv could not fetch it ({''.join(last)})")
    return False
