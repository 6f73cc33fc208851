"""From a bare machine to a verified environment (see scripts/setup_runpod_environment.sh --help)."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Tuple

from lockedenv import ROOT
from lockedenv.backends import conda
from lockedenv.backends import download as fetch
from lockedenv.backends import mirror, wheels
from lockedenv.cli import post_create
from lockedenv.cli.options import Options, main, make_parser
from lockedenv.errors import Stop
from lockedenv.host import machine
from lockedenv.host.finding import Verdict as PodVerdict
from lockedenv.host.finding import find_odd
from lockedenv.host.machine import size_text, version_tuple
from lockedenv.host.process import ask, run
from lockedenv.install.flash_attention import provide as flash
from lockedenv.output import Steps
from lockedenv.pod import verdict as pod
from lockedenv.pod.rates import measure_rates
from lockedenv.prefix import lifecycle as prefix
from lockedenv.prefix.lifecycle import ABSENT, CHANGED, FOREIGN, INSTALLED, MAKING, MOVED, VERIFIED
from lockedenv.prefix.records import added, own_files, read_prefix
from lockedenv.redaction import redact, redact_document
from lockedenv.spec import environment, facts
from lockedenv.spec.drivers import find_old_driver
from lockedenv.spec.environment import Environment
from lockedenv.verify.checks.gpu import as_result
from lockedenv.verify.checks.surroundings import compile_problem
from lockedenv.verify.report import Report

# The one archive whose size the channel's metadata lacked when it was locked is pytorch's; its twin for a newer Python has
# 1,571,072,276 bytes.
UNKNOWN_SIZE = 1_600_000_000
# Installed bytes per downloaded byte: wheels 6.0 GB of 3.2 GB, measured; conda's archives are packed tighter.
WHEEL_GROWTH, CONDA_GROWTH = 1.9, 2.5
STEPS = 3 + post_create.STEPS
INSTALL_PYTHON = "apt-get install python{0}, where the distribution has it, or use the conda backend, which brings its own"


def refuse_other_machines() -> None:
    """Raises Stop where the locked packages cannot run."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Stop(
            f"this is {platform.system()} {platform.machine()}; the locked packages are for Linux x86_64 "
            "(a contributor's laptop: conda env update -f environment-dev.yml)"
        )
    name, glibc = platform.libc_ver()
    if name == "glibc" and version_tuple(glibc) < version_tuple(facts.GLIBC):
        raise Stop(
            f"this machine has glibc {glibc}; the locked packages need {facts.GLIBC} (Ubuntu 20.04 or newer)"
        )


def refuse_unusable(folder: Path) -> None:
    """Raises Stop for a place where this user cannot write, or where the kernel starts no program (noexec)."""
    parent = machine.existing_parent(folder)
    try:  # root may write anywhere, says os.access, and cannot
        with tempfile.TemporaryDirectory(dir=parent) as tmp:
            program = Path(tmp, "try")
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
            status, _, why = ask([program])
    except OSError as error:
        raise Stop(
            f"{folder} cannot be made in {parent} ({error.strerror}); choose another with --prefix or --cache"
        ) from None
    if status != 0:
        raise Stop(
            f"no program starts from the disk of {folder} ({why}): it is mounted noexec; choose another with --prefix or "
            "--cache"
        )


def choose_backend(options: Options) -> Tuple[str, str]:
    """(backend, why)."""
    if options.backend != "auto":
        return options.backend, "as asked"
    for address, found in options.lists.items():
        if {p.sha256 for p in options.of.conda()} <= set(found):
            return "conda", f"{redact(address)} has its archives"
    if options.source:
        return "pip", f"{redact(options.source)} has wheels alone"
    if options.offline:
        there = (options.offline / "pkgs").is_dir()
        return (
            ("conda", "the offline folder has its archives")
            if there
            else ("pip", "the offline folder has wheels alone")
        )
    if all((options.cache / "pkgs" / p.filename).exists() for p in options.of.conda()):
        return "conda", "all its archives are in the cache"
    problem = conda.channel_problem(options.of.conda(), options.mirrors)
    return ("pip", problem) if problem else ("conda", "its channels answer")


