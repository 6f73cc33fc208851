"""The pip layer: the index that this machine is set up with, uv, and the wheels that it installs by hash.

Each tool runs without the user's settings, the index and its certificates apart. pip fetches uv, uv finds the wheels.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional
from urllib.parse import urlsplit

from lockedenv import ROOT
from lockedenv.backends import download as fetch
from lockedenv.backends import kept
from lockedenv.backends.base import Job, Problem
from lockedenv.backends.file_names import distribution_file_name
from lockedenv.errors import Stop
from lockedenv.host.machine import has_links_and_locks, read_json, same_filesystem, version_tuple
from lockedenv.host.process import ask, clean, holding, run
from lockedenv.prefix.lifecycle import Prefix
from lockedenv.prefix.records import INSTALLED, file_sha256, hashes, read_prefix, recorded_files
from lockedenv.reporter import Reporter
from lockedenv.spec import locks
from lockedenv.spec.facts import PLATFORM as GLIBC_PLATFORM

CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
)  # Debian's, Red Hat's
# Without it uv takes a wheel for a newer glibc, and then finds that its hash is not the locked one.
PLATFORM = ["--python-platform", GLIBC_PLATFORM]
TOOLS = (
    ROOT / "locks/tools.txt"
)  # the tests', and the uv that installs: a newer one than the environments hold, and faster
# What pip calls a setting, and uv; a credential helper and time-outs are the index's too.
SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}
# unsafe-best-match, as pip has it: a version may come from any index; the hash says which file.
ALWAYS = {
    "UV_LINK_MODE": "hardlink",
    "UV_HTTP_TIMEOUT": "120",
    "UV_NO_CONFIG": "1",
    "UV_INDEX_STRATEGY": "unsafe-best-match",
}
REQUIREMENT, EXTRA = "{0.name}=={0.version} --hash=sha256:{0.sha256}\n", (
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
)
ask_once = functools.lru_cache()(
    lambda command, environ: ask(command, env=dict(environ))[1]
)  # pip takes 0.3 s to start
KEPT = "UV_INDEX UV_DEFAULT_INDEX UV_EXTRA_INDEX UV_FIND_LINKS UV_KEYRING UV_INSECURE UV_HTTP UV_SYSTEM_CERTS SSL_CERT_FILE"


@functools.lru_cache()
def pip_command() -> List[str]:
    """This machine's pip: an interpreter's, the one that its virtual environment was made of, or ensurepip's; or empty."""
    bundled = (  # Debian keeps ensurepip's wheels in a folder of their own
        "import ensurepip, glob, os, sysconfig; own = os.path.join(os.path.dirname(ensurepip.__file__), '_bundled')\n"
        "print(glob.glob((sysconfig.get_config_var('WHEEL_PKG_DIR') or own) + '/pip-*.whl')[0])"
    )
    pythons = list(
        dict.fromkeys([sys.executable, getattr(sys, "_base_executable", sys.executable)])
    )
    for python in pythons:
        if ask([python, "-c", "import pip"])[0] == 0:
            return [python, "-m", "pip"]
    for python in pythons:  # out of its wheel it starts three times as slowly
        if wheel := ask([python, "-c", bundled])[1].strip():
            return [python, f"{wheel}/pip"]
    return []


def index_settings(environ: Dict[str, str]) -> Dict[str, str]:
    """The index as uv's variables: from uv's own, otherwise from pip's variables and configuration files."""
    found = {name: value for name, value in environ.items() if name.startswith(tuple(KEPT.split()))}
    if not {"UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX"} & set(found) and pip_command():
        said = ask_once(
            (*pip_command(), "config", "list"), frozenset({**environ, "PIP_QUIET": "0"}.items())
        )
        for scope in ("global", "install", ":env:"):
            for name, value in re.findall(rf"^{scope}\.([\w-]+)=('.*'|\".*\")$", said, re.M):
                if name in SETTINGS and not environ.get(SETTINGS[name]):
                    found[SETTINGS[name]] = " ".join(ast.literal_eval(value).split())
    for bundle in filter(
        os.path.exists, CERTIFICATES
    ):  # uv's own list of authorities lacks a company's; the machine's has it
        found.setdefault("SSL_CERT_FILE", bundle)
    return found


