"""A folder made by --download-only is a mirror at whatever address serves it: what the locks name comes from it by hash.

The folder, the mirror and the cache have one layout, so what is fetched from a mirror goes to the same place in the cache.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Tuple
from urllib.parse import quote

from lockedenv.backends import download as fetch
from lockedenv.backends import kept, wheels
from lockedenv.backends.conda import MICROMAMBA
from lockedenv.cli.options import Options
from lockedenv.errors import Stop
from lockedenv.host.machine import size_text, write_atomically
from lockedenv.host.process import ask
from lockedenv.output import Steps
from lockedenv.redaction import redact
from lockedenv.spec.environment import Environment

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


def look(options: Options) -> None:
    """Reads the lists of --offline's address or of the mirrors. Raises Stop if --offline's has none."""

    def ask_for(address: str) -> Dict[str, str]:
        try:
            return read_index(address)
        except Stop:
            if options.source:
                raise
            return {}

    addresses = (
        [options.source] if options.source else [mirror.rstrip("/") for mirror in options.mirrors]
    )
    with ThreadPoolExecutor(len(addresses) or 1) as pool:
        options.lists = {
            address: found
            for address, found in zip(addresses, pool.map(ask_for, addresses))
            if found
        }
    if options.source and not options.lists:
        raise Stop(
            f"{redact(options.source)} has no {INDEX}: it is no folder made by --download-only; check the address"
        )
    options.mirrors = [
        mirror for mirror in options.mirrors if mirror.rstrip("/") not in options.lists
    ]


def wanted(of: Environment, backend: str, archives: bool = True) -> Dict[str, Tuple[int, str]]:
    """sha256 -> (size in bytes, 0 where no lock tells; what its path matches) of what an installation takes.

    Backend "": uv and flash-attn alone. A file under another name would lie in the cache unseen by what looks for it.
    """
    found: Dict[str, Tuple[int, str]] = {}
    for pin in [
        *(of.wheels(backend) if backend else []),
        wheels.uv_pin(),
        *filter(None, [of.flash_attn()]),
    ]:
        name = pin.name.replace("-", "[-_.]+")
        found[pin.sha256] = pin.size, rf"(?i)wheels/{name}-{re.escape(pin.version)}(-.*|\.tar\.gz)"
    for package in [*of.conda(), MICROMAMBA] if backend == "conda" and archives else []:
        found[package.sha256] = package.size, re.escape(f"pkgs/{package.filename}")
    for wheel in filter(None, [of.flash_wheel()]):
        found[wheel.sha256] = 0, re.escape(f"wheels/{wheel.filename}")
    return found


def refuse_incomplete(options: Options, backend: str) -> None:
    """Raises Stop if --offline's folder or address has no file for a package of the environment, by name or by its list."""
    if not options.offline:
        return
    optional = wanted(options.of, "")
    names = [
        f"{place}/{path.name}"
        for place in ("pkgs", "wheels")
        for path in options.offline.glob(f"{place}/*")
    ]
    listed = {sha for found in options.lists.values() for sha in found}
    needed = {
        sha: pattern
        for sha, (_, pattern) in wanted(options.of, backend).items()
        if sha not in optional
    }
    lacking = [
        sha
        for sha, at in needed.items()
        if sha not in listed and not any(re.fullmatch(at, name) for name in names)
    ]
    if lacking:
        given = f" --environment {options.of.given}" * (options.of.name != "default")
        known = {pin.sha256: pin.name for pin in options.of.wheels(backend)}
        known.update(
            (package.sha256, package.name) for package in [*options.of.conda(), MICROMAMBA]
        )
        where = f"{redact(options.source) or options.offline} lacks {len(lacking)} of the {len(needed)} files"
        raise Stop(
            f"{where} of the environment {options.of.name}, {backend} backend, such as {known[lacking[0]]}; "
            f"collect them there with --download-only{given}"
        )


def bring(options: Options, backend: str, steps: Steps, archives: bool = True) -> None:
    """Fetches what the mirrors have of an installation into the cache. What they cannot give is left to the origin."""
    needed, places = wanted(options.of, backend, archives), defaultdict(dict)  # type: ignore
    python = (
        rf"{PYTHON}/\w+-cpython-{re.escape(options.of.python)}\..*" if backend == "pip" else "$^"
    )
    for address, found in options.lists.items():
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
                options.cache / place,
                steps.note,
                steps.quiet,
                rounds=3,
                has=kept.known,
            )
            checked = "which uv checks" if place == PYTHON else "hashes right"
            steps.note(
                f"{len(items)} files of {place} from the mirror, {checked}; {size_text(got)} fetched now"
            )
        except fetch.FetchError as error:
            steps.note(f"not all is on the mirror: {str(error).splitlines()[:2][-1].strip()}")
