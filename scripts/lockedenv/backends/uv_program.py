"""uv, which installs: where it comes from, what it runs with, and what it knows of the index."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from lockedenv import ROOT
from lockedenv.backends import download as fetch
from lockedenv.backends.base import Obstacle
from lockedenv.backends.cache import (
    Program,
    extract_program,
    find_by_hash,
    read_archive_hashes,
)
from lockedenv.backends.file_names import distribution_file_name
from lockedenv.backends.index import (
    INDEX_VARIABLES,
    index_problem,
    index_settings,
    is_left_out,
    pip_command,
    pip_environment,
    socks_problem,
)
from lockedenv.backends.private_folders import refuse_foreign, temporary
from lockedenv.errors import Stop
from lockedenv.host.disks import has_links_and_locks, same_filesystem
from lockedenv.host.locking import holding
from lockedenv.host.process import ask, run
from lockedenv.host.versions import version_tuple
from lockedenv.prefix.place import Prefix
from lockedenv.prefix.records import hashes
from lockedenv.reporter import Reporter
from lockedenv.spec import locks
from lockedenv.spec.locks import PipPackage
from lockedenv.spec.platform_tags import PLATFORM as GLIBC_PLATFORM
from lockedenv.spec.variables import clean

# Without it uv takes a wheel for a newer glibc, and then finds that its hash is not the locked one.
PLATFORM = ["--python-platform", GLIBC_PLATFORM]
# The tests' tools, and the uv that installs: a newer one than the environments hold, and faster.
TOOLS = ROOT / "locks/tools.txt"
# What uv runs with, whatever the user has set. unsafe-best-match, as pip has it: a version may come
# from any index, and the hash says which file.
ALWAYS = {
    "UV_LINK_MODE": "hardlink",
    "UV_NO_CONFIG": "1",
    "UV_INDEX_STRATEGY": "unsafe-best-match",
}
HTTP_TIMEOUT = {"UV_HTTP_TIMEOUT": "120"}  # unless the user knows a better one
EXTRA = ("UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
OLDEST_OWN = (0, 5)  # of a uv of the machine's that may fetch the locked one
PIP_DOWNLOAD = [
    "download",
    "--quiet",
    "--require-hashes",
    "--no-deps",
    "--only-binary",
    ":all:",
    "--no-cache-dir",
    "--disable-pip-version-check",
]
# An sdist would be built to learn what it depends on, which is not needed here.
NO_DEPENDENCIES = """\
[[dependency-metadata]]
name = "{0.name}"
version = "{0.version}"
requires-dist = []
"""


def requirement(pin: PipPackage) -> str:
    """The line that asks pip and uv for one file by its hash."""
    return f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n"


def uv_pin() -> PipPackage:
    """The uv that installs."""
    return next(pin for pin in locks.read_pip_lock(TOOLS) if pin.name == "uv")


def uv_environment(
    cache: Path, prefix: Path, environ: Mapping[str, str]
) -> dict[str, str]:
    """What uv runs with: the machine's index, and a cache on the prefix's disk, so that it links
    and does not copy.

    Where that disk has no links or no locks, uv unpacks in the folder for temporary files, and
    copies. Raises Stop.
    """
    _refuse_machines_python(prefix)
    folder = Prefix(prefix).beside("maximalcai-uv")
    if same_filesystem(cache, prefix.parent):
        folder = cache / "uv"
    copies = {}
    if not has_links_and_locks(folder):
        folder = temporary("uv", prefix)
        copies["UV_LINK_MODE"] = "copy"
        refuse_foreign(folder)
        if not has_links_and_locks(folder):
            raise Stop(
                f"neither the disk of {prefix} nor that of {folder.parent} has hard links and file "
                "locks, which uv needs: set TMPDIR to a folder on the machine's own disk"
            )
    # uv goes by what a Python was before its pyvenv.cfg came or went.
    for known in folder.glob("interpreter-*"):
        shutil.rmtree(known, ignore_errors=True)
    places = {
        "UV_CACHE_DIR": str(folder),
        "UV_PYTHON_INSTALL_DIR": str(cache / "python"),
    }
    return {
        **clean(dict(environ)),
        **HTTP_TIMEOUT,
        **index_settings(environ),
        **places,
        **ALWAYS,
        **copies,
    }


def _refuse_machines_python(prefix: Path) -> None:
    """Raises Stop for a virtual environment without its pyvenv.cfg: uv would install into the
    machine's Python.
    """
    python = os.path.realpath(prefix / "bin/python")
    inside = python.startswith(f"{os.path.realpath(prefix)}/")
    if not (prefix / "pyvenv.cfg").exists() and not inside:
        raise Stop(
            f"{prefix}/pyvenv.cfg is gone, so the environment's Python is the machine's, {python}; "
            "rebuild it: --force"
        )


def run_uv(
    command: Sequence[Any],
    environ: Mapping[str, str],
    what: str,
    reporter: Reporter | None = None,
    **options: Any,
) -> str:
    """Runs uv with the index alone, and if that fails with the extra ones; gives what it says.
    Raises Stop.
    """
    # pip takes the file with the right hash from any of them; uv takes the first index that has the
    # version, right or not.
    alone = dict(environ)
    for name in EXTRA:
        alone.pop(name, None)
    if alone != environ:
        with contextlib.suppress(Stop):
            return run(command, alone, what, reporter, **options)
    return run(command, dict(environ), what, reporter, **options)


@contextlib.contextmanager
def naming_the_cause() -> Iterator[None]:
    """Where the block fails for the package index's sake, the error begins with why, and what to
    do.
    """
    try:
        yield
    except Stop as error:
        problem = index_problem(os.environ)
        if problem is None:
            raise
        raise Stop(f"{problem}\n  {error}") from None


def bring_uv(
    cache: Path,
    reporter: Reporter,
    offline: Path | None = None,
    prefix: Path | None = None,
) -> Path:
    """The uv that installs, out of its wheel: from --offline, the cache, or the index, by hash.
    Raises Stop.

    `prefix`: an environment whose own uv may fetch it, where the machine has neither pip nor uv.
    """
    pin = uv_pin()
    folder = (offline or cache) / "wheels"
    wheel = find_by_hash(folder, "uv-*.whl", pin.sha256)
    if not wheel and offline:
        raise Stop(
            f"{folder} has no uv {pin.version}; collect it anew with --download-only {offline}"
        )
    if not wheel:
        with naming_the_cause():
            _fetch_uv(pin, folder, reporter, prefix)
        wheel = find_by_hash(folder, "uv-*.whl", pin.sha256)
    if not wheel:
        raise Stop(
            f"the package index has no uv {pin.version} with the locked hash; use another index"
        )
    return extract_program(
        wheel, Program(".data/scripts/uv", f"uv-{pin.sha256[:12]}"), cache
    )


def _own_uv(prefix: Path | None) -> str:
    """The machine's own uv, or the prefix's, where it is new enough to fetch the locked one; or
    empty.
    """
    programs = []
    if not is_left_out("uv"):
        programs.append(shutil.which("uv"))
    if prefix is not None:
        programs.append(shutil.which(prefix / "bin/uv"))
    for uv in programs:
        if uv and version_tuple(ask([uv, "--version"]).output) >= OLDEST_OWN:
            return uv
    return ""


def uv_problem(cache: Path, prefix: Path | None = None) -> Obstacle | None:
    """Why nothing could bring uv, or None: no pip that can, no uv of the machine's, none in the
    cache.
    """
    if find_by_hash(cache / "wheels", "uv-*.whl", uv_pin().sha256):
        return None
    socks = socks_problem(os.environ)
    if (pip_command() and not socks) or _own_uv(prefix):
        return None
    if socks:
        return socks
    return Obstacle(
        "no pip here to fetch uv with", "install it with: apt-get install python3-pip"
    )


def _fetch_uv(
    pin: PipPackage, folder: Path, reporter: Reporter, prefix: Path | None
) -> None:
    problem = uv_problem(folder.parent, prefix)
    if problem:
        raise Stop(str(problem))
    if not pip_command() or socks_problem(os.environ):
        uv = Path(_own_uv(prefix))
        fetch_files([pin], folder, uv, platform.python_version(), reporter)
        return
    environ = clean(
        dict(os.environ), PIP_CONFIG_FILE=os.devnull, **pip_environment(os.environ)
    )
    lock = holding(
        folder.with_name("wheels.lock"), f"the cache {folder}", reporter.warn
    )
    with lock, tempfile.TemporaryDirectory() as tmp:
        asked = Path(tmp, "uv.txt")
        asked.write_text(requirement(pin))
        command = [*pip_command(), *PIP_DOWNLOAD, "--dest", folder, "-r", asked]
        run(command, environ, f"fetching uv {pin.version} with pip", reporter)


def locate(pins: Sequence[PipPackage], uv: Path, python: str) -> list[fetch.Item]:
    """Where the index keeps the files of these hashes. Raises Stop if it lacks one."""
    environ = dict(os.environ)
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp, "pylock.toml")
        asked = Path(tmp, "asked.txt")
        config = Path(tmp, "uv.toml")
        asked.write_text("".join(requirement(pin) for pin in pins))
        config.write_text("".join(NO_DEPENDENCIES.format(pin) for pin in pins))
        environ = uv_environment(Path(tmp), Path(tmp), environ)
        environ["UV_CONFIG_FILE"] = str(config)
        del environ["UV_NO_CONFIG"]
        command = [
            uv,
            "pip",
            "compile",
            "--quiet",
            "--format",
            "pylock.toml",
            "--no-deps",
        ]
        command += ["--python-version", python, *PLATFORM, "-o", out, asked]
        with naming_the_cause():
            run_uv(command, environ, "asking the package index where the files are")
        addresses = _read_addresses(out.read_text(encoding="utf-8"))
    lacking = []
    for pin in pins:
        if pin.sha256 not in addresses:
            lacking.append(f"{pin.name} {pin.version}")
    if lacking:
        raise Stop(
            "the package index has no file with the locked hash of "
            f"{', '.join(lacking)}; use another index"
        )
    items = []
    for pin in pins:
        address = _with_password(addresses[pin.sha256], environ)
        name = distribution_file_name(pin, address)
        if "://" not in address:
            address = Path(address).as_uri()
        items.append(fetch.Item(name, pin.sha256, pin.size, [address]))
    return items


def fetch_files(
    pins: Sequence[PipPackage],
    folder: Path,
    uv: Path,
    python: str,
    reporter: Reporter,
    read: bool = True,
) -> None:
    """The wheels and sources of these pins for a Python into a folder, by hash; what is there is
    not asked for.

    `read`: the files that are there are read; without it a hash that was noted is believed. Raises
    Stop.
    """
    known = hashes if read else read_archive_hashes
    there = set(known(folder.glob("*-*")).values())
    missing = []
    for pin in pins:
        if pin.sha256 not in there:
            missing.append(pin)
    if missing:
        items = locate(missing, uv, python)
        with _certificates_for_curl():
            fetch.fetch(items, folder, reporter)


@contextlib.contextmanager
def _certificates_for_curl() -> Iterator[None]:
    """curl believes the authorities that pip and uv are told to believe, while the block runs."""
    before = os.environ.get("CURL_CA_BUNDLE")
    certificates = index_settings(os.environ).get("SSL_CERT_FILE")
    if certificates:
        os.environ["CURL_CA_BUNDLE"] = certificates
    try:
        yield
    finally:
        os.environ.pop("CURL_CA_BUNDLE", None)
        if before is not None:
            os.environ["CURL_CA_BUNDLE"] = before


def _read_addresses(text: str) -> dict[str, str]:
    """sha256 -> address or path of the files that a pylock.toml of uv's names."""
    pattern = r'(?:url|path) = "([^"]+)"[^{}]*hashes = \{ sha256 = "([0-9a-f]{64})"'
    return {sha256: address for address, sha256 in re.findall(pattern, text)}


def _with_password(address: str, environ: Mapping[str, str]) -> str:
    """The address with the user and password of its index, whose page
    names its files without them.
    """
    for name in INDEX_VARIABLES:
        for text in environ.get(name, "").split():
            index = urlsplit(text)
            if index.username and urlsplit(address).hostname == index.hostname:
                user = index.netloc.rpartition("@")[0]
                return address.replace("://", f"://{user}@", 1)
    return address
