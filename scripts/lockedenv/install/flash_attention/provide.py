"""flash-attn, provided: given, from the cache, or built once from its hashed source; proven after it is installed."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Dict, List, Optional, Tuple
from urllib.parse import unquote, urlsplit

from lockedenv.backends import download as fetch
from lockedenv.backends import wheels
from lockedenv.errors import Stop
from lockedenv.host import machine
from lockedenv.host.launchers import child_environment
from lockedenv.host.machine import read_json
from lockedenv.host.process import ask, clean, end_orphans, holding, run
from lockedenv.install.flash_attention import build as flash_build
from lockedenv.install.flash_attention import plan as flash_plan
from lockedenv.install.flash_attention.plan import Torch
from lockedenv.install.request import Installation
from lockedenv.prefix.records import INSTALLED, file_sha256, read_prefix
from lockedenv.reporter import Reporter
from lockedenv.spec import locks
from lockedenv.verify.checklist import find_check
from lockedenv.verify.checks import FAIL
from lockedenv.verify.child import run_child

MARKER = "maximalcai-flash-attn"  # in the prefix: which wheel was installed
GLIBC = platform.libc_ver()[1]
NO_SOURCE = "not part of this environment: it has no locks/flash-attn.txt"
NO_PREBUILT = "none is locked for this environment"
NO_GPU = "skipped: no GPU here to build for (--arch 90 builds for an H100 all the same)"


def cached_wheel(cache: Path, base: str, reporter: Reporter) -> Optional[Path]:
    """The wheel of this key in the cache that runs here, if it is what its JSON says; a damaged one is set aside."""
    folders = [
        path for path in cache.glob(f"{base}-*") if flash_plan.runs_here(path.name, base, GLIBC)
    ]
    for folder in sorted(
        folders,
        key=lambda path: machine.version_tuple(path.name.rpartition("-glibc")[2]),
        reverse=True,
    ):
        info = read_json(folder / "wheel.json")
        if info.get("sha256") and file_sha256(folder / str(info.get("wheel"))) == info["sha256"]:
            return folder / str(info["wheel"])
        aside = folder.rename(folder.with_name(f"damaged-{time.time_ns()}-{folder.name}"))
        reporter.note(f"the cached wheel is not what was built; set aside as {aside}")
    return None


def keep(wheel: Path, folder: Path, info: Dict[str, object]) -> Path:
    """Puts a built wheel and its JSON into the cache, both or neither."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}-", dir=folder.parent))
    shutil.copy2(wheel, beside / wheel.name)
    document = {"wheel": wheel.name, "sha256": file_sha256(beside / wheel.name), **info}
    (beside / "wheel.json").write_text(json.dumps(document, indent=2) + "\n")
    beside.chmod(0o755)
    (
        shutil.rmtree(beside) if folder.exists() else beside.rename(folder)
    )  # another pod may have been first
    return folder / wheel.name


def prove(prefix: Path, version: str, gpu: bool) -> Tuple[str, bool]:
    """(what is wrong with the flash-attn that is installed, whether that is the wheel's own fault); ("", False) if nothing.

    Its fault: no import, another version, wrong values; not a GPU that is full, gone or of another architecture.
    """
    program = "import torch, flash_attn, flash_attn_2_cuda; from flash_attn import flash_attn_func; print(flash_attn.__version__)"
    status, said, why = ask(
        [prefix / "bin/python", "-c", program], 120, env=clean(dict(os.environ))
    )
    if status != 0:
        return (
            f"it does not import: {''.join(why.strip().splitlines()[-1:])}",
            status is not None and status > 0,
        )
    if said.split()[-1] != version:
        return f"version {said.strip()} was imported, not {version}", True
    if gpu:
        result = run_child(
            find_check("flash-attn"),
            prefix / "bin/python",
            "cuda",
            child_environment(prefix, "cuda", dict(os.environ)),
        )
        if result.verdict == FAIL:
            return result.summary, bool(result.measured)  # figures: it ran, and gave wrong values
    return "", False


