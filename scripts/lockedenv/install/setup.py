"""From a bare machine to a verified environment (see scripts/setup_runpod_environment.sh --help)."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

from lockedenv import locks, machine
from lockedenv.console import Steps, Stop, redact
from lockedenv.install import fetch, post_create
from lockedenv.install.fetch import Item
from lockedenv.install.wheels import bring_uv, uv_environment
from lockedenv.locks import CondaPackage
from lockedenv.locks import digest as lock_digest
from lockedenv.machine import size_text, version_tuple
from lockedenv.prefix import read_stamp
from lockedenv.process import holding, run, run_script

# conda-forge's archive of micromamba; 2.5.0 is the version whose installing of a lock was studied.
MICROMAMBA = CondaPackage(
    "micromamba",
    "2.5.0",
    "https://conda.anaconda.org/conda-forge/linux-64/micromamba-2.5.0-1.tar.bz2",
    "389eb59ea20333bf6993e7b7c2f43428",
    "4ae6e5cdff233616c94d4bb69cf77a572d67b0b227073de12c3aa0ff23795ded",
    6647388,
)
OLDEST_MICROMAMBA = (2, 0)
# The one archive whose size the channel's metadata lacked when it was locked is pytorch's; its Python 3.12 twin has
# 1,571,072,276 bytes.
UNKNOWN_SIZE = 1_600_000_000
# Installed bytes per downloaded byte: wheels 6.0 GB of 3.2 GB, measured; conda's archives are packed tighter.
WHEEL_GROWTH, CONDA_GROWTH = 1.9, 2.5
STEPS = 3 + post_create.STEPS


@dataclass
class Plan:
    """What a run is to do. `needs` are (folder, bytes, what for), one for each file system."""

    options: post_create.Options
    backend: str
    why: str
    mirrors: List[str]
    needs: List[Tuple[Path, int, str]]


# Deciding --------------------------------------------------------------------------------------------------------


def refuse_other_machines() -> None:
    """Raises Stop where the locked packages cannot run."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Stop(f"this is {platform.system()} {platform.machine()}; the locked packages are for Linux x86_64 "
                   "(a contributor's laptop: conda env update -f environment-dev.yml)")  # fmt: skip
    glibc = platform.libc_ver()
    if glibc[0] == "glibc" and version_tuple(glibc[1]) < (2, 28):
        raise Stop(f"this machine has glibc {glibc[1]}; the locked packages need 2.28 (Ubuntu 20.04 or newer)")


def refuse_unwritable(folders: List[Path]) -> None:
    for folder in folders:
        parent = machine.existing_parent(folder)
        try:  # root may write anywhere, says os.access, and cannot
            with tempfile.TemporaryFile(dir=parent):
                pass
        except OSError as error:
            said = f"{folder} cannot be made in {parent} ({error.strerror}); choose another with --prefix or --cache"
            raise Stop(said) from None


def archive_items(packages: List[CondaPackage], mirrors: List[str]) -> List[Item]:
    """The conda layer's archives, from the mirrors first and then from the address in the lock."""
    return [Item(p.filename, p.sha256, p.size, [*(fetch.address(mirror, p.url) for mirror in mirrors), p.url]) for p in packages]


