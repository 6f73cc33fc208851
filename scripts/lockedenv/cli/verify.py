"""The verifier's command line: what to check, in which order, and what to write."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from lockedenv.cli.certificate import write_certificate
from lockedenv.cli.compare import compare_documents
from lockedenv.cli.distributed import check_ranks
from lockedenv.cli.script import ShowVersion, run_script
from lockedenv.errors import Stop
from lockedenv.host import machine
from lockedenv.host.launchers import child_environment, cleared_variables
from lockedenv.prefix.lifecycle import record_verdict
from lockedenv.prefix.records import read_prefix
from lockedenv.provenance.documents import DocumentError
from lockedenv.provenance.gather import make_manifest
from lockedenv.redaction import redact_document
from lockedenv.spec import environment, locks
from lockedenv.spec.environment import ENVIRONMENT_VARIABLE, MARK
from lockedenv.verify import child
from lockedenv.verify.checklist import CHECKS
from lockedenv.verify.checks import (
    FULL,
    QUICK,
    Check,
    Context,
    Result,
    exit_status,
    failed,
    no_gpu,
    skipped,
)
from lockedenv.verify.report import Report, to_attach

FEW = 3  # children whose own imports take no longer than the whole stack's


def make_context(prefix: Path, gpu_mode: str = "auto") -> Context:
    """Reads the prefix, the locks that go with its backend, and the GPUs; what cannot be read is noted, not raised."""
    installed = read_prefix(prefix)
    context = Context(
        installed, environment.find_by_prefix(prefix), gpu_mode, environ=dict(os.environ)
    )
    try:
        context.conda_lock = context.environment.conda() if installed.backend == "conda" else []
        context.pip_lock = context.environment.wheels(installed.backend)
    except locks.LockError as error:
        context.lock_error = str(error)
    try:
        context.gpus = machine.gpus() if gpu_mode != "off" else []
    except machine.MachineError as error:
        context.gpu_error = str(error)
    return context


def timed(check: Check, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function of a check finds, with the check's name and its seconds; a crash is a result."""
    started = time.monotonic()
    try:
        result = function(*arguments)
    except Exception as error:
        result = failed(f"the check itself failed: {type(error).__name__}: {error}", check.remedy)
    result.check, result.seconds = check.name, result.seconds or time.monotonic() - started
    return result