def needed_space(options: Options, backend: str) -> List[Tuple[Path, int, str]]:
    """(folder, bytes, what for) of each file system that will be written; what the cache already has is not counted."""
    path, cache = options.target.path, options.cache
    together, total = machine.same_filesystem(path, cache), sum(
        p.size for p in options.of.wheels(backend)
    )
    links, through = machine.has_links_and_locks(path), int(total * WHEEL_GROWTH)
    unpacked, archives, beside = (
        through,
        0 if together and links and not options.lists else total,
        0,
    )
    if backend == "conda":
        sizes = {p.filename: p.size or UNKNOWN_SIZE for p in options.of.conda()}
        archives += sum(
            size for name, size in sizes.items() if not (cache / "pkgs" / name).exists()
        )
        beside = sum(sizes.values())
        unpacked += int(beside * CONDA_GROWTH)
    elif together and links and options.target.mark().get("backend") == "pip":
        unpacked //= 4  # the cache holds what the old prefix links to
    copied = [] if links else [(Path(tempfile.gettempdir()), through, "what is unpacked")]
    if together:
        return [(path, unpacked + archives, "the environment and the cache"), *copied]
    return [(path, unpacked + beside, "the environment"), (cache, archives, "the cache"), *copied]


def refuse_small_disks(backend: str, needs: List[Tuple[Path, int, str]]) -> None:
    """Raises Stop where a disk has too little room; names what helps, with the pod's volume where that has room."""
    for folder, _, what in needs:
        needed = sum(more for other, more, _ in needs if machine.same_filesystem(folder, other))
        if (free := machine.free_bytes(folder)) < needed:
            known = {
                "the environment": "--prefix",
                "the cache": "--cache",
                "what is unpacked": "TMPDIR",
            }
            option = known.get(what, "--prefix or --cache")
            if (
                "environment" in what
                and os.access(machine.POD_VOLUME, os.W_OK)
                and machine.free_bytes(machine.POD_VOLUME) >= needed
            ):
                option = f"--prefix {machine.POD_VOLUME / folder.name}"
            raise Stop(
                f"too little disk for the {backend} backend: {what} need about {size_text(needed)} at {folder}, "
                f"{size_text(free)} are free; free {size_text(needed - free)}, or choose another disk with "
                f"{option}"
            )


def create_venv(options: Options, uv: Path) -> None:
    """An empty virtual environment of the locked Python: the machine's, or one that uv brings. Raises Stop."""
    path, python = options.target.path, options.of.python
    environ, remedy = wheels.uv_environment(
        options.cache, path, dict(os.environ)
    ), INSTALL_PYTHON.format(python)
    if (archives := (options.offline or options.cache) / mirror.PYTHON).is_dir():
        environ.update(UV_PYTHON_CACHE_DIR=str(archives))
    if options.offline:
        environ.update(UV_OFFLINE="1")
    there = ask([uv, "python", "find", python], env=environ)[0] == 0
    try:
        if not there:  # uv venv would not take the archive of an offline folder
            run(
                [uv, "python", "install", "--no-bin", python],
                environ,
                f"fetching Python {python}",
                quiet=True,
            )
        # The mark lies there already.
        run(
            [uv, "venv", "--quiet", "--python", python, "--no-project", "--allow-existing", path],
            environ,
            "uv venv",
            quiet=True,
        )
    except Stop as error:
        if "UV_PYTHON_CACHE_DIR" in environ and not options.offline:  # what a mirror gave
            shutil.rmtree(archives)
            return create_venv(options, uv)
        if there:
            raise
        why = (
            f"{options.source or options.offline} has none"
            if options.offline
            else "uv could not fetch one"
        )
        raise Stop(f"no Python {python} here, and {redact(why)}: {remedy}\n  {error}") from None


