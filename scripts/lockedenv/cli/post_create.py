"""From a created prefix to a verified one: the wheels of its layer, flash-attn, the verifier, the manifest."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional

from lockedenv import ROOT
from lockedenv.backends import mirror, wheels
from lockedenv.cli.options import Options, main, make_parser
from lockedenv.errors import Stop, disk_text
from lockedenv.host.machine import POD_VOLUME, gpus, read_json, write_atomically
from lockedenv.host.process import run, started
from lockedenv.install.flash_attention import provide as flash
from lockedenv.output import Steps
from lockedenv.prefix.lifecycle import INSTALLED as STATE_INSTALLED
from lockedenv.prefix.lifecycle import (
    Prefix,
    added_as_shown,
    enter_text,
    write_activate,
    write_guard,
)
from lockedenv.prefix.records import CONSTRAINTS, INSTALLED, file_sha256, read_prefix, snapshot
from lockedenv.spec import locks
from lockedenv.spec.environment import REQUIREMENTS, Environment, named
from lockedenv.verify.checks.surroundings import misleading

STEPS = 3
MANIFEST = "maximalcai-manifest.json"
LIST = "your own packages are missing; their list is "


def refuse_misleading_variables(prefix: Path, of: Environment, backend: str) -> None:
    """Raises Stop now for what the verifier would refuse at the end."""
    for said, remedy in misleading(prefix, callers(), of.cuda(backend), of.cudnn(backend)):
        raise Stop(f"{said}: {remedy}, and run it again")
    if (folder := os.environ.get("TMPDIR")) and not os.access(folder, os.W_OK):
        raise Stop(
            f"TMPDIR={folder} is not a folder that you may write to: make it or unset TMPDIR, and run it again"
        )


def callers() -> Dict[str, str]:
    """The variables as the caller has them: PYTHONPATH is ours here."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "MAXIMALCAI_PYTHONPATH")
    }
    theirs = os.environ.get("MAXIMALCAI_PYTHONPATH")  # the shell scripts note it
    return {**environ, "PYTHONPATH": theirs} if theirs else environ


def note_installed(prefix: Path, lock: Optional[Path] = None) -> None:
    """Keeps what the records do not: of a prefix just made, links and hashes; of a lock, each wheel's RECORD, and programs."""
    installed = read_prefix(prefix)
    if lock:
        left = {
            **read_json(prefix / INSTALLED),
            "wheels": {pin.name: pin.sha256 for pin in locks.read_pip_lock(lock)},
        }
        names = {*left["wheels"], *({"flash-attn"} & set(left.get("records", {})))}
        left["records"] = {
            d.name: file_sha256(d.path / "RECORD") for d in installed.dists if d.name in names
        }
        programs = {f"bin/{path.name}" for path in prefix.glob("bin/*") if os.access(path, os.X_OK)}
        left["programs"] = sorted(programs.union(left.get("programs", [])))
    else:
        left = {
            **snapshot(prefix),
            "conda": {record.name: record.sha256_here for record in installed.conda},
        }
    write_atomically(prefix / INSTALLED, json.dumps(left, indent=0) + "\n")


def finish(options: Options, backend: str, steps: Steps, extras: Optional[Path] = None) -> int:
    """The three last steps on a created prefix; gives the exit status, 1 if flash-attn fails. Raises Stop for the wheels."""
    prefix, lock = options.target, options.of.lock(backend)
    with steps.step(
        f"Install the wheels of {lock.relative_to(ROOT) if ROOT in lock.parents else lock}"
    ):
        uv = wheels.bring_uv(options.cache, steps, options.offline, prefix.path)
        wheels.install(options, lock, uv, steps)
        note_installed(prefix.path, lock)
        write_guard(prefix, locked(options))
        prefix.write(
            state=STATE_INSTALLED,
            environment=options.of.given,
            locks=options.of.digest(backend),
            verdicts={},
        )
    extras = extras or unrestored(prefix)
    with steps.step("flash-attn"):
        problems = [
            install_flash_attn(options, uv, steps),
            restore(options, extras, uv) if extras else None,
        ]
    for unpacked in (prefix.beside("maximalcai-uv"), wheels.temporary("uv", prefix.path)):
        shutil.rmtree(unpacked, ignore_errors=True)
    return conclude(options, options.level or "full", problems, steps)