def uv_environment(cache: Path, prefix: Path, environ: Dict[str, str]) -> Dict[str, str]:
    """What uv runs with: the machine's index, and a cache on the prefix's disk, so that it links and does not copy.

    Where that disk has no links or no locks, uv unpacks in the folder for temporary files, and copies. Raises Stop.
    """
    python = os.path.realpath(prefix / "bin/python")
    if not (prefix / "pyvenv.cfg").exists() and not python.startswith(
        f"{os.path.realpath(prefix)}/"
    ):  # uv would install into that
        raise Stop(
            f"{prefix}/pyvenv.cfg is gone, so the environment's Python is the machine's, {python}; rebuild it: --force"
        )
    folder = (
        cache / "uv"
        if same_filesystem(cache, prefix.parent)
        else Prefix(prefix).beside("maximalcai-uv")
    )
    copies = {}
    if not has_links_and_locks(folder):
        folder, copies = temporary("uv", prefix), {"UV_LINK_MODE": "copy"}
        refuse_foreign(folder)
        if not has_links_and_locks(folder):
            raise Stop(
                f"neither the disk of {prefix} nor that of {folder.parent} has hard links and file locks, which uv needs: "
                "set TMPDIR to a folder on the machine's own disk"
            )
    for known in folder.glob(
        "interpreter-*"
    ):  # uv goes by what a Python was before its pyvenv.cfg came or went
        shutil.rmtree(known, ignore_errors=True)
    ours = clean(
        environ, UV_CACHE_DIR=str(folder), UV_PYTHON_INSTALL_DIR=str(cache / "python"), **ALWAYS
    )
    return {**ours, **copies, **index_settings(environ)}


def temporary(what: str, of: Path) -> Path:
    """A folder among the temporary files, the same for the next run: where flash-attn is built, and uv unpacks if it must."""
    return Path(
        tempfile.gettempdir(),
        f"maximalcai-{what}-{hashlib.sha256(os.fsencode(of)).hexdigest()[:12]}",
    )


def refuse_foreign(folder: Path) -> None:
    """Makes such a folder. Raises Stop if it is another's: all users write there, and the name can be guessed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    seen = folder.lstat()
    if (
        folder.is_symlink()
        or not folder.is_dir()
        or seen.st_uid != os.getuid()
        or seen.st_mode & 0o077
    ):
        raise Stop(
            f"{folder} is not a folder of yours alone, and what is unpacked or built there is installed; remove it, or "
            "set TMPDIR"
        )


def run_uv(
    command: List[Any], environ: Dict[str, str], what: str, quiet: bool, **options: Any
) -> str:
    """Runs uv with the index alone, and if that fails with the extra ones; gives what it says. Raises Stop."""
    # pip takes the file with the right hash from any of them; uv takes the first index that has the version, right or not.
    alone = {name: value for name, value in environ.items() if name not in EXTRA}
    if alone != environ:
        with contextlib.suppress(Stop):
            return run(command, alone, what, quiet, on_line=lambda line: None, **options)
    return run(command, environ, what, quiet, **options)


def by_hash(folder: Path, pattern: str, sha256: str) -> Optional[Path]:
    return next((path for path in folder.glob(pattern) if file_sha256(path) == sha256), None)


def uv_pin() -> locks.PipPackage:
    return next(pin for pin in locks.read_pip_lock(TOOLS) if pin.name == "uv")


def bring_uv(
    cache: Path, reporter: Reporter, offline: Optional[Path] = None, prefix: Optional[Path] = None
) -> Path:
    """The uv that installs, out of its wheel: from --offline, the cache, or the index, by hash. Raises Stop.

    `prefix`: an environment whose own uv may fetch it, where the machine has neither pip nor uv.
    """
    pin, folder = uv_pin(), (offline or cache) / "wheels"
    wheel = by_hash(folder, "uv-*.whl", pin.sha256)
    if not wheel and offline:
        raise Stop(
            f"{folder} has no uv {pin.version}; collect it anew with --download-only {offline}"
        )
    if not wheel:
        _fetch_uv(pin, folder, reporter, prefix)
    if not (wheel := wheel or by_hash(folder, "uv-*.whl", pin.sha256)):
        raise Stop(
            f"the package index has no uv {pin.version} with the locked hash; use another index"
        )
    return kept.program(wheel, ".data/scripts/uv", f"uv-{pin.sha256[:12]}", cache)


def _own_uv(prefix: Path | None) -> str:
    """The machine's own uv, or the prefix's, where it is new enough to fetch the locked one; or empty."""
    programs = [shutil.which("uv")]
    if prefix is not None:
        programs.append(shutil.which(prefix / "bin/uv"))
    for uv in programs:
        if uv and version_tuple(ask([uv, "--version"])[1]) >= (0, 5):
            return uv
    return ""


def uv_problem(cache: Path, prefix: Path | None = None) -> Problem | None:
    """Why nothing could bring uv, or None: no pip, no uv of the machine's, none in the cache."""
    if pip_command() or _own_uv(prefix) or by_hash(cache / "wheels", "uv-*.whl", uv_pin().sha256):
        return None
    return Problem("no pip here to fetch uv with", "install it with: apt-get install python3-pip")