def channel_problem(mirrors: List[str]) -> Optional[str]:
    """Which of the lock's channels does not answer, and how; None if all do."""
    if not shutil.which("curl"):
        return "curl is not installed (apt-get install curl)"
    smallest = {}
    for package in sorted(locks.read_conda_lock().packages, key=lambda p: -p.size):
        smallest[package.channel] = package

    def ask(package: CondaPackage) -> Optional[str]:
        said = ""
        for source in archive_items([package], mirrors)[0].sources:
            command = ["curl", "--disable", "--config", "-", "--head", "--location", "--fail", "--silent", "--show-error"]
            done = subprocess.run(
                [*command, "--connect-timeout", "5", "--max-time", "10"], input=f'url = "{source}"\n',
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            if done.returncode == 0:
                return None
            said = redact(" ".join(done.stderr.split()))
        return f"the channel {package.channel} does not answer ({said})"

    with ThreadPoolExecutor(len(smallest)) as pool:
        return next(filter(None, pool.map(ask, smallest.values())), None)


def choose_backend(asked: str, offline: Optional[Path], mirrors: List[str], cache: Path) -> Tuple[str, str]:
    """(backend, why)."""
    if asked != "auto":
        return asked, "as asked"
    if offline:
        there = (offline / "pkgs").is_dir()
        return ("conda", "the offline folder has its archives") if there else ("pip", "the offline folder has wheels alone")
    packages = locks.read_conda_lock().packages
    if all((cache / "pkgs" / p.filename).exists() for p in packages):
        return "conda", "all its archives are in the cache"
    problem = channel_problem(mirrors)
    return ("pip", problem) if problem else ("conda", "its channels answer")


def needed_space(backend: str, prefix: Path, cache: Path) -> List[Tuple[Path, int, str]]:
    """(folder, bytes, what for) for each file system that will be written; what the cache already has is not counted."""
    together = machine.same_filesystem(prefix, cache)
    if backend == "pip":
        wheels = sum(p.size for p in locks.read_pip_lock(locks.REQUIREMENTS))
        unpacked, archives, beside = int(wheels * WHEEL_GROWTH), 0 if together else wheels, 0
        if read_stamp(prefix).get("backend") == "pip" and together:
            unpacked //= 4  # the cache holds what the old prefix links to
    else:
        packages = locks.read_conda_lock().packages
        beside = sum(p.size or UNKNOWN_SIZE for p in packages)
        archives = sum(p.size or UNKNOWN_SIZE for p in packages if not (cache / "pkgs" / p.filename).exists())
        wheels = sum(p.size for p in locks.read_pip_lock(locks.PIP_LOCK))
        unpacked = int(beside * CONDA_GROWTH + wheels * WHEEL_GROWTH)
    if together:
        return [(prefix, unpacked + archives, "the environment and the cache")]
    return [(prefix, unpacked + beside, "the environment"), (cache, archives, "the cache")]


def refuse_small_disks(needs: List[Tuple[Path, int, str]], backend: str) -> None:
    for folder, needed, what in needs:
        free = machine.free_bytes(folder)
        if free < needed:
            raise Stop(f"too little disk for the {backend} backend: {what} need about {size_text(needed)} at {folder}, "
                       f"{size_text(free)} are free; free {size_text(needed - free)}, or choose another disk with "
                       "--prefix or --cache")  # fmt: skip


# Doing -----------------------------------------------------------------------------------------------------------


def fetch_archives(plan: Plan, steps: Steps) -> None:
    """Every archive of the conda layer into the cache's pkgs, whole and right. Raises FetchError or Stop."""
    options, packages = plan.options, locks.read_conda_lock().packages
    folder = options.cache / "pkgs"
    items = archive_items(packages, plan.mirrors)
    if options.offline:
        for item in items:
            item.sources = [(options.offline / "pkgs" / item.name).as_uri()]
    with holding(options.cache / "fetch.lock", f"the cache {options.cache}"):
        got = fetch.fetch(items, folder, lambda text: steps.say(f"      {text}"), options.quiet)
    total = sum((folder / item.name).stat().st_size for item in items)
    steps.say(f"      {len(items)} archives, {size_text(total)}, hashes right; {size_text(got)} fetched now")


def bring_micromamba(plan: Plan, steps: Steps) -> Path:
    """micromamba from PATH if it is new enough, otherwise the pinned one, hash checked. Raises FetchError."""
    found = shutil.which("micromamba")
    if found:
        said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
        if version_tuple(said) >= OLDEST_MICROMAMBA:
            return Path(found)
    cache = plan.options.cache
    binary = cache / "bin" / f"micromamba-{MICROMAMBA.version}"
    if not binary.exists():
        item = archive_items([MICROMAMBA], plan.mirrors)[0]
        if plan.options.offline:
            item.sources = [(plan.options.offline / "pkgs" / item.name).as_uri()]
        fetch.fetch([item], cache / "pkgs", steps.say, quiet=True)
        binary.parent.mkdir(parents=True, exist_ok=True)
        beside = binary.with_name(f".micromamba.{os.getpid()}")
        with tarfile.open(cache / "pkgs" / item.name) as archive:
            member = archive.extractfile("bin/micromamba")
            assert member is not None
            beside.write_bytes(member.read())
        beside.chmod(0o755)
        beside.replace(binary)
    return binary


def create_conda(plan: Plan, micromamba: Path) -> None:
    """micromamba create from the lock, out of the cache alone. Raises Stop if it fails or leaves less than the lock."""
    options = plan.options
    root, packages = options.cache / "mamba", options.cache / "pkgs"
    root.mkdir(parents=True, exist_ok=True)
    if not machine.same_filesystem(options.cache, options.prefix):
        # Unpacking makes 100,000 small files, slow on a network volume, and they could not be linked into the prefix.
        packages = unpack_folder(options.prefix)
        shutil.rmtree(packages, ignore_errors=True)
        packages.mkdir()
        for package in locks.read_conda_lock().packages:
            shutil.copyfile(options.cache / "pkgs" / package.filename, packages / package.filename)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("CONDA_", "MAMBA_"))}
    # HOME too: micromamba lists every prefix in ~/.conda/environments.txt, and nothing outside prefix and cache is written.
    environ.update(CONDA_PKGS_DIRS=str(packages), MAMBA_ROOT_PREFIX=str(root), HOME=str(root))
    command = [str(micromamba), "create", "--yes", "--no-rc", "-p", str(options.prefix), "-f", str(locks.CONDA_LOCK)]
    try:
        run(command, environ, "micromamba create", options.quiet)
    finally:
        shutil.rmtree(unpack_folder(options.prefix), ignore_errors=True)
    records = {p.stem for p in (options.prefix / "conda-meta").glob("*.json")}
    missing = [p.name for p in locks.read_conda_lock().packages if p.stem not in records]
    if missing or not (options.prefix / "bin/python").exists():
        raise Stop(f"micromamba said it was done, and {len(missing)} packages are missing ({', '.join(missing[:3])}...); "
                   "is it older than 2.0? Take it from PATH, and the pinned one is fetched")  # fmt: skip


