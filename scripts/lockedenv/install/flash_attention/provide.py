"""flash-attn, provided: carries out what decide.py has decided.

A wheel comes from the first source that gives one that works; it is installed, proven, and noted.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from lockedenv.backends import uv_program
from lockedenv.errors import Stop
from lockedenv.host.limits import cpu_limit
from lockedenv.host.locking import holding
from lockedenv.host.process import run
from lockedenv.install.flash_attention.decide import FlashAction, FlashPlan
from lockedenv.install.flash_attention.installed import (
    RECORD_FILE,
    InstalledWheel,
    WheelOrigin,
    is_as_installed,
    read_installed_wheel,
    read_record_hash,
    write_installed_wheel,
)
from lockedenv.install.flash_attention.precompile import compile_common_kernels
from lockedenv.install.flash_attention.proof import Prover, prove, prove_import
from lockedenv.install.flash_attention.sources import (
    SOURCES,
    BroughtWheel,
    Wanted,
    WheelSource,
)
from lockedenv.install.flash_attention.target import probe_torch
from lockedenv.install.request import Installation
from lockedenv.prefix.inventory import Package, read_inventory, write_inventory
from lockedenv.prefix.make_inventory import with_package
from lockedenv.prefix.records import read_prefix, read_record_rows
from lockedenv.reporter import Reporter
from lockedenv.spec.layers import Layer

# A build by another run is waited for.
_PATIENCE = 4 * 3600


def install(
    plan: FlashPlan,
    job: Installation,
    uv: Path,
    reporter: Reporter,
    prover: Prover = prove,
) -> None:
    """Carries the decision on flash-attn out. What is wanted and is there already stays.

    Raises Stop if no source gives a wheel that works.
    """
    # Asked without a key first: that needs no torch. A built wheel has a key, and is asked below.
    present = find_present_wheel(job, "")
    if present:
        reporter.outcome(describe_present_wheel(present, job))
        return
    if plan.action is FlashAction.REFUSE:
        raise Stop(plan.text)
    if plan.action is FlashAction.LEAVE_OUT:
        reporter.outcome(plan.text)
        return
    if plan.action is FlashAction.COMPILE_KERNELS:
        reporter.outcome(plan.text)
        compile_common_kernels(job, plan.kernel_targets, int(cpu_limit()), reporter)
        return
    wanted = Wanted(job, probe_torch(job.prefix.path), plan.archs)
    present = find_present_wheel(job, wanted.key)
    if present:
        reporter.outcome(describe_present_wheel(present, job))
        return
    wanted.cache.mkdir(parents=True, exist_ok=True)
    name = wanted.key or "given"
    lock = wanted.cache / f"{name}.lock"
    with holding(lock, f"the flash-attn wheel {name}", reporter.warn, _PATIENCE):
        _install_from_sources(wanted, uv, plan.has_gpu, reporter, prover)


def find_present_wheel(job: Installation, key: str) -> InstalledWheel | None:
    """The wheel in the prefix, if it is the wanted one, as it was installed, and it imports.

    `key`: what a built one must be for; empty if unknown. Starts the prefix's interpreter.
    """
    prefix = job.prefix.path
    noted = read_installed_wheel(prefix)
    if noted is None:
        return None
    if not any(source.has_given(noted, job, key) for source in SOURCES):
        return None
    if not is_as_installed(prefix, noted):
        return None
    if prove_import(prefix, noted.version).problem:
        return None
    return noted


def describe_present_wheel(wheel: InstalledWheel, job: Installation) -> str:
    if wheel.key:
        return f"{wheel.filename} ({wheel.key}) is installed"
    if wheel.origin is WheelOrigin.GIVEN and not job.flash.wheel:
        return f"{wheel.filename} is installed, as --wheel gave it"
    return f"{wheel.filename} is installed"


def _install_from_sources(
    wanted: Wanted, uv: Path, gpu: bool, reporter: Reporter, prover: Prover
) -> None:
    for source in SOURCES:
        try:
            wheel = source.bring(wanted, reporter)
            if wheel:
                put_wheel(wheel, wanted.job, uv, gpu, reporter, prover)
                return
        except Stop as error:
            if not _gives_way(source, wanted):
                raise
            reporter.say(f"the prebuilt wheel is not taken: {error}")
    raise Stop(f"no source has a flash-attn wheel for --flash-attn {wanted.mode}")


def _gives_way(source: WheelSource, wanted: Wanted) -> bool:
    """Whether the next source is asked where this one fails: nothing else than the prebuilt
    wheel was asked for by name.
    """
    is_prebuilt = source.origin is WheelOrigin.PREBUILT
    return is_prebuilt and wanted.mode == "auto" and bool(wanted.key)


def put_wheel(
    wheel: BroughtWheel,
    job: Installation,
    uv: Path,
    gpu: bool,
    reporter: Reporter,
    prover: Prover = prove,
) -> InstalledWheel:
    """Installs a wheel, proves it, and notes it in the prefix.

    One that is wrong is removed again, from the cache too.

    Raises Stop.
    """
    prefix = job.prefix.path
    _refuse_shared_files(wheel.path, prefix)
    environ = uv_program.uv_environment(job.cache, prefix, dict(os.environ))
    python = prefix / "bin/python"
    options = ["--no-deps", "--no-index", "--reinstall"]
    command = [uv, "pip", "install", "--python", python, *options, wheel.path]
    run(command, environ, "installing flash-attn", reporter)
    installed = InstalledWheel(
        filename=wheel.path.name,
        sha256=wheel.sha256,
        origin=wheel.origin,
        key=wheel.key,
        record_sha256=read_record_hash(prefix),
    )
    proof = prover(prefix, installed.version, gpu)
    if proof.wheel_at_fault:
        command = [uv, "pip", "uninstall", "--python", python, "flash-attn"]
        run(command, environ, "removing flash-attn", reporter)
        also = ""
        if wheel.origin in (WheelOrigin.CACHED, WheelOrigin.BUILT):
            shutil.rmtree(wheel.path.parent)
            also = ", from the cache too"
        raise Stop(
            f"flash-attn was installed and is not right, so it was removed again{also}: "
            f"{proof.problem}"
        )
    write_installed_wheel(prefix, installed)
    _note_in_inventory(prefix, installed)
    text = f"{installed.filename} is installed"
    if proof.problem:
        text += f", and its proof could not run: {proof.problem}"
    reporter.outcome(text)
    return installed


def _refuse_shared_files(wheel: Path, prefix: Path) -> None:
    """Raises Stop for a wheel that has a file in common with another package: each
    would overwrite the other's.

    flash-attn 2 and flash-attn-4 share the folder flash_attn, and some releases of 2 hold a
    flash_attn/cute of their own.
    """
    if not zipfile.is_zipfile(wheel):
        return  # uv says what is wrong with it
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    for dist in read_prefix(prefix).dists:
        if dist.name == "flash-attn":
            continue
        try:
            rows = read_record_rows(dist.path / "RECORD")
        except (OSError, ValueError):
            continue  # the checks name it
        for row in rows:
            if row.path in names:
                raise Stop(
                    f"{wheel.name} and the installed {dist.name} {dist.version} both have "
                    f"{row.path}: they cannot be installed together; use "
                    "--flash-attn build, which leaves that part out, or --flash-attn none"
                )


def _note_in_inventory(prefix: Path, installed: InstalledWheel) -> None:
    """Adds the wheel to the inventory of a prefix that has one."""
    inventory = read_inventory(prefix)
    if inventory:
        package = Package("flash-attn", installed.version, installed.sha256, Layer.PIP)
        write_inventory(prefix, with_package(inventory, package, prefix, [RECORD_FILE]))
