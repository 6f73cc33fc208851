"""flash-attn, provided: the first source that gives a wheel that works.

It is installed, proven, and noted.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Sequence

from lockedenv.backends import uv_program
from lockedenv.errors import Stop
from lockedenv.host.gpus import Gpu
from lockedenv.host.limits import cpu_limit
from lockedenv.host.locking import holding
from lockedenv.host.process import run
from lockedenv.install.flash_attention.installed import (
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
    find_successor,
)
from lockedenv.install.flash_attention.target import (
    choose_architectures,
    locked_torch,
    probe_torch,
)
from lockedenv.install.request import Installation
from lockedenv.prefix.inventory import Package, read_inventory, write_inventory
from lockedenv.prefix.make_inventory import with_package
from lockedenv.prefix.records import read_prefix, read_record_rows
from lockedenv.reporter import Reporter
from lockedenv.spec.layers import BackendName, Layer

NO_SOURCE = "not part of this environment: it has no locks/flash-attn.txt"
NO_GPU = "skipped: no GPU. Use --arch 90 to build for an H100 anyway"
# A build by another run is waited for.
_PATIENCE = 4 * 3600


def describe_outlook(
    job: Installation, backend: BackendName, gpus: Sequence[Gpu]
) -> str:
    """What `install` is going to do, in a line, before there is a prefix
    and anything is fetched.
    """
    if job.flash.mode == "none" and not job.flash.wheel:
        return "left out, as asked"
    torch = locked_torch(job.environment, backend)
    try:
        archs: list[str] = []
        if not job.flash.wheel and not _is_left_to_the_lock(job):
            archs = choose_architectures(gpus, torch.cuda, job.flash.arch)
            reason = _find_reason_to_skip(job, bool(archs))
            if reason:
                return reason
        wanted = Wanted(job, torch, tuple(archs), backend)
        reasons = []
        for source in SOURCES:
            prospect = source.prospect(wanted)
            if prospect.usable:
                return prospect.text
            if prospect.text:
                reasons.append(prospect.text)
        return "; ".join(reasons)
    except Stop as error:
        return str(error)


def install(
    job: Installation,
    uv: Path,
    gpus: Sequence[Gpu],
    reporter: Reporter,
    prover: Prover = prove,
) -> None:
    """Installs flash-attn from the first source that gives one that works.

    Raises Stop if none does.
    """
    prefix = job.prefix.path
    if _say_what_is_there(job, "", reporter):
        return
    successor = find_successor(job)
    if successor and _is_left_to_the_lock(job):
        reporter.outcome(
            f"{successor.name} {successor.version} is a wheel of the lock: nothing is built"
        )
        compile_common_kernels(job, gpus, int(cpu_limit()), reporter)
        return
    archs: list[str] = []
    if not job.flash.wheel:
        reason = _find_reason_to_skip(job, bool(gpus or job.flash.arch))
        if reason:
            reporter.outcome(reason)
            return
        torch = probe_torch(prefix)
        archs = choose_architectures(gpus, torch.cuda, job.flash.arch)
    else:
        torch = probe_torch(prefix)
    wanted = Wanted(job, torch, tuple(archs))
    if _say_what_is_there(job, wanted.key, reporter):
        return
    wanted.cache.mkdir(parents=True, exist_ok=True)
    name = wanted.key or "given"
    lock = wanted.cache / f"{name}.lock"
    with holding(lock, f"the flash-attn wheel {name}", reporter.warn, _PATIENCE):
        _install_from_sources(wanted, uv, bool(gpus), reporter, prover)


def _is_left_to_the_lock(job: Installation) -> bool:
    """Whether FlashAttention comes with the lock's own wheels, and nothing else was asked for."""
    return (
        job.flash.mode == "auto"
        and not job.flash.wheel
        and find_successor(job) is not None
    )


def _find_reason_to_skip(job: Installation, has_target: bool) -> str:
    """Why nothing is installed, or an empty string.

    `has_target`: there is a GPU, or --arch names one.
    """
    if not job.environment.flash_attn():
        return NO_SOURCE
    if has_target or job.flash.mode == "wheel":
        return ""
    noted = read_installed_wheel(job.prefix.path)
    if (
        noted and noted.origin is WheelOrigin.PREBUILT
    ):  # of an earlier lock: it is replaced
        return ""
    return NO_GPU


def _say_what_is_there(job: Installation, key: str, reporter: Reporter) -> bool:
    """Whether the prefix has the wheel that is wanted, as it was installed, and it
    imports; then it is named.
    """
    prefix = job.prefix.path
    noted = read_installed_wheel(prefix)
    if not noted or not any(source.has_given(noted, job, key) for source in SOURCES):
        return False
    if (
        not is_as_installed(prefix, noted)
        or prove_import(prefix, noted.version).problem
    ):
        return False
    if noted.key:
        reporter.outcome(f"{noted.filename} ({noted.key}) is installed")
    elif noted.origin is WheelOrigin.GIVEN and not job.flash.wheel:
        reporter.outcome(f"{noted.filename} is installed, as --wheel gave it")
    else:
        reporter.outcome(f"{noted.filename} is installed")
    return True


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

    One that is wrong goes again, from the cache too.

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
        write_inventory(prefix, with_package(inventory, package, prefix))