def _given_wheel(job: Installation, torch: Torch, reporter: Reporter) -> Path:
    """The wheel of --wheel, checked by name and hash before anything is done with it. Raises Stop."""
    name = unquote(urlsplit(job.flash.wheel).path).rsplit("/", 1)[-1]
    if misfit := flash_plan.wheel_misfit(name, torch):
        raise Stop(misfit)
    if "://" in job.flash.wheel:
        fetch.fetch(
            [fetch.Item(name, job.flash.sha256, 0, [job.flash.wheel])],
            job.cache / "wheels",
            reporter.note,
            reporter.quiet,
        )
        return job.cache / "wheels" / name
    wheel = Path(job.flash.wheel).expanduser().resolve()
    if not wheel.is_file():
        raise Stop(f"{job.flash.wheel} is not a file")
    if (has := file_sha256(wheel)) != job.flash.sha256:
        raise Stop(
            f"{job.flash.wheel} has sha256 {has}, not {job.flash.sha256}: it is not installed"
        )
    return wheel


def _source(pin: locks.PipPackage, job: Installation, reporter: Reporter) -> Path:
    """The locked source archive, hash checked: from --offline, the cache or the index. Raises Stop or FetchError."""
    for folder in filter(
        None, [job.sources.offline and job.sources.offline / "wheels", job.cache / "wheels"]
    ):
        if found := wheels.by_hash(folder, "flash_attn-*.tar.gz", pin.sha256):
            return found
    if job.sources.offline:
        raise Stop(
            f"{job.sources.offline}/wheels has no source of flash-attn {pin.version} with the locked hash; "
            f"collect it anew with --download-only {job.sources.offline}"
        )
    uv = wheels.bring_uv(job.cache, reporter)
    wheels.fetch_files([pin], job.cache / "wheels", uv, job.environment.python, reporter)
    return _source(pin, job, reporter)


def outlook(job: Installation, backend: str, gpus: List[machine.Gpu]) -> str:
    """What `install` is going to do, in a line, before there is a prefix and anything is fetched."""
    mode, pin, prebuilt = (
        job.flash.mode,
        job.environment.flash_attn(),
        job.environment.flash_wheel(),
    )
    if mode == "none" or job.flash.wheel:
        return f"{job.flash.wheel}, as given" if job.flash.wheel else "left out, as asked"
    try:
        torch = flash_plan.locked_torch(job.environment, backend)
        archs = flash_plan.architectures(gpus, torch.cuda, job.flash.arch)
        if not pin or not archs and mode != "wheel":
            return NO_GPU if pin else NO_SOURCE
        base, named = flash_plan.key(pin, torch, archs), ", ".join("sm_" + arch for arch in archs)
        if any(
            flash_plan.runs_here(path.name, base, GLIBC)
            for path in (job.cache / "flash-attn").glob(f"{base}-*")
        ):
            return f"the wheel that the cache has for {named}"
        misfit = (
            flash_plan.prebuilt_misfit(prebuilt, torch, archs, GLIBC) if prebuilt else NO_PREBUILT
        )
        if mode == "wheel" or mode == "auto" and not misfit:
            return misfit or f"the prebuilt wheel of flash-attn {pin.version}"
        tools = "the lock's nvcc and g++"
        if backend != "conda":
            found = flash_plan.find_toolchain(job.prefix.path, torch.cuda, dict(os.environ))
            tools = f"nvcc {found.nvcc} and g++ {found.gcc}"
        jobs, said = _jobs(job)
        return f"built for {named} with {tools}, {said}: {flash_plan.build_time(archs, jobs)}"
    except Stop as error:
        return str(error)


def _jobs(job: Installation) -> Tuple[int, str]:
    jobs, why = flash_plan.job_count(
        machine.cpu_limit(), machine.memory_limit()[1], int(os.environ.get("NVCC_THREADS", "1"))
    )
    if job.flash.jobs:
        jobs, why = job.flash.jobs, f"as asked; {jobs} would be the choice for {why}"
    return jobs, f"{jobs} job{'s' * (jobs > 1)} at a time: {why}"


