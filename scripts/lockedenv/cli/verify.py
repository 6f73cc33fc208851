"""verify_environment.py: the mode that is asked for, which checks run, and what is written."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from lockedenv.cli.script import run_script
from lockedenv.cli.targets import Target, TargetKind, refuse_targets, write_json
from lockedenv.cli.verify_options import (
    PROGRAM,
    STDOUT,
    VerifyRequest,
    make_request,
    parser,
)
from lockedenv.errors import Stop, UsageError
from lockedenv.host.files import write_document
from lockedenv.host.gpus import GpuError, find_gpus
from lockedenv.host.launchers import cleared_variables
from lockedenv.prefix.extras import added_requirements
from lockedenv.prefix.inventory import MANIFEST
from lockedenv.prefix.lifecycle import record_verdict
from lockedenv.prefix.place import mark_or_none
from lockedenv.prefix.records import read_prefix
from lockedenv.redaction import redact_document
from lockedenv.spec import environment, locks
from lockedenv.spec.environment import MARK
from lockedenv.spec.level import Level
from lockedenv.verify.checklist import CHECKS, find_check, select_checks
from lockedenv.verify.checks import AnyCheck, Context
from lockedenv.verify.report import NO_ENVIRONMENT, CheckReport, Scope, to_attach
from lockedenv.verify.result import Result, exit_status
from lockedenv.verify.runner import run_checks

RANKS_TIMEOUT = 120  # seconds for each stage of --distributed


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        PROGRAM, lambda: work(make_request(parser().parse_args(arguments)))
    )


# What only one mode needs is imported there: the quick level is asked for most, and takes a second.


def work(request: VerifyRequest) -> int:
    """Does what is asked for, one function a mode; gives the exit status."""
    refuse_targets(find_targets(request), request.compare, request.prefix / MANIFEST)
    if request.list:
        return list_checks(request.json)
    if request.environment:
        environment.compare_with(request.environment)
    if request.compare:
        return compare(request)
    if request.distributed:
        from lockedenv.cli.distributed import check_ranks

        timeout = request.timeout or RANKS_TIMEOUT
        return check_ranks(request.prefix, request.gpu, timeout, request.certificate)
    if request.certificate:
        from lockedenv.cli.certificate import write_certificate

        return write_certificate(request.prefix, request.gpu, Path(request.certificate))
    return verify(request)


def compare(request: VerifyRequest) -> int:
    """Says what differs between documents. Raises UsageError for what is none."""
    from lockedenv.cli.compare import compare_documents
    from lockedenv.provenance.documents import DocumentError

    try:
        return compare_documents(list(request.compare), request.json, request.prefix)
    except DocumentError as error:
        raise UsageError(str(error)) from None


def find_targets(request: VerifyRequest) -> list[Target]:
    """The files that will be written: of a certificate on many ranks, by the first rank alone."""
    targets = []
    if request.json and request.json != STDOUT:
        targets.append(Target(request.json, TargetKind.JSON))
    if request.list:
        return targets
    if request.manifest:
        targets.append(Target(request.manifest, TargetKind.JSON))
    if request.report:
        targets.append(Target(request.report, TargetKind.REPORT))
    is_first = not request.distributed or os.environ.get("RANK", "0") == "0"
    if request.certificate and is_first:
        targets.append(Target(request.certificate, TargetKind.JSON))
    return targets


# --list


def list_checks(target: str | None) -> int:
    """Says what each check proves, or writes it as JSON: schemas/list.schema.json."""
    if target:
        keys = ("name", "level", "proves", "gpu", "each_gpu", "timeout")
        rows = [{key: getattr(check, key) for key in keys} for check in CHECKS]
        write_json(target, {"schema_version": 1, "checks": rows})
        return 0
    for check in CHECKS:
        print(f"{check.name:<16} {check.level:<5}  {check.proves}")
    return 0


# Verifying


def verify(request: VerifyRequest) -> int:
    """Runs the checks, and writes what was asked for; gives the exit status."""
    checks = choose_checks(request)
    out = sys.stderr if request.json == STDOUT else sys.stdout
    report = CheckReport(out, grouped=not (request.verbose or request.only))
    began = time.monotonic()
    context = make_context(request.prefix, request.gpu)
    installed = context.installed
    if not request.only and not is_environment(context):
        refuse_other_python(request, context)
    made = _made(request.prefix)
    scope = Scope(request.level, tuple(check.name for check in checks), request.whole)
    report.begin(context, scope)
    cleared = cleared_variables(context.environ)
    if cleared:
        report.say(f"cleared for the checks: {', '.join(cleared)}")
    results = run_checks(context, checks, report, request.environment)
    seconds = time.monotonic() - began
    report.summary(results, seconds, request.strict, scope)
    status = exit_status(results, request.strict)
    if request.whole:
        added = added_requirements(installed, context.contents.inventory)
        record_verdict(
            installed.prefix, request.level, exit_status(results) == 0, made, added
        )
    if request.json:
        write_json(
            request.json, as_json(context, request.level, results, seconds, status)
        )
    if request.manifest or request.report:
        document = describe_session(request, context, results)
        if request.manifest:
            write_manifest(request.manifest, document, installed.prefix, report)
        if request.report:
            text = to_attach(document, results, seconds, request.strict, scope)
            write_document(Path(request.report), as_utf8(text))
            report.say(f"{request.report} is written")
    return status


def write_manifest(
    target: str, document: dict[str, Any], prefix: Path, report: CheckReport
) -> None:
    """Writes a session manifest, and says so where a person asked for it."""
    text = json.dumps(redact_document(document), indent=1) + "\n"
    write_document(Path(target), text)
    if Path(target) != prefix / MANIFEST:
        # The set-up's own is not asked for, and the set-up shows the last line: the verdict.
        report.say(f"{target} is written")


def as_utf8(text: str) -> str:
    """A text in which names of files that are no UTF-8 are written out, such as r\\udcffs.txt."""
    return text.encode(errors="backslashreplace").decode()


def describe_session(
    request: VerifyRequest, context: Context, results: Sequence[Result]
) -> dict[str, Any]:
    """The session manifest, with the results of the checks that ran."""
    from lockedenv.provenance.gather import make_manifest

    rows = [asdict(result) for result in results]
    return make_manifest(context.installed, context.gpus, rows).document(
        request.with_uuids
    )


def choose_checks(request: VerifyRequest) -> list[AnyCheck]:
    """The checks to run, in order.

    Raises UsageError for an unknown name, and where none is left.
    """
    checks = select_checks(request.level, list(request.only), list(request.skip))
    if not checks:
        raise UsageError("--only and --skip leave no check to run")
    names = [check.name for check in checks]
    if request.gpu == "require" and "driver" not in (*request.skip, *names):
        checks.insert(0, find_check("driver"))
    if request.timeout:
        checks = [replace(check, timeout=request.timeout) for check in checks]
    return checks


def make_context(prefix: Path, gpu_mode: str = "auto") -> Context:
    """Reads the prefix, its locks and the GPUs; what cannot be read is noted, not raised."""
    installed = read_prefix(prefix)
    context = Context(
        installed, environment.find_compared(prefix), gpu_mode, environ=dict(os.environ)
    )
    try:
        if installed.backend.has_conda_layer:
            context.conda_lock = context.environment.conda()
        context.pip_lock = context.environment.wheels(installed.backend)
    except locks.LockError as error:
        context.lock_error = str(error)
    if gpu_mode == "off":
        return context
    try:
        context.gpus = find_gpus()
    except GpuError as error:
        context.gpu_error = str(error)
    return context


def is_environment(context: Context) -> bool:
    """Whether something of a lock was installed where this Python looks."""
    installed = context.installed
    if (installed.prefix / MARK).exists() or installed.conda or context.lock_error:
        return True
    return installed.version("torch") is not None


def refuse_other_python(request: VerifyRequest, context: Context) -> NoReturn:
    """Says that this is no environment of a lock; --report is written nevertheless. Raises Stop."""
    text = (
        f"this is {sys.executable}, {NO_ENVIRONMENT}; run the environment's own: "
        f"source ~/maximalcai/activate, or PREFIX/bin/python {sys.argv[0]}; "
        "scripts/setup_runpod_environment.sh makes one"
    )
    if not request.report:
        raise Stop(text)
    scope = Scope(request.level, (), False)
    document = describe_session(request, context, [])
    report = to_attach(document, [], 0.0, request.strict, scope, text)
    write_document(Path(request.report), as_utf8(report))
    raise Stop(f"{text}. {request.report} is written, without results of checks")


def _made(prefix: Path) -> int:
    """When the set-up made the environment, in ns; 0 if it did not."""
    mark = mark_or_none(prefix)
    return mark.made if mark else 0


def as_json(
    context: Context, level: Level, results: list[Result], seconds: float, status: int
) -> dict[str, Any]:
    """The document of --json; scripts/lockedenv/schemas/verify.schema.json describes it."""
    gpus = []
    for gpu in context.gpus:
        row = {"name": gpu.name, "driver": gpu.driver, "capability": gpu.capability}
        gpus.append(row)
    return {
        "schema_version": 1,
        "prefix": str(context.installed.prefix),
        "backend": context.installed.backend,
        "level": level.value,
        "device": context.device,
        "gpus": gpus,
        "seconds": round(seconds, 3),
        "exit_status": status,
        "results": [asdict(result) for result in results],
    }
