"""A folder made by --download-only is a mirror at whatever address serves it: what the locks name comes from it by hash.

The folder, the mirror and the cache have one layout, so what is fetched from a mirror goes to the same place in the cache.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Dict
from urllib.parse import quote

from lockedenv.console import Steps, Stop, redact
from lockedenv.environment import Environment
from lockedenv.install import fetch, kept, wheels
from lockedenv.install.conda import MICROMAMBA
from lockedenv.install.options import Options
from lockedenv.machine import size_text, write_atomically
from lockedenv.process import ask

INDEX = "files.json"  # sha256 -> path: a bucket does not say what it has
PYTHON = "python-archives"  # uv's own name for each; uv knows their hashes
CURL = "curl --disable --netrc-optional --config - --location --fail --silent --show-error --max-time 30 --connect-timeout 10"


def write_index(folder: Path) -> None:
    """Lists a folder's files with their hashes, for those that will have it at an address."""
    found: Dict[str, str] = {}
    for place in ("pkgs", "wheels", PYTHON):
        files = [path for path in sorted(folder.glob(f"{place}/*")) if path.suffix != ".part" and path.name[0] != "."]
        found.update((sha, f"{place}/{path.name}") for path, sha in kept.known(files).items())
    write_atomically(folder / INDEX, json.dumps(found, indent=0) + "\n")


def read_index(address: str) -> Dict[str, str]:
    """sha256 -> path of what a mirror has; empty if it is a channel's mirror, which has no such list. Raises Stop."""
    status, text, why = ask(CURL.split(), 60, f"url = {json.dumps(f'{address}/{INDEX}')}\n")
    if status == 22 and "404" in why:
        return {}
    if status != 0:
        raise Stop(f"{redact(address)} does not answer ({redact(' '.join(why.split()))}); check the address")
    try:
        found: Dict[str, str] = json.loads(text)
        good = all(re.fullmatch("[0-9a-f]{64}", sha) and re.fullmatch(r"[\w-]+/[^/\\]+", path) for sha, path in found.items())
    except (ValueError, AttributeError, TypeError):
        good = False
    if not good:
        raise Stop(f"{redact(address)}/{INDEX} is not the list of a folder made by --download-only; make it anew")
    return found


def look(options: Options) -> None:
    """Reads the lists of --offline's address or of the mirrors. Raises Stop if --offline's has none."""
    options.lists = {}
    for address in [options.source] if options.source else [mirror.rstrip("/") for mirror in options.mirrors]:
        try:
            options.lists[address] = read_index(address)
        except Stop:
            if options.source:
                raise
    if options.source and not options.lists[options.source]:
        raise Stop(f"{redact(options.source)} has no {INDEX}: it is no folder made by --download-only; check the address")
    options.lists = {address: found for address, found in options.lists.items() if found}
    options.mirrors = [mirror for mirror in options.mirrors if mirror.rstrip("/") not in options.lists]


def wanted(of: Environment, backend: str) -> Dict[str, int]:
    """sha256 -> size in bytes (0 where no lock tells) of what an installation takes; backend "": uv and flash-attn alone."""
    pins = [*(of.wheels(backend) if backend else []), wheels.uv_pin(), *filter(None, [of.flash_attn()])]
    sizes = {pin.sha256: pin.size for pin in pins}
    sizes.update((p.sha256, p.size) for p in ([*of.conda(), MICROMAMBA] if backend == "conda" else []))
    return {**sizes, **{wheel.sha256: 0 for wheel in filter(None, [of.flash_wheel()])}}


def bring(options: Options, backend: str, steps: Steps) -> None:
    """Fetches what the mirrors have of an installation into the cache. What they cannot give is left to the origin."""
    sizes, places = wanted(options.of, backend), defaultdict(dict)  # type: ignore
    python = re.compile(rf"{PYTHON}/\w+-cpython-{re.escape(options.of.python)}\.")
    for address, found in options.lists.items():
        for sha, path in found.items():
            if sha in sizes or backend == "pip" and python.match(path):
                place, _, name = path.partition("/")
                places[place].setdefault(sha, fetch.Item(name, sha, sizes.get(sha, 0), [])).sources.append(
                    f"{address}/{quote(path)}"
                )
    for place, items in places.items():
        try:
            got = fetch.fetch([*items.values()], options.cache / place, steps.note, steps.quiet, rounds=3, has=kept.known)
            steps.note(f"{len(items)} files of {place} from the mirror, hashes right; {size_text(got)} fetched now")
        except fetch.FetchError as error:
            steps.note(f"not all is on the mirror: {str(error).splitlines()[1].strip()}")
