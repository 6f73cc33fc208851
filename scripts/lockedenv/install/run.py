"""Carries a plan out: fetch, create, the wheels, flash-attn, the user's own
packages, the verification.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator, Sequence

from lockedenv import ROOT
from lockedenv.backends import mirror, private_folders, uv_program, wheels
from lockedenv.backends.cache import find_by_hash
from lockedenv.backends.registry import BACKENDS
from lockedenv.errors import Stop, disk_text, printable
from lockedenv.host.files import write_atomically
from lockedenv.host.gpus import find_gpus
from lockedenv.host.places import POD_VOLUME
from lockedenv.install import extras
from lockedenv.install.flash_attention import provide
from lockedenv.install.flash_attention.decide import FlashPlan, decide
from lockedenv.install.plan import Plan, PlanAction
from lockedenv.install.request import Installation
from lockedenv.install.verification import VerificationOutcome, verify
from lockedenv.prefix.activation import (
    enter_text,
    restore_activate,
    write_activate,
    write_command,
    write_guard,
)
from lockedenv.prefix.inventory import MANIFEST, write_inventory
from lockedenv.prefix.lifecycle import (
    change_mark,
    finish_installation,
    make_successor,
    settle,
)
from lockedenv.prefix.make_inventory import (
    complete_inventory,
    earlier_inventory,
    locked_packages,
    take_inventory,
    without_reinstalled,
)
from lockedenv.prefix.place import Prefix, find_backend
from lockedenv.prefix.records import COMMAND, CONSTRAINTS, file_sha256, read_prefix
from lockedenv.prefix.recovery import is_own_folder
from lockedenv.prefix.status import is_ours
from lockedenv.reporter import Reporter
from lockedenv.spec import locks
from lockedenv.spec.commands import post_create_command
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level

# Steps of `finish`, of a whole set-up with the look at the machine, and of a second run.
FINISH_STEPS = 3
SETUP_STEPS = 3 + FINISH_STEPS
VERIFY_STEPS = 2
FLASH_MISSING = (
    "flash-attn is missing (why is told above); mend it and run {0}, or "
    "use --flash-attn none"
)


@dataclass(frozen=True)
class Lacking:
    """What was asked for and is not there: sentences for people, and the list of
    packages that are missing.
    """

    sentences: Sequence[str] = ()
    packages: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.sentences or self.packages)

    def shown(self) -> list[str]:
        """All of it for people."""
        lines = list(self.sentences)
        if self.packages:
            lines.append(
                f"your own packages are missing; their list is {self.packages}"
            )
        return lines


def carry_out(plan: Plan, reporter: Reporter) -> int:
    """Does what a plan says; gives the exit status.

    Until the new prefix is installed, the old one can come back.
    """
    if plan.action is PlanAction.VERIFY:
        return verify_again(plan, reporter)
    job = plan.job
    backend = BACKENDS[plan.backend]
    with reporter.step(backend.fetch_title):
        mirror.bring(job, plan.backend, reporter)
        program = backend.fetch(job, reporter)
    listed = extras.write_list(job.prefix)
    environment = job.environment.argument
    with make_successor(job.prefix, plan.backend, environment, reporter.warn) as prefix:
        job = replace(job, prefix=prefix)
        with reporter.step("Create the environment"):
            backend.create(job, program, reporter)
            # `activate` names the cache that the mark has.
            change_mark(prefix, pod=tuple(plan.pod), cache=str(job.cache))
            write_activate(prefix, plan.backend)
            # What no package records: an edit of it is known if the run ends here.
            write_inventory(
                prefix.path, take_inventory(prefix.path, [], with_interpreter=False)
            )
        restored = listed if plan.request.keep_extras else None
        flash = plan.flash_attention
        status = finish(job, plan.backend, plan.level, reporter, restored, flash)
    if listed and not plan.request.keep_extras:
        reporter.warn(
            f"your own packages were left out (--drop-extras) and are listed in {listed}; this "
            f"installs them again:\n{extras.restore_command(job, listed)}"
        )
    return status


def finish(
    job: Installation,
    backend: BackendName,
    level: Level,
    reporter: Reporter,
    listed: Path | None = None,
    flash: FlashPlan | None = None,
) -> int:
    """The three last steps on a created prefix; gives the exit status, 1 if flash-attn fails.

    Raises Stop for the wheels.

    `listed`: the packages to install besides the lock's; None for those that an earlier run could
    not install again. `flash`: the decision on flash-attn; None if it is to be made now.
    """
    lock = BACKENDS[backend].lock(job.environment)
    shown = lock.relative_to(ROOT) if ROOT in lock.parents else lock
    with dropping_unpacked(job.prefix):
        with reporter.step("Install the wheels"):
            uv = uv_program.bring_uv(
                job.cache, reporter, job.sources.offline, job.prefix.path
            )
            wheels.install(job, lock, uv, reporter)
            reporter.outcome(f"{len(locks.read_pip_lock(lock))} wheels of {shown}")
            # This order: each file that the set-up writes is in the inventory, and the mark says
            # "installed" only where an inventory says of what. A run that is killed in between is
            # done again.
            written = write_guard(
                job.prefix, guarded(job), backend, is_ours(job.prefix)
            )
            if is_ours(job.prefix):
                written += restore_activate(job.prefix, backend)
            written += write_command(job.prefix.path)
            note_inventory(job, backend, written)
            digest = job.environment.digest(backend)
            finish_installation(job.prefix, job.environment.argument, digest)
        if listed is None:
            listed = extras.not_restored(job.prefix)
        with reporter.step("flash-attn"):
            lacking = complete(job, uv, listed, reporter, flash)
    return conclude(job, level, lacking, reporter)


@contextlib.contextmanager
def dropping_unpacked(prefix: Prefix) -> Iterator[None]:
    """Removes what uv unpacks in the block, where it cannot do so in the cache:
    also where the disk is full.
    """
    try:
        yield
    finally:
        for unpacked in (
            Prefix(prefix.path).beside("maximalcai-uv"),
            private_folders.temporary("uv", prefix.path),
        ):
            if is_own_folder(unpacked):
                shutil.rmtree(unpacked, ignore_errors=True)


def verify_again(plan: Plan, reporter: Reporter) -> int:
    """On an installed prefix: what is not there yet of flash-attn and the user's
    packages, and the verifier.
    """
    job = plan.job
    listed = extras.not_restored(job.prefix)
    with reporter.step("flash-attn"), dropping_unpacked(job.prefix):
        uv = None
        if listed or job.flash.mode != "none":
            job = _with_uv_from_mirror(job, reporter)
            uv = uv_program.bring_uv(
                job.cache, reporter, job.sources.offline, job.prefix.path
            )
        lacking = complete(job, uv, listed, reporter)
    return conclude(job, plan.level, lacking, reporter)


def verify_read_only(plan: Plan, reporter: Reporter) -> int:
    """On an installed prefix that cannot be written to: the verifier alone, which notes nothing."""
    with reporter.step(f"Verify, {plan.level} level"):
        outcome = verify(
            plan.job, plan.level, skipped(plan.job), reporter, manifest=False
        )
        reporter.outcome(
            "the environment is on a read-only disk: nothing is noted in it"
        )
    return say_outcome(plan.job, outcome, Lacking(), reporter)


def _with_uv_from_mirror(job: Installation, reporter: Reporter) -> Installation:
    """The job after a served folder has given uv, where the cache lacks it."""
    pin = uv_program.uv_pin()
    if not job.sources.address or find_by_hash(
        job.cache / "wheels", "uv-*.whl", pin.sha256
    ):
        return job
    found = replace(job, sources=mirror.read_listings(job.sources))
    mirror.bring(found, None, reporter)
    return found


def complete(
    job: Installation,
    uv: Path | None,
    listed: Path | None,
    reporter: Reporter,
    flash: FlashPlan | None = None,
) -> Lacking:
    """Installs flash-attn and the listed packages; gives what could not be had.

    `uv`: may be None where neither is asked for. `flash`: as in `finish`.
    """
    sentences = []
    if job.flash.mode == "none":
        reporter.outcome("neither installed nor checked, as asked")
    else:
        assert uv is not None
        try:
            if flash is None:
                flash = decide(job, find_backend(job.prefix.path), find_gpus())
            provide.install(flash, job, uv, reporter)
        except Stop as error:
            reporter.warn(str(error))
            command = post_create_command(
                job.prefix.public_path, job.environment.argument
            )
            sentences.append(FLASH_MISSING.format(command))
    missing = None
    if listed:
        assert uv is not None
        if not extras.restore(job, listed, uv, reporter):
            missing = listed
    return Lacking(sentences, missing)


def guarded(job: Installation) -> list[locks.PipPackage]:
    """What pip and uv are to leave as it is."""
    pins = job.environment.wheels(BackendName.PIP)
    source = job.environment.flash_attn()
    if source:
        pins.append(source)
    return pins


def skipped(job: Installation) -> tuple[str, ...]:
    """The checks that are left out because what they check was not asked for."""
    if job.flash.mode == "none":
        return ("flash-attn",)
    return ()


def conclude(
    job: Installation, level: Level, lacking: Lacking, reporter: Reporter
) -> int:
    """Verifies; the last lines say what there is, what is missing, and how to enter it.

    Gives the exit status.
    """
    prefix = job.prefix
    missing = str(lacking.packages) if lacking.packages else ""
    change_mark(
        prefix,
        lacking=tuple(lacking.sentences),
        missing_packages=missing,
        clone=str(ROOT),
    )
    backend = find_backend(prefix.path)
    written = []
    if is_ours(prefix) and not (prefix.path / "activate").exists():
        written += write_activate(prefix, backend)
    if not (prefix.path / CONSTRAINTS).exists():
        written += write_guard(prefix, guarded(job), backend, is_ours(prefix))
    if not (prefix.path / COMMAND).exists():
        written += write_command(prefix.path)
    packages = locked_packages(job.environment, backend)
    complete_inventory(prefix.path, packages, written)
    with reporter.step(f"Verify, {level} level"):
        earlier = file_sha256(prefix.path / MANIFEST)
        outcome = verify(job, level, skipped(job), reporter)
        note_manifest(prefix, earlier)
        reporter.outcome(f"{sum(outcome.counts.values())} checks")
    job = replace(
        job, prefix=settle(prefix, outcome.passed, not lacking, reporter.warn)
    )
    keep_manifest(job, reporter)
    return say_outcome(job, outcome, lacking, reporter)


def note_manifest(prefix: Prefix, earlier: str) -> None:
    """Notes which manifest the verifier wrote, so that one which people edit is known.

    `earlier`: the hash before it.
    """
    written = file_sha256(prefix.path / MANIFEST)
    if written != earlier:
        with contextlib.suppress(OSError):  # on a full disk nothing is noted
            change_mark(prefix, manifest=written)


def say_outcome(
    job: Installation,
    outcome: VerificationOutcome,
    lacking: Lacking,
    reporter: Reporter,
) -> int:
    """The last lines of a run; gives the exit status."""
    path = job.prefix.public_path
    if outcome.passed:
        if outcome.said:
            reporter.show(outcome.said[-1])
        reporter.say(f"  {outcome.count_text()}")
        for check, summary in outcome.warned.items():
            reporter.say(printable(f"  warned: {check} ({summary})"))
        for line in lacking.shown():
            reporter.warn(f"verified, but not all that was asked for is there: {line}")
        exception = ""
        if lacking:
            exception = ", with the exception above"
        reporter.end(f"  {path}{exception}: {describe_contents(job)}")
    else:
        for line in outcome.said:
            reporter.show(line)
        reason = (
            outcome.problem
            or "see the checks that failed above; do what the first says"
        )
        again = post_create_command(path, job.environment.argument)
        reporter.warn(f"{path} is not verified: {reason}, and run this again: {again}")
    if is_ours(job.prefix) and (outcome.passed or lacking):
        reporter.say(enter_text(job.prefix))
    return 0 if outcome.passed and not lacking else 1


def describe_contents(job: Installation) -> str:
    """What an environment holds, such as "torch 2.5.1, transformers 4.57.6, 75 packages"."""
    installed = read_prefix(job.prefix.path)
    parts = []
    for name in ("torch", "transformers"):
        version = installed.version(name)
        if version:
            parts.append(f"{name} {version}")
    packages = locked_packages(job.environment, installed.backend)
    parts.append(f"{len(packages)} packages")
    return ", ".join(parts)


def keep_manifest(job: Installation, reporter: Reporter) -> None:
    """On a pod, a copy of the manifest on the volume, because the prefix is lost with the
    pod; if it fails, a warning.
    """
    manifest = job.prefix.path / MANIFEST
    if not os.environ.get("RUNPOD_POD_ID") or not os.access(POD_VOLUME, os.W_OK):
        return
    if not manifest.exists():
        return
    name = time.strftime("%Y-%m-%dT%H-%M-%SZ.json", time.gmtime())
    try:
        text = manifest.read_text(encoding="utf-8")
        write_atomically(POD_VOLUME / "maximalcai-manifests" / name, text)
    except OSError as error:
        reporter.warn(
            f"warning: the manifest is in the prefix alone: {disk_text(error)}"
        )


def note_inventory(
    job: Installation, backend: BackendName, written: Sequence[str]
) -> None:
    """Writes the inventory of what is installed now. `written`: what the set-up wrote again."""
    folder = job.prefix.path
    packages = locked_packages(job.environment, backend)
    earlier = earlier_inventory(folder)
    if earlier is not None and not is_ours(job.prefix):
        # In an environment of their own, people install the conda layer again themselves.
        earlier = without_reinstalled(earlier, folder)
    taken = take_inventory(folder, packages, earlier=earlier, written=written)
    write_inventory(folder, taken)