def unpack_folder(prefix: Path) -> Path:
    """Where archives are unpacked if the cache is on another disk than the prefix; removed afterwards."""
    return prefix.with_name(prefix.name + ".pkgs")


def create_venv(plan: Plan, uv: Path) -> None:
    """An empty virtual environment of Python 3.11: the machine's, or one that uv brings. Raises Stop."""
    environ = uv_environment(plan.options.cache, plan.options.prefix, dict(os.environ))
    command = [str(uv), "venv", "--python", "3.11", "--no-project", str(plan.options.prefix)]
    run(command, environ, "making a virtual environment of Python 3.11", plan.options.quiet)


def state(prefix: Path) -> str:
    """absent, finished, changed (its locks are no longer the repository's), unfinished, or foreign."""
    if not prefix.exists() or (prefix.is_dir() and not any(prefix.iterdir())):
        return "absent"
    stamp = read_stamp(prefix)
    if stamp.get("backend") in ("conda", "pip"):
        return "finished" if stamp.get("locks") == lock_digest(stamp["backend"]) else "changed"
    making = prefix.with_name(prefix.name + ".making")
    return "unfinished" if making.exists() else "foreign"


def install(plan: Plan, steps: Steps) -> int:
    """Creates, finishes and verifies the prefix; gives the exit status. An old prefix is put back if that fails."""
    options = plan.options
    prefix = options.prefix
    old, making = prefix.with_name(prefix.name + ".old"), prefix.with_name(prefix.name + ".making")
    with steps.step("Fetch the archives" if plan.backend == "conda" else "Fetch uv"):
        if plan.backend == "conda":
            fetch_archives(plan, steps)
            tool = bring_micromamba(plan, steps)
        else:
            tool = bring_uv(options.cache, steps, options.offline)
    now = state(prefix)
    if now in ("finished", "changed"):
        if old.exists():
            shutil.rmtree(old)
        prefix.rename(old)
    elif now == "unfinished":
        shutil.rmtree(prefix)
    making.touch()
    try:
        with steps.step(f"Create {prefix}"):
            create_conda(plan, tool) if plan.backend == "conda" else create_venv(plan, tool)
        status = post_create.finish(options, plan.backend, steps)
    except BaseException:
        shutil.rmtree(prefix, ignore_errors=True)
        if old.exists():
            old.rename(prefix)
            print(f"the old environment is back at {prefix}", file=sys.stderr)
        making.unlink()
        raise
    if status and old.exists():
        shutil.rmtree(prefix)
        old.rename(prefix)
        print(f"the new environment did not verify; the old one is back at {prefix}", file=sys.stderr)
    shutil.rmtree(old, ignore_errors=True)
    making.unlink()
    return status


def download_only(folder: Path, mirrors: List[str], steps: Steps, quiet: bool) -> None:
    """Everything for both layers into a folder: archives, wheels, flash-attn's source, micromamba, uv."""
    archives = archive_items([*locks.read_conda_lock().packages, MICROMAMBA], mirrors)
    say = lambda text: steps.say(f"      {text}")  # noqa: E731
    problem = channel_problem(mirrors)
    with steps.step(f"Fetch {len(archives)} conda archives"):
        if problem:
            steps.say(f"      left out: {problem}; the folder will do for the pip backend alone")
        else:
            fetch.fetch(archives, folder / "pkgs", say, quiet)
    pins = locks.read_pip_lock(locks.REQUIREMENTS) + locks.read_pip_lock(locks.FLASH_ATTN_LOCK)
    with steps.step(f"Fetch {len(pins)} wheels and sources"):
        post_create.fetch_wheels(pins, folder / "wheels", steps)
    steps.end(f"install from it with: scripts/setup_runpod_environment.sh --offline {folder}")


