"""--check-pod: what this machine is worth, with the rates of its disks and of the origins."""

from __future__ import annotations

import sys
from dataclasses import replace
from urllib.parse import quote

from lockedenv.backends import mirror, uv_program
from lockedenv.backends.base import FileOrigin
from lockedenv.backends.registry import BACKENDS
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop
from lockedenv.host.finding import Finding, FindingOutcome, warned
from lockedenv.install.facts import (
    asked_sources,
    choose_backend,
    make_job,
    read_disk,
    read_offers,
)
from lockedenv.install.plan import UNPACKED_PER_WHEEL
from lockedenv.install.request import Installation, SetupRequest
from lockedenv.pod import verdict as pod
from lockedenv.pod.rates import measure_rates
from lockedenv.prefix.place import find_prefix
from lockedenv.redaction import redact
from lockedenv.spec.layers import BackendName
from lockedenv.verify.checks.gpu import as_result
from lockedenv.verify.report import CheckReport


def work(request: SetupRequest) -> int:
    """Prints the verdict; 1 if the machine is to be given back."""
    report = CheckReport(sys.stdout)
    sources = mirror.read_listings(asked_sources(request))
    job = make_job(request, find_prefix(request.prefix), sources)
    backend = choose_backend(read_offers(request, job))
    needed = mirror.list_needed_files(job.environment, backend)
    odd: list[Finding] = []
    try:
        origins = list_origins(job, backend)
    except Stop as error:
        origins = []
        silent = warned(
            [f"the package index gives nothing: {' '.join(str(error).split())}"],
            "see to it, or use --offline",
        )
        odd.append(replace(silent, check="pod-network"))
    places = [request.prefix, request.cache]
    fetched = sum(file.size for file in needed.values())
    results = [
        *pod.inspect_machine(),
        *odd,
        *measure_rates(places, origins, fetched, written_bytes(job, backend)),
    ]
    for result in results:
        report.result(as_result(result))
    conclusion = pod.conclude(results)
    report.say(conclusion.text)
    return 1 if conclusion.verdict is FindingOutcome.FAIL else 0


def list_origins(job: Installation, backend: BackendName) -> list[FileOrigin]:
    """The origins that have a server. Raises Stop if the package index does not answer."""
    if job.sources.listings or job.sources.offline:
        origins = _list_mirrors(job, backend)
    else:
        origins = [*BACKENDS[backend].origins(job), _find_index(job, backend)]
    served = []
    for origin in origins:
        if not origin.address.startswith("file:"):
            served.append(origin)
    return served


def _list_mirrors(job: Installation, backend: BackendName) -> list[FileOrigin]:
    """The served folders. What several of them list counts for the first."""
    needed = dict(mirror.list_needed_files(job.environment, backend))
    origins = []
    for address, listing in job.sources.listings.items():
        files = {}
        for sha256, path in listing.items():
            if sha256 in needed:
                files[path] = needed.pop(sha256)
        if files:
            largest = max(files, key=lambda path: files[path].size)
            size = files[largest].size
            total = sum(file.size for file in files.values())
            origins.append(
                FileOrigin(redact(address), f"{address}/{quote(largest)}", size, total)
            )
    return origins


def _find_index(job: Installation, backend: BackendName) -> FileOrigin:
    uv = uv_program.bring_uv(job.cache, Steps(1, True))
    pins = job.environment.wheels(backend)
    largest = max(pins, key=lambda pin: pin.size)
    found = uv_program.locate([largest], uv, job.environment.python)
    total = sum(pin.size for pin in pins)
    return FileOrigin("the package index", found[0].sources[0], largest.size, total)


def written_bytes(job: Installation, backend: BackendName) -> int:
    """What the prefix will take on its disk."""
    wheel_bytes = sum(pin.size for pin in job.environment.wheels(backend))
    space = BACKENDS[backend].space(job)
    together = read_disk(job.prefix.path).device == read_disk(job.cache).device
    beside = 0 if together else space.unpacked_beside
    return int(wheel_bytes * UNPACKED_PER_WHEEL) + space.unpacked + beside