def install(options: Options, backend: str, steps: Steps) -> int:
    """Creates, finishes and verifies the prefix; gives the exit status. Until it is installed, the old one can come back."""
    target = options.target
    with steps.step("Fetch the archives" if backend == "conda" else "Fetch uv"):
        uv = backend == "pip"
        mirror.bring(options, backend, steps)
        tool = (
            wheels.bring_uv(options.cache, steps, options.offline)
            if uv
            else conda.fetch_archives(options, steps)
        )
    lines = added(read_prefix(target.path)) if target.ours() else []
    if earlier := post_create.unrestored(target):  # they are in neither
        lines += [
            line
            for line in earlier.read_text().splitlines()
            if line not in lines and not line.startswith("#")
        ]
    extras = target.beside(f"maximalcai-extras-{time.strftime('%Y%m%d-%H%M%S')}.txt")
    if lines:
        machine.write_atomically(
            extras, "\n".join(["# What was in the environment beyond its lock.", *lines, ""])
        )
    with target.replacing(backend, options.of):
        with steps.step(f"Create {target.path}"):
            create_venv(options, tool) if uv else conda.create(options, tool, steps)
            prefix.write_activate(target.path, backend)
            target.write(pod=options.pod)
            post_create.note_installed(target.path)
        status = post_create.finish(
            options, backend, steps, extras if lines and options.keep_extras else None
        )
    if lines and not options.keep_extras:
        command = " ".join(
            map(shlex.quote, post_create.restoring(options, extras, target.path / "bin/uv"))
        )
        print(
            f"your own packages are listed in {extras}; this brings them back:\n{command}",
            file=sys.stderr,
        )  # --quiet or not
    return status


def download_only(folder: Path, of: Environment, options: Options, steps: Steps) -> None:
    """Everything for both layers into a folder: archives, wheels, flash-attn's source and wheel, micromamba, uv, Python."""
    wheels.refuse_without_pip(folder)
    archives = conda.archive_items([*of.conda(), conda.MICROMAMBA], options.mirrors)
    problem, python, lacking = conda.channel_problem(of.conda(), options.mirrors), of.python, []
    if options.dry_run:
        needed = {**mirror.wanted(of, "pip"), **({} if problem else mirror.wanted(of, "conda"))}
        steps.say(
            f"{len(needed)} files, about {size_text(sum(size for size, _ in needed.values()))}, and Python {python} "
            f"would go to {folder}, {size_text(machine.free_bytes(folder))} free"
        )
        return steps.say(
            f"{f'no conda archives: {problem}; ' if problem else ''}this was a dry run: nothing was changed"
        )
    with steps.step(f"Fetch {len(archives)} conda archives"):
        if problem:
            steps.note(f"left out: {problem}; the folder will do for the pip backend alone")
            lacking.append("the conda archives")
        else:
            fetch.fetch(archives, folder / "pkgs", steps.note, steps.quiet)
    pins, prebuilt = [
        *of.wheels("pip"),
        wheels.uv_pin(),
        *filter(None, [of.flash_attn()]),
    ], of.flash_wheel()
    with steps.step(f"Fetch {len(pins)} wheels and sources"):
        uv = wheels.bring_uv(folder, steps)
        wheels.fetch_files(pins, folder / "wheels", uv, python, steps)
        if prebuilt:
            try:
                fetch.fetch(
                    [flash.prebuilt_item(options, prebuilt)],
                    folder / "wheels",
                    steps.note,
                    steps.quiet,
                    rounds=3,
                )
            except Stop as error:
                steps.note(f"left out, so flash-attn will be built there: {error}")
                lacking.append("flash-attn's prebuilt wheel")
    with (
        steps.step(f"Fetch Python {python}, for machines without"),
        tempfile.TemporaryDirectory() as tmp,
    ):
        environ = wheels.uv_environment(folder, folder, dict(os.environ))
        environ.update(
            UV_PYTHON_INSTALL_DIR=tmp, UV_PYTHON_CACHE_DIR=str(folder / mirror.PYTHON)
        )  # keeps the archive
        status, _, why = ask([uv, "python", "install", "--no-bin", python], 600, env=environ)
        if status != 0:
            said = "".join(why.strip().splitlines()[-1:])
            steps.note(f"left out: uv could not fetch it ({said}); the pip backend needs one there")
            lacking.append(f"Python {python}")
    mirror.write_index(folder)
    if lacking:
        print(f"not in {folder}: {', '.join(lacking)} (why is told above)", file=sys.stderr)
    steps.end(
        f"install from it, or from where it is served, with: scripts/setup_runpod_environment.sh --offline {folder}"
    )