def install(job: Installation, uv: Path, gpus: List[machine.Gpu], reporter: Reporter) -> None:
    """Installs flash-attn: given, cached, prebuilt or built; proves it, and takes it out again if it is wrong. Raises Stop."""
    prefix, cache, mode = job.prefix.path, job.cache / "flash-attn", job.flash.mode
    marker = prefix / MARKER
    there = marker.read_text() if marker.exists() else ""

    def installed(name: str) -> bool:
        noted = read_json(prefix / INSTALLED).get("records", {}).get("flash-attn")
        return (
            there == name
            and record_of(prefix) == noted
            and not prove(prefix, name.split("-")[1].split("+")[0], False)[0]
        )

    if job.flash.wheel:
        wheel = _given_wheel(job, flash_plan.probe_torch(prefix), reporter)
        name = f"{wheel.name} {job.flash.sha256} --wheel"
        return (
            reporter.note(f"{wheel.name} is installed")
            if installed(name)
            else put(wheel, name, job, uv, bool(gpus), reporter)
        )
    pin, prebuilt = job.environment.flash_attn(), job.environment.flash_wheel()
    own = f"{prebuilt.filename} {prebuilt.sha256}" if prebuilt else ""
    given = there.endswith(" --wheel")
    if mode in ("auto", "wheel") and there == own and installed(own):
        return reporter.note(f"{there.split()[0]} is installed")
    if mode == "auto" and given and installed(there):
        return reporter.note(f"{there.split()[0]} is installed, as --wheel gave it")
    stale = ".whl " in there and not given  # a prebuilt wheel of an earlier lock
    if not pin or not (gpus or job.flash.arch or mode == "wheel" or stale):
        return reporter.note(NO_GPU if pin else NO_SOURCE)
    torch = flash_plan.probe_torch(prefix)
    archs = flash_plan.architectures(gpus, torch.cuda, job.flash.arch)
    base = flash_plan.key(pin, torch, archs)
    if mode != "wheel" and there.startswith(f"{base}-") and installed(there):
        return reporter.note(f"{there} is installed")
    cache.mkdir(parents=True, exist_ok=True)
    with holding(cache / f"{base}.lock", f"the flash-attn wheel {base}", patience=4 * 3600):
        found = cached_wheel(cache, base, reporter) if mode != "wheel" else None
        if not found and mode != "build":
            try:
                wheel = _prebuilt_wheel(job, prebuilt, torch, archs, reporter)
                return put(wheel, own, job, uv, bool(gpus), reporter)
            except Stop as error:
                if mode == "wheel" or not archs:
                    raise
                if prebuilt:
                    reporter.note(f"the prebuilt wheel is not taken: {error}")
        wheel = found or build_and_keep(job, base, torch, archs, pin, reporter)
        reporter.note(f"{wheel.name} {'from the cache' if found else 'built'}")
    put(wheel, wheel.parent.name, job, uv, bool(gpus), reporter, cached=True)


def record_of(prefix: Path) -> str:
    """The sha256 of the RECORD of the flash-attn that is installed; empty if none is."""
    return "".join(
        file_sha256(dist.path / "RECORD")
        for dist in read_prefix(prefix).dists
        if dist.name == "flash-attn"
    )


