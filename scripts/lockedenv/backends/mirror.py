"""A folder made by --download-only is a mirror at whatever address serves it: what the locks name
comes from it by hash.

The folder, the mirror and the cache have one layout, so what is fetched from a mirror goes to the
same place in the cache. A mirror's list says what it has; the name of a file in the cache is made
from the lock.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterable, Mapping
from urllib.parse import quote

from lockedenv.backends.base import Job, Sources
from lockedenv.backends.cache import CacheFolder, read_archive_hashes
from lockedenv.backends.download import UNKNOWN_SIZE_LIMIT, FetchError, Item, fetch
from lockedenv.backends.file_names import distribution_file_name, is_plain_name
from lockedenv.backends.registry import BACKENDS
from lockedenv.backends.transfer import read_document
from lockedenv.backends.uv_program import uv_pin
from lockedenv.errors import Stop
from lockedenv.host.disks import size_text
from lockedenv.host.files import write_atomically
from lockedenv.redaction import redact
from lockedenv.reporter import Reporter
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.locks import CondaPackage, PipPackage, PrebuiltWheel

INDEX = "files.json"  # sha256 -> path: a bucket does not say what it has
# The list of both layers of two environments has 60 kB.
INDEX_LIMIT = 10_000_000
INDEX_SECONDS = 15
# What is fetched from a mirror is asked for elsewhere afterwards, so a mirror gets fewer attempts.
ROUNDS = 3
# uv's archives of Python have 20 to 70 MB, and no lock knows their hashes: uv does.
PYTHON_ARCHIVE_LIMIT = 500_000_000


@dataclass(frozen=True)
class NeededFile:
    """A file that an installation takes. `size` in bytes, 0 where no lock tells."""

    place: CacheFolder
    sha256: str
    size: int
    package: PipPackage | CondaPackage | PrebuiltWheel

    def find_name(self, listed: str) -> str | None:
        """Its file name in the cache, if a path in a mirror's list or in a folder can be this file;
        otherwise None.

        Under another name it would lie in the cache unseen by what looks for it.
        """
        place, _, name = listed.partition("/")
        if place != self.place.value:
            return None
        if isinstance(self.package, PipPackage):
            try:
                return distribution_file_name(self.package, name)
            except Stop:
                return None
        if name != self.package.filename:
            return None
        return self.package.filename


def list_needed_files(
    environment: Environment, backend: BackendName | None, archives: bool = True
) -> dict[str, NeededFile]:
    """What an installation takes, by sha256. `backend` None: uv and flash-attn alone."""
    found: dict[str, NeededFile] = {}
    pins = [uv_pin()]
    if backend:
        pins += environment.wheels(backend)
    source = environment.flash_attn()
    if source:
        pins.append(source)
    for pin in pins:
        found[pin.sha256] = NeededFile(CacheFolder.WHEELS, pin.sha256, pin.size, pin)
    if backend and archives:
        for package in BACKENDS[backend].archives(environment):
            found[package.sha256] = NeededFile(
                CacheFolder.ARCHIVES, package.sha256, package.size, package
            )
    prebuilt = environment.flash_wheel()
    if prebuilt:
        found[prebuilt.sha256] = NeededFile(
            CacheFolder.WHEELS, prebuilt.sha256, 0, prebuilt
        )
    return found


# The list of a folder -----------------------------------------------------------------------------


def write_index(folder: Path) -> None:
    """Lists a folder's files with their hashes, for those that will have it at an address."""
    listing: dict[str, str] = {}
    for place in CacheFolder:
        files = []
        for path in sorted(folder.glob(f"{place.value}/*")):
            if is_plain_name(path.name):
                files.append(path)
        for path, sha256 in read_archive_hashes(files).items():
            listing[sha256] = f"{place.value}/{path.name}"
    write_atomically(folder / INDEX, json.dumps(listing, indent=0) + "\n")


def read_index(address: str) -> dict[str, str]:
    """sha256 -> path of what a mirror has; empty if it is a channel's mirror, which has no such
    list. Raises Stop.
    """
    document = read_document(f"{address}/{INDEX}", INDEX_LIMIT, INDEX_SECONDS)
    if document.missing:
        return {}
    if document.problem:
        raise Stop(
            f"{redact(address)} does not answer ({document.problem}); check the address"
        )
    try:
        return parse_index(document.text)
    except ValueError:
        raise Stop(
            f"{redact(address)}/{INDEX} is not the list of a folder made by --download-only; make "
            "it anew"
        ) from None


def parse_index(text: str) -> dict[str, str]:
    """The list in a mirror's answer. Raises ValueError for what `write_index` would not write."""
    try:
        listing = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(listing, dict):
        raise ValueError("not an object")
    places = {place.value for place in CacheFolder}
    for sha256, path in listing.items():
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not isinstance(path, str):
            raise ValueError("not a hash and a path")
        place, _, name = path.partition("/")
        if place not in places or not is_plain_name(name):
            raise ValueError("a path that leads elsewhere")
    if len(set(listing.values())) != len(listing):
        raise ValueError("one path for two hashes")
    return listing