def again(options: Options, steps: Steps) -> int:
    """On an installed prefix: flash-attn if it is not there yet, and the verifier. Gives the exit status."""
    full = (
        options.target.mark().get("verdicts", {}).get("full", {})
    )  # it holds for what there was to be verified
    same = full.get("passed") and full.get("added") == added_as_shown(options.target.path)
    level = options.level or ("quick" if same else "full")
    with steps.step("flash-attn"):
        if options.source and not wheels.by_hash(
            options.cache / "wheels", "uv-*.whl", wheels.uv_pin().sha256
        ):
            mirror.look(options)
            mirror.bring(options, "", steps)
        uv, extras = Path(), unrestored(options.target)
        if extras or options.flash_attn != "none":
            uv = wheels.bring_uv(options.cache, steps, options.offline, options.target.path)
        problems = [
            install_flash_attn(options, uv, steps),
            restore(options, extras, uv) if extras else None,
        ]
    return conclude(options, level, problems, steps)


def locked(options: Options) -> List[locks.PipPackage]:
    """What pip and uv are to leave as it is."""
    return [*options.of.wheels("pip"), *filter(None, [options.of.flash_attn()])]


def conclude(options: Options, level: str, problems: List[Optional[str]], steps: Steps) -> int:
    """Verifies; the last lines say what there is, what is missing, and how to enter it. Gives the exit status."""
    prefix, lacking = options.target, [problem for problem in problems if problem]
    prefix.write(lacking=lacking)
    if prefix.ours() and not (prefix.path / "activate").exists():
        write_activate(prefix.path, prefix.mark()["backend"])
    if not (prefix.path / CONSTRAINTS).exists():
        write_guard(prefix, locked(options))
    with steps.step(f"Verify, {level} level"):
        status = verify(options, level)
    if line := prefix.settle(status == 0, not lacking):
        print(line, file=sys.stderr)
    keep_manifest(prefix)
    if status == 0:
        for problem in lacking:
            print(f"verified, but not all that was asked for is there: {problem}", file=sys.stderr)
        steps.end(f"verified{', with the exception above' if lacking else ''}: {prefix.path}")
    else:
        said = f"{prefix.path} is not verified: see the checks that failed above; do what the first says, and run this again"
        print(said, file=sys.stderr)
    if prefix.ours() and (status == 0 or lacking):
        steps.say(enter_text(prefix.path))
    return 1 if lacking else status


def keep_manifest(prefix: Prefix) -> None:
    """On a pod, a copy of the manifest on the volume, because the prefix is lost with the pod; if it fails, a warning."""
    if (
        os.environ.get("RUNPOD_POD_ID")
        and os.access(POD_VOLUME, os.W_OK)
        and (prefix.path / MANIFEST).exists()
    ):
        name = time.strftime("%Y-%m-%dT%H-%M-%SZ.json", time.gmtime())
        try:
            write_atomically(
                POD_VOLUME / "maximalcai-manifests" / name,
                (prefix.path / MANIFEST).read_text(encoding="utf-8"),
            )
        except OSError as error:
            print(
                f"warning: the manifest is in the prefix alone: {disk_text(error)}", file=sys.stderr
            )


def verify(options: Options, level: str) -> int:
    """The verifier's exit status, run by the prefix's interpreter; it writes the manifest into the prefix."""
    path = options.target.path
    command = [
        path / "bin/python",
        ROOT / "scripts/verify_environment.py",
        "--level",
        level,
        "--manifest",
        path / MANIFEST,
    ]
    command += ["--skip", "flash-attn"] if options.flash_attn == "none" else []
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        with started(
            command, True, env=callers(), stdout=said if options.quiet else None, stderr=errors
        ) as process:
            status = process.wait()
        said.seek(0)
        errors.seek(0)
        if text := said.read().decode(errors="replace").strip():
            print(text if status else text.splitlines()[-1], flush=True)
        sys.stderr.write(errors.read().decode(errors="replace"))
    return status


