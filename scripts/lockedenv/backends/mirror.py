"""A folder made by --download-only is a mirror at whatever address serves it: what the locks name comes from it by hash.

The folder, the mirror and the cache have one layout, so what is fetched from a mirror goes to the same place in the cache.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Dict, Tuple
from urllib.parse import quote

from lockedenv.backends import download as fetch
from lockedenv.backends import kept, uv_program
from lockedenv.backends.base import Job, Sources
from lockedenv.errors import Stop
from lockedenv.host.machine import size_text, write_atomically
from lockedenv.host.process import ask
from lockedenv.redaction import redact
from lockedenv.reporter import Reporter
from lockedenv.spec.environment import Environment
from lockedenv.spec.programs import MICROMAMBA

INDEX = "files.json"  # sha256 -> path: a bucket does not say what it has
PYTHON = "python-archives"  # uv's own name for each; uv knows their hashes
PATH = re.compile(
    rf"(pkgs|wheels|{PYTHON})/[A-Za-z0-9_][\w.+!-]{{0,200}}(?<!\.part)", re.ASCII
)  # no other place in the cache
CURL = """curl --disable --netrc-optional --config - --location --fail --silent --show-error --max-time 15 --connect-timeout 10
--max-filesize 10000000"""


def write_index(folder: Path) -> None:
    """Lists a folder's files with their hashes, for those that will have it at an address."""
    found: Dict[str, str] = {}
    for place in ("pkgs", "wheels", PYTHON):
        files = [
            path
            for path in sorted(folder.glob(f"{place}/*"))
            if PATH.fullmatch(f"{place}/{path.name}")
        ]
        found.update((sha, f"{place}/{path.name}") for path, sha in kept.known(files).items())
    write_atomically(folder / INDEX, json.dumps(found, indent=0) + "\n")


def read_index(address: str) -> Dict[str, str]:
    """sha256 -> path of what a mirror has; empty if it is a channel's mirror, which has no such list. Raises Stop."""
    status, text, why = ask(
        CURL.split(), 60, f"url = {json.dumps(f'{address}/{INDEX}', ensure_ascii=False)}\n"
    )
    if status == 22 and "404" in why:
        return {}
    if status != 0:
        raise Stop(
            f"{redact(address)} does not answer ({redact(' '.join(why.split()))}); check the address"
        )
    try:
        found: Dict[str, str] = json.loads(text)
        good = all(
            re.fullmatch("[0-9a-f]{64}", sha) and PATH.fullmatch(path)
            for sha, path in found.items()
        )
        good = good and len({*found.values()}) == len(found)
    except (ValueError, AttributeError, TypeError, RecursionError):
        good = False
    if not good:
        raise Stop(
            f"{redact(address)}/{INDEX} is not the list of a folder made by --download-only; make it anew"
        )
    return found


def read_listings(asked: Sources) -> Sources:
    """The sources with the lists of what --offline's address or the mirrors have.

    A mirror that has such a list is no channel's mirror. Raises Stop if --offline's address has none.
    """
    addresses = [mirror.rstrip("/") for mirror in asked.mirrors]
    if asked.address:
        addresses = [asked.address]
    listings: Dict[str, Dict[str, str]] = {}
    with ThreadPoolExecutor(len(addresses) or 1) as pool:
        answers = [pool.submit(read_index, address) for address in addresses]
        for address, answer in zip(addresses, answers):
            try:
                found = answer.result()
            except Stop:
                if asked.address:
                    raise
                continue
            if found:
                listings[address] = found
    if asked.address and not listings:
        raise Stop(
            f"{redact(asked.address)} has no {INDEX}: it is no folder made by --download-only; check the address"
        )
    others = tuple(mirror for mirror in asked.mirrors if mirror.rstrip("/") not in listings)
    return replace(asked, listings=listings, mirrors=others)


def wanted(of: Environment, backend: str, archives: bool = True) -> Dict[str, Tuple[int, str]]:
    """sha256 -> (size in bytes, 0 where no lock tells; what its path matches) of what an installation takes.

    Backend "": uv and flash-attn alone. A file under another name would lie in the cache unseen by what looks for it.
    """
    found: Dict[str, Tuple[int, str]] = {}
    for pin in [
        *(of.wheels(backend) if backend else []),
        uv_program.uv_pin(),
        *filter(None, [of.flash_attn()]),
    ]:
        name = pin.name.replace("-", "[-_.]+")
        found[pin.sha256] = pin.size, rf"(?i)wheels/{name}-{re.escape(pin.version)}(-.*|\.tar\.gz)"
    for package in [*of.conda(), MICROMAMBA] if backend == "conda" and archives else []:
        found[package.sha256] = package.size, re.escape(f"pkgs/{package.filename}")
    for wheel in filter(None, [of.flash_wheel()]):
        found[wheel.sha256] = 0, re.escape(f"wheels/{wheel.filename}")
    return found


def refuse_incomplete(job: Job, backend: str) -> None:
    """Raises Stop if --offline's folder or address has no file for a package of the environment, by name or by its list."""
    if not job.sources.offline:
        return
    optional = wanted(job.environment, "")
    names = [
        f"{place}/{path.name}"
        for place in ("pkgs", "wheels")
        for path in job.sources.offline.glob(f"{place}/*")
    ]
    listed = {sha for found in job.sources.listings.values() for sha in found}
    needed = {
        sha: pattern
        for sha, (_, pattern) in wanted(job.environment, backend).items()
        if sha not in optional
    }
    lacking = [
        sha
        for sha, at in needed.items()
        if sha not in listed and not any(re.fullmatch(at, name) for name in names)
    ]
    if lacking:
        given = f" --environment {job.environment.given}" * (job.environment.name != "default")
        known = {pin.sha256: pin.name for pin in job.environment.wheels(backend)}
        known.update(
            (package.sha256, package.name) for package in [*job.environment.conda(), MICROMAMBA]
        )
        where = f"{redact(job.sources.address) or job.sources.offline} lacks {len(lacking)} of the {len(needed)} files"
        raise Stop(
            f"{where} of the environment {job.environment.name}, {backend} backend, such as {known[lacking[0]]}; "
            f"collect them there with --download-only{given}"
        )


def bring(job: Job, backend: str, reporter: Reporter, archives: bool = True) -> None:
    """Fetches what the mirrors have of an installation into the cache. What they cannot give is left to the origin."""
    needed, places = wanted(job.environment, backend, archives), defaultdict(dict)  # type: ignore
    python = (
        rf"{PYTHON}/\w+-cpython-{re.escape(job.environment.python)}\..*"
        if backend == "pip"
        else "$^"
    )
    for address, found in job.sources.listings.items():
        for sha, path in found.items():
            size, pattern = needed.get(sha, (0, python))
            if re.fullmatch(pattern, path):
                place, _, name = path.partition("/")
                item = places[place].setdefault(sha, fetch.Item(name, sha, size, []))
                item.sources.append(f"{address}/{quote(path)}")
    for place, items in places.items():
        try:
            got = fetch.fetch(
                [*items.values()],
                job.cache / place,
                reporter.note,
                reporter.quiet,
                rounds=3,
                has=kept.known,
            )
            checked = "which uv checks" if place == PYTHON else "hashes right"
            reporter.note(
                f"{len(items)} files of {place} from the mirror, {checked}; {size_text(got)} fetched now"
            )
        except fetch.FetchError as error:
            reporter.note(f"not all is on the mirror: {str(error).splitlines()[:2][-1].strip()}")