def read_listings(asked: Sources) -> Sources:
    """The sources with the lists of what --offline's address or the mirrors have.

    A mirror that has such a list is no channel's mirror. Raises Stop if --offline's address has
    none.
    """
    addresses = [mirror.rstrip("/") for mirror in asked.mirrors]
    if asked.address:
        addresses = [asked.address]
    listings: dict[str, dict[str, str]] = {}
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
            f"{redact(asked.address)} has no {INDEX}: it is no folder made by --download-only; "
            "check the address"
        )
    others = []
    for mirror in asked.mirrors:
        if mirror.rstrip("/") not in listings:
            others.append(mirror)
    return replace(asked, listings=listings, mirrors=tuple(others))


# What is taken from it ----------------------------------------------------------------------------


def refuse_incomplete(job: Job, backend: BackendName) -> None:
    """Raises Stop if --offline's folder or address has no file for a package of the environment, by
    name or by its list.
    """
    if not job.sources.offline:
        return
    names = []
    for place in (CacheFolder.ARCHIVES, CacheFolder.WHEELS):
        for path in job.sources.offline.glob(f"{place.value}/*"):
            names.append(f"{place.value}/{path.name}")
    optional = list_needed_files(job.environment, None)
    needed = []
    lacking = []
    for sha256, file in list_needed_files(job.environment, backend).items():
        if sha256 in optional:
            continue
        needed.append(file)
        if not job.sources.has(sha256) and not _has_file(names, file):
            lacking.append(file)
    if not lacking:
        return
    where = str(job.sources.offline)
    if job.sources.address:
        where = redact(job.sources.address)
    option = ""
    if job.environment.name != "default":
        option = f" --environment {job.environment.argument}"
    raise Stop(
        f"{where} lacks {len(lacking)} of the {len(needed)} files of the environment "
        f"{job.environment.name}, {backend} backend, such as {_package_name(lacking[0])}; collect "
        f"them there with --download-only{option}"
    )


def _has_file(names: Iterable[str], file: NeededFile) -> bool:
    """Whether one of these names in a folder is that of a needed file."""
    for name in names:
        if file.find_name(name):
            return True
    return False


def _package_name(file: NeededFile) -> str:
    if isinstance(file.package, PrebuiltWheel):
        return file.package.filename
    return file.package.name


def bring(
    job: Job, backend: BackendName | None, reporter: Reporter, archives: bool = True
) -> None:
    """Fetches what the mirrors have of an installation into the cache. What they cannot give is
    left to the origin.
    """
    needed = list_needed_files(job.environment, backend, archives)
    python = ""
    if backend and not BACKENDS[backend].brings_python:
        python = job.environment.python
    for place, items in _list_items(job.sources.listings, needed, python).items():
        try:
            fetched = fetch(
                items,
                job.cache / place.value,
                reporter,
                rounds=ROUNDS,
                has=read_archive_hashes,
            )
        except FetchError as error:
            reporter.say(f"not all is on the mirror: {error.first}")
            continue
        checked = "which uv checks" if place is CacheFolder.PYTHON else "hashes right"
        reporter.outcome(
            f"{len(items)} files of {place.value} from the mirror, {checked}; "
            f"{size_text(fetched)} fetched now"
        )


def _list_items(
    listings: Mapping[str, Mapping[str, str]],
    needed: Mapping[str, NeededFile],
    python: str,
) -> dict[CacheFolder, list[Item]]:
    """What is to be fetched from the mirrors, each file from all that list it."""
    found: dict[CacheFolder, dict[str, Item]] = {}
    for address, listing in listings.items():
        for sha256, path in listing.items():
            file = needed.get(sha256)
            place = CacheFolder.PYTHON
            size = 0
            limit = PYTHON_ARCHIVE_LIMIT
            if file:
                place = file.place
                size = file.size
                limit = UNKNOWN_SIZE_LIMIT
                name = file.find_name(path)
            else:
                name = find_python_archive(sha256, path, python)
            if not name:
                continue
            items = found.setdefault(place, {})
            item = items.setdefault(sha256, Item(name, sha256, size, [], limit))
            item.sources.append(f"{address}/{quote(path)}")
    return {place: list(items.values()) for place, items in found.items()}


def find_python_archive(sha256: str, listed: str, python: str) -> str | None:
    """The file name of uv's archive of a Python, such as "3.11", if a path in a mirror's list is
    one; otherwise None.

    uv names it by the first digits of its hash and by its version, and checks the whole hash.
    """
    place, _, name = listed.partition("/")
    start = rf"{sha256[:9]}-cpython-{re.escape(python)}\.\d+[A-Za-z0-9_.+-]*"
    pattern = rf"{start}\.(?:tar\.gz|tar\.zst|tgz)"
    if (
        not python
        or place != CacheFolder.PYTHON.value
        or not re.fullmatch(pattern, name, re.ASCII)
    ):
        return None
    return name