def set_up(options: Options) -> int:
    """The run proper, with the prefix's lock held."""
    target = options.target
    made_by = target.mark().get("backend", "pip")
    state = target.state(options.of.digest(made_by))
    if state == FOREIGN:
        what = (
            "it is this clone: give the clone another name"
            if target.path == ROOT
            else "choose another --prefix, or move it away"
        )
        raise Stop(f"{target.path} is there and was not made by this script; {what}")
    if state == MOVED and not options.force:
        raise Stop(
            f"{target.path} was made at {prefix.moved_from(target.path)}, and its scripts name that place: move it back, "
            "or rebuild it here with --force"
        )
    if (
        state not in (ABSENT, MAKING)
        and not options.force
        and (other := environment.named(target.path)) != options.of.given
    ):
        raise Stop(
            f"{target.path} is of the environment {other}, not {options.of.given}; choose another --prefix, or rebuild it "
            "with --force"
        )
    finished, backend = (
        state in (INSTALLED, VERIFIED)
        and not options.force
        and options.backend in ("auto", made_by),
        made_by,
    )
    steps = Steps(2 if finished else STEPS, options.quiet or options.json)
    plan = dict(
        schema_version=1,
        environment=options.of.name,
        prefix=str(target.path),
        cache=str(options.cache),
        state=state,
        action="verify" if finished else "install" if state in (ABSENT, MAKING) else "rebuild",
        backend=made_by,
    )
    if finished:
        steps.say(
            f"{target.path} is installed, from these locks: it is verified again (--force rebuilds it)"
        )
    else:
        mirror.look(options)
        backend, why = choose_backend(options)
        mirrored = any(wheels.uv_pin().sha256 in found for found in options.lists.values())
        if (
            backend == "pip" and not options.offline and not mirrored
        ):  # conda's environment brings its own uv
            wheels.refuse_without_pip(options.cache)
        with steps.step("Look at the machine"):
            look(options, backend, why, state, steps, plan)
    if options.dry_run:
        steps.say("this was a dry run: nothing was changed")
        if options.json:
            print(json.dumps(redact_document(plan), indent=2))
        return 0
    return post_create.again(options, steps) if finished else install(options, backend, steps)