def enter_text(prefix: Path, backend: str, cache: Path) -> str:
    if backend == "pip":
        return f"enter it with:  source {prefix}/bin/activate"
    tool = shutil.which("micromamba") or cache / "bin" / f"micromamba-{MICROMAMBA.version}"
    return f'enter it with:  eval "$({tool} shell hook -s bash)" && micromamba activate {prefix}'


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="scripts/setup_runpod_environment.sh",
        description="Turns a bare Linux machine into the locked environment, verified. Run it again at any time.",
        epilog="Default prefix: ~/maximalcai. Exit status: 0 verified, 1 not, 2 wrong usage.",
        allow_abbrev=False,
    )
    post_create.add_options(p)
    p.add_argument("--backend", choices=["auto", "conda", "pip"], default="auto",
                   help="auto: conda where its channels answer, otherwise PyPI's wheels of the same versions")  # fmt: skip
    p.add_argument("--mirror", default=os.environ.get("MAXIMALCAI_MIRROR", ""), metavar="URL,...",
                   help="fetch conda archives from here first (default: $MAXIMALCAI_MIRROR); any is safe")  # fmt: skip
    p.add_argument("--download-only", type=Path, metavar="DIR", help="collect everything in DIR, and install nothing")
    p.add_argument("--force", action="store_true", help="make a finished environment anew")
    p.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return p


def main(arguments: Optional[List[str]] = None) -> int:
    args = parser().parse_args(arguments)
    mirrors = [m for m in args.mirror.split(",") if m]

    def work() -> int:
        refuse_other_machines()
        if args.download_only:
            folder = args.download_only.expanduser().absolute()
            refuse_unwritable([folder])
            download_only(folder, mirrors, Steps(2, args.quiet), args.quiet)
            return 0
        prefix = (args.prefix or Path.home() / "maximalcai").expanduser().absolute()
        options = post_create.options_of(args, prefix)
        refuse_unwritable([prefix, options.cache])
        if args.dry_run:
            return set_up(args, options, mirrors)
        with holding(prefix.with_name(prefix.name + ".lock"), f"the environment {prefix}"):
            return set_up(args, options, mirrors)

    return run_script("setup_runpod_environment.sh", work)


def set_up(args: argparse.Namespace, options: post_create.Options, mirrors: List[str]) -> int:
    """The run proper, with the prefix's lock held."""
    prefix, old = options.prefix, options.prefix.with_name(options.prefix.name + ".old")
    now = state(prefix)
    if now == "foreign":
        raise Stop(f"{prefix} is there and was not made by this script; choose another --prefix, or remove it yourself")
    if now == "finished" and not args.force and not args.dry_run:
        backend = read_stamp(prefix)["backend"]
        shutil.rmtree(old, ignore_errors=True)  # an earlier run was killed after it had finished
        with contextlib.suppress(FileNotFoundError):
            prefix.with_name(prefix.name + ".making").unlink()
        options.level = "quick"
        steps = Steps(1, options.quiet)
        steps.say(f"{prefix} is finished, and made from these locks: nothing to do but verify it (--force makes it anew)")
        status = post_create.again(options, steps)
        steps.end(f"{'verified' if status == 0 else 'not verified'}: {prefix}")
        steps.say(enter_text(prefix, backend, options.cache))
        return status
    steps = Steps(STEPS, options.quiet)
    with steps.step("Look at the machine"):
        backend, why = choose_backend(args.backend, options.offline, mirrors, options.cache)
        plan = Plan(options, backend, why, mirrors, needed_space(backend, prefix, options.cache))
        describe(plan, now, steps)
        post_create.refuse_misleading_variables(prefix)
        problem = machine.driver_problem(post_create.find_gpus())
        if problem:
            raise Stop(problem)
        refuse_small_disks(plan.needs, backend)
    if args.dry_run:
        steps.say("this was a dry run: nothing was changed")
        return 0
    status = install(plan, steps)
    if status == 0:
        steps.end(f"verified: {prefix}")
        steps.say(enter_text(prefix, backend, options.cache))
    else:
        print(f"{prefix} is not verified: see the checks that failed above", file=sys.stderr)
    return status


def describe(plan: Plan, now: str, steps: Steps) -> None:
    """What is going to be done, and where."""
    said = {"absent": "", "finished": " (anew: --force)", "changed": " (anew: the locks have changed)",
            "unfinished": " (anew: an earlier run did not finish)"}  # fmt: skip
    steps.say(f"      backend      {plan.backend}: {plan.why}")
    steps.say(f"      environment  {plan.options.prefix}{said[now]}")
    steps.say(f"      cache        {plan.options.cache}")
    for folder, needed, what in plan.needs:
        free = machine.free_bytes(folder)
        steps.say(f"      disk         {what}: about {size_text(needed)} of {size_text(free)} free at {folder}")
    if len(plan.needs) > 1:
        steps.say("      the cache is on another disk: everything is unpacked beside the environment, so that it can be linked")


if __name__ == "__main__":
    sys.exit(main())
