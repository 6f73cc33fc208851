"""--check-pod: what this machine is worth, with the rates of its disks and of the origins."""

from __future__ import annotations

import sys
from dataclasses import replace

from lockedenv.backends import mirror, uv_program
from lockedenv.backends.registry import BACKENDS
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop
from lockedenv.host.finding import Finding, Verdict, find_odd
from lockedenv.install.facts import choose_backend, installation_of, read_disk, read_offers
from lockedenv.install.plan import UNPACKED_PER_WHEEL
from lockedenv.install.request import Installation, Request
from lockedenv.pod import verdict as pod
from lockedenv.pod.rates import measure_rates
from lockedenv.redaction import redact
from lockedenv.verify.checks.gpu import as_result
from lockedenv.verify.report import Report


def work(request: Request) -> int:
    """Prints the verdict; 1 if the machine is to be given back."""
    report = Report(sys.stdout)
    job = installation_of(request, mirror.read_listings(installation_of(request).sources))
    backend = choose_backend(read_offers(request, job))
    needed = mirror.list_needed_files(job.environment, backend)
    odd: list[Finding] = []
    try:
        urls = addresses_to_measure(job, backend)
    except Stop as error:
        urls = {}
        silent = find_odd(
            [f"the package index gives nothing: {' '.join(str(error).split())}"],
            "see to it, or use --offline",
        )
        odd.append(replace(silent, check="pod-network"))
    places = [request.prefix, request.cache]
    fetched = sum(file.size for file in needed.values())
    results = [
        *pod.inspect_machine(),
        *odd,
        *measure_rates(places, urls, fetched, written_bytes(job, backend)),
    ]
    for result in results:
        report.result(as_result(result))
    conclusion = pod.conclude(results)
    report.say(conclusion.text)
    return 1 if conclusion.verdict is Verdict.FAIL else 0


def addresses_to_measure(job: Installation, backend: str) -> dict[str, str]:
    """A large file of each origin, by the origin's name. Raises Stop if the package index does not answer."""
    urls: dict[str, str] = {}
    if job.sources.listings or job.sources.offline:
        needed = mirror.list_needed_files(job.environment, backend)
        for address, listing in job.sources.listings.items():
            listed = [sha256 for sha256 in listing if sha256 in needed]
            if listed:
                largest = max(listed, key=lambda sha256: needed[sha256].size)
                urls[redact(address)] = f"{address}/{listing[largest]}"
    else:
        urls.update(BACKENDS[backend].largest_files(job))
        uv = uv_program.bring_uv(job.cache, Steps(1, True))
        pins = job.environment.wheels(backend)
        largest_wheel = max(pins, key=lambda pin: pin.size)
        found = uv_program.locate([largest_wheel], uv, job.environment.python)
        urls["the package index"] = found[0].sources[0]
    return {name: url for name, url in urls.items() if not url.startswith("file:")}


def written_bytes(job: Installation, backend: str) -> int:
    """What the prefix will take on its disk."""
    wheel_bytes = sum(pin.size for pin in job.environment.wheels(backend))
    space = BACKENDS[backend].space(job)
    together = read_disk(job.prefix.path).device == read_disk(job.cache).device
    beside = 0 if together else space.unpacked_beside
    return int(wheel_bytes * UNPACKED_PER_WHEEL) + space.unpacked + beside