def put(
    wheel: Path,
    name: str,
    job: Installation,
    uv: Path,
    gpu: bool,
    reporter: Reporter,
    cached: bool = False,
) -> None:
    """Installs a wheel, proves it, and notes its name in the prefix; one that is wrong goes, from the cache too. Raises Stop."""
    prefix, version = job.prefix.path, wheel.name.split("-")[1].split("+")[0]
    environ = wheels.uv_environment(job.cache, prefix, dict(os.environ))
    command = [
        uv,
        "pip",
        "install",
        "--python",
        prefix / "bin/python",
        "--no-deps",
        "--no-index",
        "--reinstall",
        wheel,
    ]
    run(command, environ, "installing flash-attn", quiet=True)
    problem, proven = prove(prefix, version, gpu)
    if proven:
        run(
            [uv, "pip", "uninstall", "--python", prefix / "bin/python", "flash-attn"],
            environ,
            "removing flash-attn",
            quiet=True,
        )
        if cached:
            shutil.rmtree(wheel.parent)
        also = ", from the cache too" if cached else ""
        raise Stop(
            f"flash-attn was installed and is not right, so it was removed again{also}: {problem}"
        )
    left = read_json(prefix / INSTALLED)
    left["records"] = {**left.get("records", {}), "flash-attn": record_of(prefix)}
    machine.write_atomically(prefix / INSTALLED, json.dumps(left, indent=0) + "\n")
    machine.write_atomically(prefix / MARKER, name)
    reporter.note(
        f"{wheel.name} is installed" + f", and its proof could not run: {problem}" * bool(problem)
    )


def _prebuilt_wheel(
    job: Installation,
    prebuilt: Optional[locks.PrebuiltWheel],
    torch: Torch,
    archs: List[str],
    reporter: Reporter,
) -> Path:
    """The wheel that flash-attn's own project has built, by hash, if it fits. Raises Stop."""
    misfit = flash_plan.prebuilt_misfit(prebuilt, torch, archs, GLIBC) if prebuilt else NO_PREBUILT
    if misfit or not prebuilt:
        raise Stop(f"flash-attn's prebuilt wheel: {misfit}")
    fetch.fetch(
        [prebuilt_item(job, prebuilt)],
        job.cache / "wheels",
        reporter.note,
        reporter.quiet,
        rounds=3,
    )
    return job.cache / "wheels" / prebuilt.filename


def prebuilt_item(job: Installation, wheel: locks.PrebuiltWheel) -> fetch.Item:
    """Where it is: in the offline folder, else at its own address."""
    source = (
        (job.sources.offline / "wheels" / wheel.filename).as_uri()
        if job.sources.offline
        else wheel.url
    )
    return fetch.Item(wheel.filename, wheel.sha256, 0, [source])


def build_and_keep(
    job: Installation,
    base: str,
    torch: Torch,
    archs: List[str],
    pin: locks.PipPackage,
    reporter: Reporter,
) -> Path:
    """Builds the wheel and keeps it in the cache; gives its place there. Raises Stop."""
    prefix, cache = job.prefix.path, job.cache
    tools = flash_plan.find_toolchain(prefix, torch.cuda, dict(os.environ))
    if tools.warning:
        reporter.note(f"warning: {tools.warning}")
    source = _source(pin, job, reporter)
    jobs, said = _jobs(job)
    reporter.note(
        f"building for {', '.join('sm_' + a for a in archs)} with nvcc {tools.nvcc} and g++ {tools.gcc}"
    )
    reporter.note(f"{said}: {flash_plan.build_time(archs, jobs)}")
    # One folder a wheel, so that the next run goes on from the object files of one that was interrupted (ninja does that); on one
    # file system, because setup.py renames.
    folder = cache / "flash-attn" / flash_plan.full_key(base, tools, GLIBC)
    work = wheels.temporary("flash-attn", folder)
    end_orphans(f"TMPDIR={work}")  # the caller holds the wheel's lock
    wheels.refuse_foreign(work)
    (cache / "logs").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    unpacked = flash_build.unpack(source, work)
    wheel = flash_build.build(
        unpacked, work, prefix, tools, archs, jobs, cache / "logs" / f"{folder.name}.log", reporter
    )
    built = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    info = {
        "built": built,
        "seconds": round(time.monotonic() - started, 1),
        "jobs": jobs,
        "nvcc": tools.nvcc,
    }
    kept = keep(wheel, folder, {**info, "gcc": tools.gcc, "torch": asdict(torch), "archs": archs})
    shutil.rmtree(work, ignore_errors=True)
    return kept
