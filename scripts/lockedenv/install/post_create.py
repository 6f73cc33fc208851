"""From a created prefix to a verified one: the wheels of its layer, flash-attn, the verifier, the manifest."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

from lockedenv import ROOT, locks
from lockedenv.console import Steps, Stop, disk_text
from lockedenv.install import flash, wheels
from lockedenv.installed import INSTALLED, file_sha256, read_json, read_prefix, snapshot
from lockedenv.machine import POD_VOLUME, default_cache, gpus, write_atomically
from lockedenv.prefix import INSTALLED as STATE_INSTALLED
from lockedenv.prefix import Prefix, enter_text
from lockedenv.process import holding, run, run_script, started
from lockedenv.verify.checks.surroundings import misleading

STEPS = 3
MANIFEST = "maximalcai-manifest.json"


@dataclass
class Options:
    """`offline` is a folder made by --download-only. `level` is the verifier's; None: what the prefix's past asks for."""

    prefix: Prefix
    cache: Path
    offline: Optional[Path]
    flash_attn: bool
    flash: flash.Options
    level: Optional[str]
    keep_extras: bool
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
    parser.add_argument("--level", choices=["quick", "full"], help="how much is verified (default: full, until that has passed)")
    parser.add_argument("--quiet", action="store_true", help="print the verdict and errors only")


def options_of(args: argparse.Namespace, path: Path) -> Options:
    """The parsed options, with paths made absolute. Raises Stop for those that contradict each other."""
    if args.sha256 and not args.wheel:
        raise Stop("--sha256 is the hash of --wheel; give both")
    if args.offline and not args.offline.is_dir():
        raise Stop(f"--offline {args.offline}: is not a folder; make it with --download-only {args.offline}")
    if args.jobs < 0:
        raise Stop(f"--jobs {args.jobs}: give a positive number")
    flash.architectures([], args.arch)
    offline = args.offline.resolve() if args.offline else None
    cache = (args.cache.expanduser() if args.cache else default_cache()).resolve()
    asked = flash.Options(args.arch, args.jobs, args.wheel, args.sha256, offline)
    keep = getattr(args, "keep_extras", False)
    return Options(Prefix(path), cache, offline, not args.no_flash_attn, asked, args.level, keep, args.quiet)


def refuse_misleading_variables(prefix: Path) -> None:
    """Raises Stop now for what the verifier would refuse at the end. (PYTHONPATH is ours here, and the verifier's not.)"""
    for said, remedy in misleading(prefix, {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}):
        raise Stop(f"{said}: {remedy}, and run it again")
    folder = os.environ.get("TMPDIR")
    if folder and not os.access(folder, os.W_OK):
        raise Stop(f"TMPDIR={folder} is not a folder that you may write to: make it or unset TMPDIR, and run it again")


def note_created(prefix: Path) -> None:
    """Keeps what the records have no hash for, while the prefix is as it was made."""
    left = {**snapshot(prefix), "conda": [record.name for record in read_prefix(prefix).conda]}
    write_atomically(prefix / INSTALLED, json.dumps(left, indent=0) + "\n")


def note_wheels(prefix: Path, lock: Path) -> None:
    """Keeps the hash of each locked wheel's RECORD, as its install by hash left it."""
    names = {pin.name for pin in locks.read_pip_lock(lock)}
    dists = [dist for dist in read_prefix(prefix).dists if dist.name in names]
    records = {dist.name: file_sha256(dist.path / "RECORD") for dist in dists}
    write_atomically(prefix / INSTALLED, json.dumps({**read_json(prefix / INSTALLED), "records": records}, indent=0) + "\n")


def finish(options: Options, backend: str, steps: Steps, extras: Optional[Path] = None) -> int:
    """The three last steps on a created prefix; gives the exit status. Raises Stop if the wheels cannot be installed.

    flash-attn is not needed for the rest: its failure is told, the environment is verified without it, the status is 1.
    """
    prefix, lock = options.prefix, locks.PIP_LOCK if backend == "conda" else locks.REQUIREMENTS
    with steps.step(f"Install the wheels of {lock.relative_to(ROOT)}"):
        uv = wheels.bring_uv(options.cache, steps, options.offline)
        wheels.install(prefix.path, lock, options.cache, options.offline, uv, steps)
        note_wheels(prefix.path, lock)
        prefix.write(state=STATE_INSTALLED, locks=locks.digest(backend), verdicts={})
    with steps.step("flash-attn"):
        problems = [install_flash_attn(options, uv, steps), restore(options, extras, uv) if extras else None]
    shutil.rmtree(prefix.beside("uv"), ignore_errors=True)
    return conclude(options, options.level or "full", problems, steps)


def again(options: Options, steps: Steps) -> int:
    """On an installed prefix: flash-attn if it is not there yet, and the verifier. Gives the exit status."""
    level = options.level or ("quick" if options.prefix.mark().get("verdicts", {}).get("full", {}).get("passed") else "full")
    with steps.step("flash-attn"):
        uv = wheels.bring_uv(options.cache, steps, options.offline) if options.flash_attn else Path()
        problem = install_flash_attn(options, uv, steps)
    return conclude(options, level, [problem], steps)


def conclude(options: Options, level: str, problems: List[Optional[str]], steps: Steps) -> int:
    """Verifies; the last lines say what there is, what is missing, and how to enter it. Gives the exit status."""
    prefix = options.prefix
    with steps.step(f"Verify, {level} level"):
        status = verify(options, level)
    line = prefix.settle(status == 0 and not any(problems))
    if line:
        print(line, file=sys.stderr)
    keep_manifest(prefix)
    lacking = [problem for problem in problems if problem]
    if status == 0:
        for problem in lacking:
            print(f"verified, but not all that was asked for is there: {problem}", file=sys.stderr)
        steps.end(f"verified{', with the exception above' if lacking else ''}: {prefix.path}")
    else:
        print(f"{prefix.path} is not verified: see the checks that failed above", file=sys.stderr)
    if prefix.ours() and (status == 0 or lacking):
        steps.say(enter_text(prefix.path))
    return 1 if lacking else status


def keep_manifest(prefix: Prefix) -> None:
    """On a pod, a copy of the manifest on the volume, because the prefix is lost with the pod; if it fails, a warning."""
    if os.environ.get("RUNPOD_POD_ID") and os.access(POD_VOLUME, os.W_OK) and (prefix.path / MANIFEST).exists():
        name = time.strftime("%Y-%m-%dT%H-%M-%SZ.json", time.gmtime())
        try:
            write_atomically(POD_VOLUME / "maximalcai-manifests" / name, (prefix.path / MANIFEST).read_text(encoding="utf-8"))
        except OSError as error:
            print(f"warning: the manifest is in the prefix alone: {disk_text(error)}", file=sys.stderr)


def verify(options: Options, level: str) -> int:
    """The verifier's exit status, run by the prefix's interpreter; it writes the manifest into the prefix."""
    path = options.prefix.path
    command = [path / "bin/python", ROOT / "scripts/verify_environment.py", "--level", level, "--manifest", path / MANIFEST]
    command += [] if options.flash_attn else ["--skip", "flash-attn"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        with started(command, True, env=environ, stdout=said if options.quiet else None, stderr=errors) as process:
            status = process.wait()
        for file in (said, errors):
            file.seek(0)
        text = said.read().decode(errors="replace").strip()
        if text:
            print(text if status else text.splitlines()[-1], flush=True)
        sys.stderr.write(errors.read().decode(errors="replace"))
    return status


def install_flash_attn(options: Options, uv: Path, steps: Steps) -> Optional[str]:
    """Why flash-attn, which was to be installed, could not be; None if all is well."""
    if not options.flash_attn:
        steps.note("flash-attn is left out, as asked")
        return None
    try:
        flash.install(options.prefix.path, options.cache, uv, gpus(), options.flash, steps)
    except Stop as error:
        print(error, file=sys.stderr)
        return "flash-attn is missing (why is told above); mend it and run scripts/post_create.sh, or use --no-flash-attn"
    return None


def restore(options: Options, extras: Path, uv: Path) -> Optional[str]:
    """Installs the user's own packages again, the locked ones held; why not, if it fails."""
    command = restoring(options.prefix, extras, uv)
    try:
        run(command, wheels.uv_environment(options.cache, options.prefix.path, dict(os.environ)), "installing your packages")
    except Stop as error:
        print(error, file=sys.stderr)
        return f"your own packages are missing; their list is {extras}"
    return None


def restoring(prefix: Prefix, extras: Path, uv: Path) -> List[str]:
    """The command that installs the packages of a list without touching a locked one."""
    return [
        str(uv),
        "pip",
        "install",
        "--python",
        str(prefix.path / "bin/python"),
        "-r",
        str(extras),
        "-c",
        str(locks.REQUIREMENTS),
    ]


def backend_of(prefix: Path) -> str:
    return "conda" if (prefix / "conda-meta").is_dir() else "pip"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="scripts/post_create.sh",
        description="Installs the pip layer into a created environment, builds flash-attn, and verifies. Run again, it puts "
        "the pip layer right and keeps what you have added.",
        epilog="The environment is --prefix, or the active one (CONDA_PREFIX, VIRTUAL_ENV). "
        "Exit status: the verifier's; 1 also if something could not be installed, 2 for wrong usage.",
        allow_abbrev=False,
    )
    add_options(p)
    return p


def main(arguments: Optional[List[str]] = None) -> int:
    args = parser().parse_args(arguments)

    def work() -> int:
        path = (args.prefix or active_prefix()).expanduser().resolve()
        if not (path / "bin/python").exists():
            raise Stop(f"{path} has no bin/python: it is not an environment; make one with setup_runpod_environment.sh")
        options = options_of(args, path)
        refuse_misleading_variables(path)
        with holding(options.prefix.beside("lock"), f"the environment {path}"):
            backend = backend_of(path)
            if not read_json(path / INSTALLED):
                note_created(path)
            # A folder that is not the set-up's is marked as one that may never be removed.
            options.prefix.write(**{"made_by": "you", "path": str(path), **options.prefix.mark(), "backend": backend})
            return finish(options, backend, Steps(STEPS, options.quiet))

    return run_script("post_create.sh", work)


def active_prefix() -> Path:
    """The active environment: of those that the shell names, the one whose python runs this. Raises Stop."""
    named = [Path(os.environ[name]) for name in ("CONDA_PREFIX", "VIRTUAL_ENV") if os.environ.get(name)]
    for prefix in [p for p in named if p.resolve() == Path(sys.prefix).resolve()] + named:
        return prefix
    raise Stop("no environment is active; name one with --prefix DIR")


if __name__ == "__main__":
    sys.exit(main())
