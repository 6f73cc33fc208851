"""From a created prefix to a verified one: the wheels of its layer, flash-attn, the verifier, the manifest."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

from lockedenv import ROOT, locks, machine
from lockedenv.console import Steps, Stop
from lockedenv.install import fetch, flash
from lockedenv.install.wheels import bring_uv, index_items, uv_environment, uv_folder
from lockedenv.installed import file_sha256
from lockedenv.locks import digest as lock_digest
from lockedenv.machine import POD_VOLUME, default_cache, write_atomically
from lockedenv.prefix import stamp_path
from lockedenv.process import run, run_script
from lockedenv.verify.checks.surroundings import misleading

STEPS = 3


@dataclass
class Options:
    """`offline` is a folder made by --download-only. `level` is the verifier's."""

    prefix: Path
    cache: Path
    offline: Optional[Path]
    flash_attn: bool
    flash: flash.Options
    level: str
    quiet: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that both scripts have."""
    parser.add_argument("--prefix", type=Path, metavar="DIR", help="the environment (default: see above)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where downloads and built wheels are kept "
                        "(default: /workspace/.cache/maximalcai on a pod, otherwise ~/.cache/maximalcai)")  # fmt: skip
    parser.add_argument("--offline", type=Path, metavar="DIR", help="take everything from a folder made by --download-only")
    parser.add_argument("--arch", default="", metavar="LIST", help="build flash-attn for these: 90 is an H100, 80 an A100 "
                        "(default: the GPUs present; none: not built)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="compile jobs (default: by CPUs and free memory)")
    parser.add_argument("--wheel", default="", metavar="FILE|URL", help="install this flash-attn wheel instead of building")
    parser.add_argument("--sha256", default="", metavar="HEX", help="the hash of --wheel")
    parser.add_argument("--no-flash-attn", action="store_true", help="leave flash-attn out")
    parser.add_argument("--level", choices=["quick", "full"], default="full", help="how much is verified (default: full)")
    parser.add_argument("--quiet", action="store_true", help="print the verdict and errors only")


def options_of(args: argparse.Namespace, prefix: Path) -> Options:
    """The parsed options, with paths made absolute. Raises Stop for those that contradict each other."""
    if args.sha256 and not args.wheel:
        raise Stop("--sha256 is the hash of --wheel; give both")
    if args.offline and not args.offline.is_dir():
        raise Stop(f"--offline {args.offline}: is not a folder; make it with --download-only {args.offline}")
    if args.jobs < 0:
        raise Stop(f"--jobs {args.jobs}: give a positive number")
    flash.architectures([], args.arch)
    offline = args.offline.resolve() if args.offline else None
    cache = (args.cache or default_cache()).expanduser().absolute()
    asked = flash.Options(args.arch, args.jobs, args.wheel, args.sha256, offline)
    return Options(prefix, cache, offline, not args.no_flash_attn, asked, args.level, args.quiet)


def find_gpus() -> List[machine.Gpu]:
    try:
        return machine.gpus()
    except machine.MachineError as error:
        raise Stop(str(error)) from None


def refuse_misleading_variables(prefix: Path) -> None:
    """Raises Stop now for what the verifier would refuse at the end. (PYTHONPATH is ours here, and the verifier's not.)"""
    for said, remedy in misleading(prefix, {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}):
        raise Stop(f"{said}: {remedy}, and run it again")


def install_wheels(options: Options, backend: str, uv: Path, steps: Steps) -> None:
    """The layer's wheels, by hash, in parallel, from the machine's index or the offline folder. Raises Stop."""
    lock = locks.PIP_LOCK if backend == "conda" else locks.REQUIREMENTS
    command = [str(uv), "pip", "install", "--python", str(options.prefix / "bin/python"), "--require-hashes", "--no-deps"]
    folder = options.offline / "wheels" if options.offline else None
    environ = uv_environment(options.cache, options.prefix, dict(os.environ))
    if not folder and not machine.same_filesystem(options.cache, options.prefix):
        # The wheels are kept in the cache; what uv unpacks, small files by the thousand, lies beside the prefix.
        folder = options.cache / "wheels"
        fetch_wheels(locks.read_pip_lock(lock), folder, steps)
    if folder:
        command += ["--no-index", "--find-links", str(folder)]
    with contextlib.suppress(Stop):  # all in the cache: then no index is asked, and none needs to answer
        run([*command, "--offline", "-r", str(lock)], environ, "looking in the cache", quiet=True)
        return
    run([*command, "-r", str(lock)], environ, f"installing {lock.name}", options.quiet)


def fetch_wheels(pins: List[locks.PipPackage], folder: Path, steps: Steps) -> None:
    """The wheels and sources of these pins into a folder, by hash; what is there is not asked for. Raises Stop, FetchError."""
    with ThreadPoolExecutor(fetch.PARALLEL) as pool:
        there = set(pool.map(file_sha256, folder.glob("*-*")))
        missing = [pin for pin in pins if pin.sha256 not in there]
        items = [i for found in pool.map(lambda pin: index_items([pin], dict(os.environ)), missing) for i in found]
    fetch.fetch(items, folder, lambda text: steps.say(f"      {text}"), steps.quiet)


def verify(options: Options, manifest: Optional[Path] = None) -> int:
    """The verifier's exit status, run by the prefix's interpreter; with a manifest, if one is named."""
    command = [str(options.prefix / "bin/python"), str(ROOT / "scripts/verify_environment.py"), "--level", options.level]
    command += [] if options.flash_attn else ["--skip", "flash-attn"]
    command += ["--manifest", str(manifest)] if manifest else []
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output = subprocess.PIPE if options.quiet else None
    done = subprocess.run(command, env=environ, stdout=output, stderr=subprocess.STDOUT, text=True)
    if options.quiet and done.returncode:
        print(done.stdout)
    elif options.quiet:
        print(done.stdout.strip().splitlines()[-1])
    return done.returncode


def finish(options: Options, backend: str, steps: Steps) -> int:
    """The three last steps on a created prefix; gives the exit status. Raises Stop if the wheels cannot be installed.

    flash-attn is not needed for the rest: its failure is told, the environment is verified without it, the status is 1.
    """
    digest = lock_digest(backend)
    uv = options.prefix / "bin/uv"
    with steps.step(f"Install the wheels of {'locks/pip.txt' if backend == 'conda' else 'requirements.txt'}"):
        if not uv.exists():
            uv = bring_uv(options.cache, steps, options.offline)
        install_wheels(options, backend, uv, steps)
    with steps.step("flash-attn"):
        problem = install_flash_attn(options, uv, steps)
    shutil.rmtree(uv_folder(options.prefix), ignore_errors=True)
    stamp = {"backend": backend, "locks": digest, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    write_atomically(stamp_path(options.prefix), json.dumps(stamp, indent=2) + "\n")
    manifest = options.prefix / "maximalcai-manifest.json"
    with steps.step("Verify"):
        status = verify(options, manifest)
    if os.environ.get("RUNPOD_POD_ID") and os.access(POD_VOLUME, os.W_OK):  # the prefix is lost with the pod
        name = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        write_atomically(POD_VOLUME / "maximalcai-manifests" / f"{name}.json", manifest.read_text())
    return 1 if problem else status


def again(options: Options, steps: Steps) -> int:
    """On a finished prefix: flash-attn if it is not there yet, and the verifier. Gives the exit status."""
    with steps.step("Verify"):
        problem = install_flash_attn(options, options.prefix / "bin/uv", steps)
        status = verify(options)
    return 1 if problem else status


def install_flash_attn(options: Options, uv: Path, steps: Steps) -> bool:
    """True if flash-attn was to be installed and could not be; why is told."""
    if not options.flash_attn:
        steps.say("      flash-attn is left out, as asked")
        return False
    try:
        flash.install(options.prefix, options.cache, uv, find_gpus(), options.flash, steps)
    except (Stop, fetch.FetchError) as error:
        print(error, file=sys.stderr)
        return True
    return False


def backend_of(prefix: Path) -> str:
    return "conda" if (prefix / "conda-meta").is_dir() else "pip"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="scripts/post_create.sh",
        description="Installs the pip layer into a created environment, builds flash-attn, and verifies.",
        epilog="The environment is --prefix, or the active one (CONDA_PREFIX, VIRTUAL_ENV). "
        "Exit status: the verifier's; 1 also if something could not be installed, 2 for wrong usage.",
        allow_abbrev=False,
    )
    add_options(p)
    return p


def main(arguments: Optional[List[str]] = None) -> int:
    args = parser().parse_args(arguments)

    def work() -> int:
        prefix = (args.prefix or active_prefix()).expanduser().absolute()
        if not (prefix / "bin/python").exists():
            raise Stop(f"{prefix} has no bin/python: it is not an environment; make one with setup_runpod_environment.sh")
        options = options_of(args, prefix)
        refuse_misleading_variables(prefix)
        steps = Steps(STEPS, options.quiet)
        status = finish(options, backend_of(prefix), steps)
        steps.end("finished" if status == 0 else "finished with problems")
        return status

    return run_script("post_create.sh", work)


def active_prefix() -> Path:
    """The active environment: of those that the shell names, the one whose python runs this. Raises Stop."""
    named = [Path(os.environ[name]) for name in ("CONDA_PREFIX", "VIRTUAL_ENV") if os.environ.get(name)]
    for prefix in [p for p in named if p.resolve() == Path(sys.prefix).resolve()] + named:
        return prefix
    raise Stop("no environment is active; name one with --prefix DIR")


if __name__ == "__main__":
    sys.exit(main())