def refuse_without_pip(cache: Path, prefix: Path | None = None) -> None:
    """Raises Stop where nothing could bring uv."""
    problem = uv_problem(cache, prefix)
    if problem:
        raise Stop(str(problem))


def _fetch_uv(pin: locks.PipPackage, folder: Path, reporter: Reporter, prefix: Path | None) -> None:
    refuse_without_pip(folder.parent, prefix)
    if not pip_command():
        return fetch_files(
            [pin], folder, Path(_own_uv(prefix)), platform.python_version(), reporter
        )
    environ, found = dict(os.environ), index_settings(dict(os.environ))
    index = {
        f"PIP_{name.replace('-', '_').upper()}": found[uv]
        for name, uv in SETTINGS.items()
        if uv in found
    }
    options = "--quiet --require-hashes --no-deps --only-binary :all: --no-cache-dir --disable-pip-version-check".split()
    with (
        holding(folder.with_name("wheels.lock"), f"the cache {folder}"),
        tempfile.TemporaryDirectory() as tmp,
    ):
        asked = Path(tmp, "uv.txt")
        asked.write_text(REQUIREMENT.format(pin))
        command = [*pip_command(), "download", *options, "--dest", folder, "-r", asked]
        run(
            command,
            clean(environ, PIP_CONFIG_FILE=os.devnull, **index),
            f"fetching uv {pin.version} with pip",
            quiet=True,
        )


def locate(pins: List[locks.PipPackage], uv: Path, python: str) -> List[fetch.Item]:
    """Where the index keeps the files of these hashes. Raises Stop if it lacks one."""
    with tempfile.TemporaryDirectory() as tmp:
        out, asked, config = Path(tmp, "pylock.toml"), Path(tmp, "asked.txt"), Path(tmp, "uv.toml")
        asked.write_text("".join(map(REQUIREMENT.format, pins)))
        # An sdist would be built to learn what it depends on, which nobody asks here.
        known = '[[dependency-metadata]]\nname = "{0.name}"\nversion = "{0.version}"\nrequires-dist = []\n'
        config.write_text("".join(map(known.format, pins)))
        environ = {
            **uv_environment(Path(tmp), Path(tmp), dict(os.environ)),
            "UV_CONFIG_FILE": str(config),
        }
        del environ["UV_NO_CONFIG"]
        options = "--quiet --format pylock.toml --no-deps --python-version"
        command = [uv, "pip", "compile", *options.split(), python, *PLATFORM, "-o", out, asked]
        run_uv(command, environ, "asking the package index where the files are", quiet=True)
        found = re.findall(
            r'(?:url|path) = "([^"]+)"[^{}]*hashes = \{ sha256 = "([0-9a-f]{64})"', out.read_text()
        )
    urls = {sha: url for url, sha in found}
    if lacking := [f"{pin.name} {pin.version}" for pin in pins if pin.sha256 not in urls]:
        raise Stop(
            f"the package index has no file with the locked hash of {', '.join(lacking)}; use another index"
        )
    hosts = [
        urlsplit(url)
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
        for url in environ.get(name, "").split()
    ]
    items = []
    for pin in pins:
        url = urls[pin.sha256]
        for index in hosts:  # the page of an index with a password names its files without it
            if index.username and urlsplit(url).hostname == index.hostname:
                url = url.replace("://", f"://{index.netloc.rpartition('@')[0]}@", 1)
        name = distribution_file_name(pin, url)
        items.append(
            fetch.Item(name, pin.sha256, pin.size, [url if "://" in url else Path(url).as_uri()])
        )
    return items