def run_checks(context: Context, checks: List[Check], report: Report) -> List[Result]:
    """Runs the checks, children side by side where CPUs and memory allow, and reports them in order."""
    results: List[Result] = []
    running: Dict[str, float] = {}  # check -> since when

    def finish(result: Result) -> None:
        results.append(result)
        report.result(result)

    def answer(check: Check, future: "Future[Result]") -> Result:
        while not future.done():
            report.progress.show(
                lambda: ", ".join(
                    f"{name} {time.monotonic() - began:.0f} s"
                    for name, began in list(running.items())
                )
            )
            time.sleep(0.01)
        return future.result()

    def here(check: Check) -> Result:
        report.progress.show(lambda: check.name, begins=True)
        return timed(check, check.function, context)

    children = sorted(
        (c for c in checks if c.child), key=lambda c: -c.timeout
    )  # the longest starts first
    room = int(machine.memory_limit()[1] // max((c.memory for c in children), default=1))
    python, environ = context.installed.python, child_environment(
        context.installed.prefix, context.device, context.environ
    )
    with contextlib.ExitStack() as stack:  # an interrupt ends the children
        many = sum(not (c.gpu and no_gpu(context)) for c in children) > FEW and python.exists()
        fork = stack.enter_context(child.forking(python, context.device, environ)) if many else None
        pool = stack.enter_context(ThreadPoolExecutor(max(1, min(int(machine.cpu_limit()), room))))

        def begin(check: Check) -> "Future[Result]":
            if check.gpu and no_gpu(context):
                return pool.submit(
                    timed, check, skipped, f"{no_gpu(context)}, and this has no CPU path"
                )
            return pool.submit(in_child, check)

        def in_child(check: Check) -> Result:
            running[check.name] = time.monotonic()
            result = timed(check, child.run_child, check, python, context.device, environ, fork)
            del running[check.name]
            return result

        begun = {c.name: begin(c) for c in children if not c.alone}
        for check in sorted(checks, key=lambda c: (c.child, c.alone)):
            finish(
                answer(check, begun.get(check.name) or begin(check)) if check.child else here(check)
            )
    return results


def select(registry: Dict[str, Check], level: str, only: str, skip: str) -> List[Check]:
    """The checks to run, in order. Raises ValueError for an unknown name."""
    wanted, unwanted = ([n for n in names.split(",") if n] for names in (only, skip))
    for name in wanted + unwanted:
        if name not in registry:
            raise ValueError(f"no check is named {name!r}; there are: {', '.join(registry)}")
    chosen = wanted or [c.name for c in registry.values() if level in (FULL, c.level)]
    return [c for c in registry.values() if c.name in chosen and c.name not in unwanted]


def as_json(
    context: Context, level: str, results: List[Result], seconds: float, status: int
) -> Dict[str, Any]:
    """The document of --json; scripts/lockedenv/schemas/verify.schema.json describes it."""
    return {
        "schema_version": 1,
        "prefix": str(context.installed.prefix),
        "backend": context.installed.backend,
        "level": level,
        "device": context.device,
        "gpus": [
            {"name": g.name, "driver": g.driver, "capability": g.capability} for g in context.gpus
        ],
        "seconds": round(seconds, 3),
        "exit_status": status,
        "results": [asdict(r) for r in results],
    }


def write_json(target: str, document: Any) -> None:
    """Writes a document to a file, or to standard output for "-"."""
    text = json.dumps(redact_document(document), indent=2) + "\n"
    sys.stdout.write(text) if target == "-" else machine.write_atomically(Path(target), text)


def list_checks(registry: Dict[str, Check], target: Optional[str]) -> int:
    """Says what each check proves, or writes it as JSON: schemas/list.schema.json."""
    if target:
        keys = ("name", "level", "proves", "gpu", "each_gpu", "timeout")
        write_json(
            target,
            {
                "schema_version": 1,
                "checks": [{key: getattr(c, key) for key in keys} for c in registry.values()],
            },
        )
    else:
        print(*(f"{c.name:<16} {c.level:<5}  {c.proves}" for c in registry.values()), sep="\n")
    return 0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="verify_environment.py",
        description="Proves that this Python's environment is the locked one and that it works on this GPU.",
        epilog="""examples, in the environment (source ~/maximalcai/activate):
  python scripts/verify_environment.py --level quick            the locked packages, in seconds
  python scripts/verify_environment.py --only qlora,sdpa        these two checks
  python scripts/verify_environment.py --manifest results/manifest.json
  python scripts/verify_environment.py --compare results/manifest.json
  python scripts/verify_environment.py --certificate results/certificate.json      what a fixed task computes here
  python scripts/verify_environment.py --report report.txt      what to attach to a report of a problem
  torchrun --nproc-per-node 8 scripts/verify_environment.py --distributed [--certificate FILE]

exit status: 0 all good, 1 a check failed or --compare found a difference that is not allowed, 2 wrong
usage, 130 or 143 interrupted""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument
    add(
        "--level",
        choices=[QUICK, FULL],
        default=FULL,
        help="quick: the locked packages; full: all (default)",
    )
    add("--only", metavar="NAME,...", default="", help="run these checks alone")
    add("--skip", metavar="NAME,...", default="", help="leave these checks out")
    add(
        "--environment",
        metavar="NAME|DIR",
        help="compare with this one's locks (default: the prefix's own)",
    )
    add(
        "--gpu",
        choices=["auto", "require", "off"],
        default="auto",
        help="require: no GPU is a failure",
    )
    add(
        "--json",
        metavar="FILE",
        help="write the results as JSON, or what --list and --compare say; - is standard output",
    )
    add(
        "--manifest",
        metavar="FILE",
        help="write the session manifest: all that a result depends on",
    )
    add(
        "--report",
        metavar="FILE",
        help="write one text to attach to a report: results, versions, last log lines, no secrets",
    )
    add("--with-uuids", action="store_true", help="the GPUs' UUIDs too, in the manifest")
    add(
        "--certificate",
        metavar="FILE",
        help="write what a fixed training task computes here, and run no check",
    )
    compared = "what differs between two manifests or certificates, or one and this machine"
    add("--compare", metavar="FILE", nargs="+", type=Path, help=compared)
    add(
        "--distributed",
        action="store_true",
        help="under torchrun: the same environment on every rank?",
    )
    add(
        "--timeout",
        type=int,
        default=0,
        metavar="SECONDS",
        help="time limit of each check (default: its own)",
    )
    add("--strict", action="store_true", help="a warning fails too")
    add("--list", action="store_true", help="say what each check proves, and run none")
    add("--version", action=ShowVersion, nargs=0, help="print the version and the commit")
    return p


def main(arguments: Optional[List[str]] = None) -> int:
    p = parser()
    args = p.parse_args(arguments)
    return run_script(p.prog, lambda: work(args, p))


def work(args: argparse.Namespace, p: argparse.ArgumentParser) -> int:
    """The run proper; gives the exit status."""
    registry = {check.name: check for check in CHECKS}
    if args.list:
        return list_checks(registry, args.json)
    if args.environment:
        os.environ[ENVIRONMENT_VARIABLE] = environment.find(args.environment).argument
    try:
        if args.compare and (args.certificate or args.manifest or args.report or args.distributed):
            raise ValueError(
                "--compare makes what it compares itself: leave out --certificate, --manifest, --report and "
                "--distributed"
            )
        if args.compare:
            return compare_documents(args.compare, args.json, Path(sys.prefix))
        checks = select(registry, args.level, args.only, args.skip)
        if args.gpu == "require" and "driver" not in [
            *args.skip.split(","),
            *(c.name for c in checks),
        ]:
            checks.insert(0, registry["driver"])
    except (ValueError, DocumentError) as error:
        p.error(str(error))
    if (args.certificate or args.distributed) and (args.json or args.manifest or args.report):
        p.error(
            "--certificate and --distributed run no check: write --json, --manifest and --report in another run"
        )
    if args.timeout:
        checks = [replace(check, timeout=args.timeout) for check in checks]
    written = [args.json if args.json != "-" else None, args.manifest, args.report]
    written += (
        [args.certificate] if os.environ.get("RANK", "0") == "0" or not args.distributed else []
    )  # the first rank's alone
    for target in filter(None, written):
        try:  # now, not after a minute of checks
            if Path(target).is_dir():
                raise IsADirectoryError(0, "it is a folder")
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=Path(target).parent):
                pass
        except OSError as error:
            p.error(
                f"{target} cannot be written ({error.strerror}); name a file in a folder that you may write to"
            )
    if args.distributed:
        return check_ranks(Path(sys.prefix), args.gpu, args.timeout or 120, args.certificate)
    report = Report(sys.stderr if args.json == "-" else sys.stdout)
    started = time.monotonic()
    context = make_context(Path(sys.prefix), args.gpu)
    installed = context.installed
    ours = (
        (installed.prefix / MARK).exists()
        or installed.conda
        or installed.version("torch") is not None
    )
    if not (args.only or context.lock_error or ours):
        raise Stop(
            f"this is {sys.executable}, where no lock was installed; run the environment's own: source ~/maximalcai/activate, or "
            f"PREFIX/bin/python {sys.argv[0]}; scripts/setup_runpod_environment.sh makes one"
        )
    if args.certificate:
        return write_certificate(Path(sys.prefix), args.gpu, Path(args.certificate))
    made = machine.read_json(installed.prefix / MARK).get("made")
    report.say(
        f"{installed.backend} prefix {installed.prefix}, environment {context.environment.name}, {args.level} level, "
        f"on the {context.device}"
    )
    cleared = cleared_variables(context.environ)
    if cleared:
        report.say(f"cleared for the checks: {', '.join(cleared)}")
    results = run_checks(context, checks, report)
    seconds = time.monotonic() - started
    report.summary(results, seconds, args.strict)
    status = exit_status(results, args.strict)
    if (
        not (args.only or os.environ.get(ENVIRONMENT_VARIABLE))
        and args.skip in ("", "flash-attn")
        and args.gpu != "off"
    ):
        record_verdict(installed.prefix, args.level, exit_status(results) == 0, made)
    if args.json:
        write_json(args.json, as_json(context, args.level, results, seconds, status))
    if args.manifest or args.report:
        made_manifest = make_manifest(installed, context.gpus, [asdict(r) for r in results])
        document = made_manifest.document(args.with_uuids)
    if args.manifest:
        machine.write_atomically(
            Path(args.manifest), json.dumps(redact_document(document), indent=1) + "\n"
        )
    if args.report:
        machine.write_atomically(
            Path(args.report), to_attach(document, results, seconds, args.strict)
        )
    return status