def install_flash_attn(options: Options, uv: Path, steps: Steps) -> Optional[str]:
    """Why flash-attn, which was to be installed, could not be; None if all is well."""
    if options.flash_attn == "none":
        steps.note("flash-attn is neither installed nor checked, as asked")
        return None
    try:
        flash.install(options, uv, gpus(), steps)
    except Stop as error:
        print(error, file=sys.stderr)
        return "flash-attn is missing (why is told above); mend it and run scripts/post_create.sh, or use --flash-attn none"
    return None


def restore(options: Options, extras: Path, uv: Path) -> Optional[str]:
    """Installs the user's own packages again, the locked ones held; why not, if it fails."""
    environ = wheels.uv_environment(options.cache, options.target.path, dict(os.environ))
    try:
        run(restoring(options, extras, uv), environ, "installing your packages")
    except Stop as error:
        print(error, file=sys.stderr)
        return f"{LIST}{extras}"
    return None


def unrestored(prefix: Prefix) -> Optional[Path]:
    """The list of the user's packages that an earlier run could not install again."""
    lists = (
        Path(text[len(LIST) :])
        for text in prefix.mark().get("lacking") or []
        if text.startswith(LIST)
    )
    return next(filter(Path.is_file, lists), None)


def restoring(options: Options, extras: Path, uv: Path) -> List[str]:
    """The command that installs the packages of a list without touching a locked one."""
    words = [
        uv,
        "pip",
        "install",
        "--python",
        options.target.path / "bin/python",
        "-r",
        extras,
        "-c",
    ]
    return [*map(str, [*words, options.of.folder / REQUIREMENTS])]


def parser() -> argparse.ArgumentParser:
    return make_parser(
        "post_create.sh",
        "Installs the pip layer into a created environment, provides flash-attn, and verifies. Run again, it repairs the pip\n"
        "layer and keeps what you have added.",
        """examples:
  micromamba create -n maximalcai -f conda-lock.yml && micromamba activate maximalcai && scripts/post_create.sh
  scripts/post_create.sh --flash-attn build         compile flash-attn from its source
  scripts/post_create.sh --prefix ~/maximalcai      repair this environment

default prefix: the active one (CONDA_PREFIX, VIRTUAL_ENV), or ~/maximalcai
exit status: the verifier's; 1 also if something could not be installed, 2 wrong usage, 130 or 143 interrupted""",
    )


def work(options: Options) -> int:
    """What the options ask for; gives the exit status."""
    path = options.prefix or active_prefix(options)
    if not (path.expanduser() / "bin/python").exists():
        raise Stop(
            f"{path} has no bin/python: it is not an environment; make one with setup_runpod_environment.sh"
        )
    options.settle(path)
    target = options.target
    backend = "conda" if (target.path / "conda-meta").is_dir() else "pip"
    refuse_misleading_variables(target.path, options.of, backend)
    if target.mark() and (other := named(target.path)) != options.of.given:
        raise Stop(
            f"{path} is of the environment {other}, not {options.of.given}; choose another --prefix"
        )
    pythons = sorted(folder.name[6:] for folder in target.path.glob("lib/python3.*"))
    if options.of.python not in pythons:
        raise Stop(
            f"{path} has Python {' and '.join(pythons) or 'of no known version'}, and the environment {options.of.name} "
            f"is for {options.of.python}; choose another --prefix, or --environment"
        )
    with target.held():
        if not target.mark():
            note_installed(target.path)
        # A folder that is not the set-up's is marked as one that may never be removed.
        first = {"made_by": "you", "path": str(target.path), "environment": options.of.given}
        target.write(**{**first, **target.mark(), "backend": backend, "verdicts": {}})
        steps = Steps(STEPS, options.quiet)
        mirror.look(options)
        mirror.bring(options, backend, steps, archives=False)
        return finish(options, backend, steps)


def active_prefix(options: Options) -> Path:
    """The active environment: of those that the shell names, the one whose python runs this; else the usual. Raises Stop."""
    named = [
        Path(os.environ[name]) for name in ("CONDA_PREFIX", "VIRTUAL_ENV") if os.environ.get(name)
    ]
    usual = [path for path in [options.usual()] if (path / "bin/python").exists()]
    for prefix in [p for p in named if p.resolve() == Path(sys.prefix).resolve()] + named + usual:
        return prefix
    raise Stop("no environment is active; name one with --prefix DIR")


if __name__ == "__main__":
    sys.exit(main(parser(), work))