def look(
    options: Options, backend: str, why: str, state: str, steps: Steps, plan: Dict[str, Any]
) -> None:
    """Says what is going to be done, and where. Raises Stop for what could not end well.

    `plan` gets the same for --json: schemas/plan.schema.json.
    """
    target, path = options.target, options.target.path
    prefix.refuse(path, backend, options.cache)
    mirror.refuse_incomplete(options, backend)
    needs, gpus, environ, cuda = (
        needed_space(options, backend),
        machine.gpus(),
        dict(os.environ),
        options.of.cuda(backend),
    )
    past = {
        ABSENT: "",
        CHANGED: " (rebuilt: the locks have changed)",
        MAKING: " (started anew: an earlier run did not finish)",
    }
    steps.note(f"backend      {backend}: {why}")
    steps.note(f"environment  {options.of.name}: {path}{past.get(state, ' (rebuilt)')}")
    steps.note(f"cache        {options.cache}")
    for folder, needed, what in needs:
        steps.note(
            f"disk         {what}: about {size_text(needed)} of {size_text(machine.free_bytes(folder))} free at {folder}"
        )
    if not machine.has_links_and_locks(path):
        steps.note(
            f"the disk of {path} has no hard links or no file locks: wheels are unpacked in {tempfile.gettempdir()}, and copied"
        )
    elif len(needs) > 1:
        steps.note(
            "the cache is on another disk: everything is unpacked beside the environment, so that it can be linked"
        )
    flash_attn, goes, moves = flash.outlook(options, backend, gpus), [], []
    steps.note(f"flash-attn   {flash_attn}")
    for mounted in prefix.mounts_in(path):
        raise Stop(
            f"{mounted} is mounted in the environment, which is to be moved; unmount it first"
        )
    if state not in (ABSENT, MAKING):
        steps.note(f"the old environment is kept at {target.old} until the new one is verified")
        where = (
            ""
            if options.keep_extras
            else f" (listed in {target.beside('maximalcai-extras-*.txt')})"
        )
        goes = prefix.added_as_shown(path)
        moves = [str(file.relative_to(path)) for file in [*own_files(path), *prefix.edited(path)]]
        extras = [
            f"{'comes back' if options.keep_extras else 'goes':<12} {line}{where}" for line in goes
        ]
        own = [f"moves        {name}, your own, to {path}.kept-*" for name in moves]
        if extras and not options.keep_extras:
            steps.note("--keep-extras installs the packages that you added into the new one")
        for lines in (extras, own):
            for line in lines[:20] + ([f"and {len(lines) - 20} more"] if len(lines) > 20 else []):
                steps.note(line)
    post_create.refuse_misleading_variables(path, options.of, backend)
    old = find_old_driver(gpus, cuda)
    for problem in filter(
        None,
        [
            f"{old.problem}; {old.remedy}" if old else None,
            compile_problem(path, backend, environ) if gpus else None,
        ],
    ):
        raise Stop(problem)
    check_pod(options, steps)
    refuse_small_disks(backend, needs)
    disk = [
        dict(folder=str(f), what=what, needed_bytes=n, free_bytes=machine.free_bytes(f))
        for f, n, what in needs
    ]
    plan.update(
        backend=backend,
        backend_reason=why,
        disk=disk,
        flash_attn=flash_attn,
        packages_added=goes,
        files_added=moves,
    )


def check_pod(options: Options, steps: Steps) -> None:
    """Says what is odd about the machine; it goes into the mark, and from there into the manifest. Raises Stop for a bad one."""
    results = pod.inspect_machine()
    options.pod = [result.as_json() for result in results]
    for result in [
        result for result in results if result.verdict in (PodVerdict.WARN, PodVerdict.FAIL)
    ]:
        steps.note(f"{result.check:<12} {result.summary}: {result.remedy}")
    conclusion = pod.conclude(results)
    if conclusion.verdict is PodVerdict.FAIL and not options.any_pod:
        why = next(result.summary for result in results if result.verdict is PodVerdict.FAIL)
        raise Stop(
            f"{conclusion.text}: {why}; --check-pod tells more, and --any-pod goes on all the same"
        )


def pod_report(options: Options) -> int:
    """The whole verdict on the machine, with the rates of its disks and of the origins; 1 if it is to be given back."""
    report, cache, of = Report(sys.stdout), options.cache, options.of
    mirror.look(options)
    backend, _ = choose_backend(options)
    largest = {
        p.channel: p for p in sorted(of.conda() if backend == "conda" else [], key=lambda p: p.size)
    }
    urls = {
        name: conda.archive_items([p], options.mirrors)[0].sources[0] for name, p in largest.items()
    }
    needed, odd = mirror.wanted(of, backend), []
    if options.lists or options.offline:
        urls = {}
        for address, found in options.lists.items():
            sha = max(
                (sha for sha in found if sha in needed), key=lambda sha: needed[sha][0], default=""
            )
            urls.update({redact(address): f"{address}/{found[sha]}"} if sha else {})
    else:
        try:
            uv, wheel = wheels.bring_uv(cache, Steps(1, True)), max(
                of.wheels(backend), key=lambda pin: pin.size
            )
            urls["the package index"] = wheels.locate([wheel], uv, of.python)[0].sources[0]
        except Stop as error:
            odd = [
                replace(
                    find_odd(
                        [f"the package index gives nothing: {' '.join(str(error).split())}"],
                        "see to it, or use --offline",
                    ),
                    check="pod-network",
                )
            ]
    fetched = sum(size for size, _ in needed.values())
    unpacked = sum(
        size for folder, size, _ in needed_space(options, backend) if folder == options.target.path
    )
    urls = {name: url for name, url in urls.items() if "file:" not in url}
    results = [
        *pod.inspect_machine(),
        *odd,
        *measure_rates([options.target.path, cache], urls, fetched, unpacked),
    ]
    for result in results:
        report.result(as_result(result))
    conclusion = pod.conclude(results)
    report.say(conclusion.text)
    return int(conclusion.verdict is PodVerdict.FAIL)


def parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "setup_runpod_environment.sh",
        "Turns a bare Linux machine into the locked environment, verified. It is safe to run again.",
        """examples:
  scripts/setup_runpod_environment.sh                            the default environment, into ~/maximalcai
  scripts/setup_runpod_environment.sh --environment current      the models of today, into ~/maximalcai-current
  scripts/setup_runpod_environment.sh --dry-run                  what would be done, and where
  scripts/setup_runpod_environment.sh --force --keep-extras      rebuild, with the packages that you added
  scripts/setup_runpod_environment.sh --download-only /media/usb, then there: --offline /media/usb

default prefix: ~/maximalcai, or ~/maximalcai-NAME for another environment
exit status: 0 verified, 1 not, 2 wrong usage, 130 or 143 interrupted""",
    )
    add = parser.add_argument
    add(
        "--backend",
        choices=["auto", "conda", "pip"],
        default="auto",
        help="auto: conda where its channels answer, otherwise PyPI's wheels of the same versions",
    )
    add(
        "--mirror",
        default=os.environ.get("MAXIMALCAI_MIRROR", ""),
        metavar="URL,...",
        dest="mirrors",
        type=lambda urls: [url for url in urls.split(",") if url],
        help="fetch from here first: a conda channel's mirror, or where a folder of --download-only is served "
        "(default: $MAXIMALCAI_MIRROR); any is safe",
    )
    add(
        "--download-only",
        type=Path,
        metavar="DIR",
        help="collect everything in DIR, and install nothing",
    )
    add(
        "--force",
        action="store_true",
        help="rebuild a finished environment; the old one stays until it is verified",
    )
    add(
        "--keep-extras",
        action="store_true",
        help="install the packages that you added into the rebuilt environment too",
    )
    add(
        "--check-pod",
        action="store_true",
        help="say what this machine is worth, its disks and network too; 20 s, and nothing is kept but uv",
    )
    add("--any-pod", action="store_true", help="go on where the machine should be given back")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--json", action="store_true", help="with --dry-run: the plan as JSON on standard output")
    return parser


def work(options: Options) -> int:
    """What the options ask for; gives the exit status."""
    refuse_other_machines()
    if options.json and (options.check_pod or options.download_only or not options.dry_run):
        raise Stop(
            "--json is the plan of --dry-run: give both, and no --check-pod or --download-only"
        )
    if options.download_only:
        folder = options.download_only.expanduser().resolve()
        refuse_unusable(folder)
        download_only(
            folder,
            environment.find(options.environment or "default"),
            options,
            Steps(3, options.quiet),
        )
        return 0
    options.settle(options.prefix or options.usual())
    prefix.refuse(options.target.path, options.backend, options.cache)
    for folder in (options.target.path, options.cache):
        refuse_unusable(folder)
    if options.check_pod:
        return pod_report(options)
    if options.dry_run:
        return set_up(options)
    with options.target.held():
        if line := options.target.recover():
            print(line, file=sys.stderr)
        return set_up(options)


if __name__ == "__main__":
    sys.exit(main(parser(), work))