def fetch_files(
    pins: List[locks.PipPackage],
    folder: Path,
    uv: Path,
    python: str,
    reporter: Reporter,
    read: bool = True,
) -> None:
    """The wheels and sources of these pins for a Python into a folder, by hash; what is there is not asked for. Raises Stop."""
    there = set((hashes if read else kept.known)(folder.glob("*-*")).values())
    if missing := [pin for pin in pins if pin.sha256 not in there]:
        fetch.fetch(locate(missing, uv, python), folder, reporter.note, reporter.quiet)


def damaged(prefix: Path, pins: List[locks.PipPackage]) -> List[str]:
    """The locked wheels in a prefix that are not what their install by hash left: they are to be installed again."""
    installed, names, wrong = read_prefix(prefix), {pin.name for pin in pins}, []
    left, locked = read_json(prefix / INSTALLED), {pin.name: pin.sha256 for pin in pins}
    for dist in [d for d in installed.dists if d.name in names and d.manager == "pip"]:
        files = {path: sha for path, sha in recorded_files(installed.only(dist)).items() if sha}
        as_left = left.get("records", {}).get(dist.name) in (
            None,
            file_sha256(dist.path / "RECORD"),
        )
        as_left = as_left and left.get("wheels", {}).get(dist.name) in (None, locked[dist.name])
        if (
            not (files and hashes(files) == files and as_left)
            or (dist.path / "direct_url.json").exists()
        ):
            wrong.append(dist.name)
        if (
            not files
        ):  # uv cannot take away what no RECORD lists, and then refuses to put it there again
            kept.discard(dist.path)
    return wrong


def install(job: Job, lock: Path, uv: Path, reporter: Reporter) -> None:
    """The wheels of a lock, by hash; what is not as its install left it, again; what the user added stays.

    If the job is `fresh`, or where something was damaged, what the cache holds unpacked is compared
    file by file. Raises Stop.
    """
    prefix = job.prefix.path
    offline = job.sources.offline
    pins = locks.read_pip_lock(lock)
    environ = uv_environment(job.cache, prefix, dict(os.environ))
    wrong = damaged(prefix, pins)
    folder = (offline or job.cache) / "wheels"
    apart = not same_filesystem(job.cache, prefix)
    if str(temporary("uv", prefix)) in environ.values():
        apart = True
    command = [uv, "pip", "install", "--python", prefix / "bin/python", *PLATFORM]
    command += ["--require-hashes", "--no-deps"]
    for name in wrong:
        command += ["--reinstall-package", name]

    local: List[Any] = []
    wanted = {pin.sha256 for pin in pins}
    if offline or apart or wanted <= set(kept.known(folder.glob("*.whl")).values()):
        # The wheels are kept in the cache; what uv unpacks, small files by the thousand, lies beside
        # the prefix.
        if not offline:
            fetch_files(pins, folder, uv, job.environment.python, reporter, read=False)
        local = ["--no-index", "--find-links", folder]
    # All in the cache: then no index is asked, and none needs to answer. The last attempt is for
    # what a mirror named and is of no use.
    attempts: List[List[Any]] = [[*local, "--offline"], local]
    if local and not offline:
        attempts.append([])

    with holding(job.cache / "uv.lock", f"the cache {job.cache}"):
        _drop_damaged_wheels(job.cache, everything=bool(wrong) or job.fresh)
        for attempt in attempts[:-1]:
            try:
                run_uv(
                    [*command, *attempt, "-r", lock],
                    environ,
                    f"installing {lock.name}",
                    reporter.quiet,
                    hide="",
                    disk=prefix,
                )
                break
            except Stop:
                if apart and not offline:
                    # uv hashes what it unpacks, and may have found a wheel that is not as it was noted.
                    fetch_files(pins, folder, uv, job.environment.python, reporter)
        else:
            # It alone shows what uv says, but for the list of every package that it installed.
            run_uv(
                [*command, *attempts[-1], "-r", lock],
                environ,
                f"installing {lock.name}",
                reporter.quiet,
                hide=r" [+~-] \S+==| Downloaded|Using Python|Resolved|Audited",
                disk=prefix,
            )
        kept.note(job.cache, job.cache.glob("uv/archive-v*/*"))


def _drop_damaged_wheels(cache: Path, everything: bool) -> None:
    """Removes the unpacked wheels that are not whole: those without a note, or with `everything` all that are not."""
    unpacked = list(cache.glob("uv/archive-v*/*"))
    unknown = kept.drop_changed(cache, unpacked)
    for path in unpacked if everything else unknown:
        if path.exists() and not kept.whole_wheel(path):
            kept.discard(path)
