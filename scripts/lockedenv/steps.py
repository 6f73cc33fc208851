"""What the scripts that install have in common: numbered steps, commands, one holder at a time, the package index."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, Optional

from lockedenv import fetch, locks
from lockedenv.host import same_filesystem, version_tuple
from lockedenv.installed import file_sha256

POD_VOLUME = Path("/workspace")  # RunPod's persistent volume; the container disk, faster, is lost with the pod
OLDEST_UV = (0, 5)
CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")  # Debian's, Red Hat's
FULL_DISK = (
    "No space left on device. Free some disk, or name other places with --prefix and --cache, and run again: "
    "what was downloaded is kept"
)


class Stop(Exception):
    """Ends a script with one clear message: what is wrong and what to do."""


def default_cache() -> Path:
    """Where downloads are kept: on a pod's persistent volume, otherwise in the user's cache folder."""
    if os.access(POD_VOLUME, os.W_OK):
        return POD_VOLUME / ".cache" / "maximalcai"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maximalcai"


def disk_text(error: OSError) -> str:
    """An operating system's error for people: which file, what, and what to do if the disk is full."""
    where = f"{error.filename}: " if error.filename else ""
    return where + (FULL_DISK if error.errno == errno.ENOSPC else f"{error.strerror or error}; mend it and run again")


class Steps:
    """Prints `[2/6] Fetch ...` and how long each step took."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.quiet, self.number, self.started = total, quiet, 0, time.monotonic()

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        self.number += 1
        self.say(f"[{self.number}/{self.total}] {title}")
        started = time.monotonic()
        yield
        self.say(f"      {time.monotonic() - started:.1f} s")

    def end(self, text: str) -> None:
        self.say(f"{text} ({time.monotonic() - self.started:.1f} s in all)")


def run(command: List[str], environ: Dict[str, str], what: str, quiet: bool = False) -> None:
    """Runs a command; what it says goes on to the terminal. Raises Stop, with the cause where it is a full disk."""
    process = subprocess.Popen(
        command, env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said: List[str] = []

    def forward() -> None:
        assert process.stdout is not None
        with process.stdout:
            for raw in process.stdout:
                line = fetch.redact(raw.decode(errors="replace").rstrip())
                said.append(line)
                if not quiet and not re.match(r" [+~-] \S+==", line):  # uv lists every package that it installed
                    print(f"      {line}", flush=True)

    reader = threading.Thread(target=forward, daemon=True)
    reader.start()
    try:
        status = process.wait()
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        raise
    reader.join(5)
    if status:
        text = "\n".join(said)
        if re.search(r"No space left on device|os error 28|Errno 28", text):
            raise Stop(f"{what}: {FULL_DISK}")
        tail = "\n  ".join(said[-8:]) if quiet else ""
        raise Stop(f"{what} failed (exit {status}){': ' + tail if tail else '; its last lines are above'}")


@contextlib.contextmanager
def holding(path: Path, what: str, patience: float = 3600.0) -> Iterator[Path]:
    """Holds a file's lock; another holder is named and waited for, `patience` seconds at most (then: Stop).

    The kernel lets go of it when the process ends, however it ends, so no lock is ever stale. The file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline, told = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = " ".join(file.read().split()) or "another process"
                if time.monotonic() > deadline:
                    raise Stop(f"{what} is held by {holder}; wait for it, or stop it, and run again") from None
                if not told:
                    print(f"{what} is held by {holder}; waiting for it", file=sys.stderr, flush=True)
                told = True
                time.sleep(min(0.2, patience))
            except OSError as error:  # some network file systems have no locks: two runs are then only atomic, not serial
                print(f"{what}: {path.parent} has no file locks ({error.strerror}); going on", file=sys.stderr)
                break
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield path


# The package index -----------------------------------------------------------------------------------------------


def configured_index(environ: Dict[str, str]) -> Optional[str]:
    """The index that this machine is set up with, for uv or for pip; None if it is their default."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if environ.get(name):
            return environ[name]
    return _first_answer("-m", "pip", "config", "get", "global.index-url")


def _pip_default_index() -> Optional[str]:
    """pip's own default, asked of pip: of an interpreter's, or of the one that ensurepip carries."""
    program = (
        "import sys, glob, os, importlib.util as u\n"
        "if not u.find_spec('pip'):\n"
        "    import ensurepip; sys.path += glob.glob(os.path.join(os.path.dirname(ensurepip.__file__), '_bundled/pip*.whl'))\n"
        "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    )
    return _first_answer("-c", program)


def _first_answer(*arguments: str) -> Optional[str]:
    """What this interpreter prints, or else the one that its virtual environment, often without pip, was made of."""
    for python in dict.fromkeys([sys.executable, getattr(sys, "_base_executable", sys.executable)]):
        done = subprocess.run([python, *arguments], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    return None


def index_items(pins: List[locks.PipPackage], environ: Dict[str, str]) -> List[fetch.Item]:
    """Where the index keeps the files of these hashes. Raises Stop if there is no index, or it lacks one."""
    index = configured_index(environ) or _pip_default_index()
    if not index:
        raise Stop("no package index is known: install python3-pip, or set UV_DEFAULT_INDEX")
    items = []
    for pin in pins:
        page = f"{index.rstrip('/')}/{pin.name}/"
        found = re.search(rf'href="([^"#]+)#sha256={pin.sha256}"', _page(page))
        if not found:
            raise Stop(f"{fetch.redact(page)} has no file of sha256 {pin.sha256} ({pin.name} {pin.version}); "
                       "use another index, or lock anew with scripts/lock.sh")  # fmt: skip
        from urllib.parse import urljoin

        url = urljoin(page, found[1].replace("&amp;", "&"))
        items.append(fetch.Item(url.rsplit("/", 1)[1].split("?")[0], pin.sha256, pin.size, [url]))
    return items


def _page(url: str) -> str:
    if not shutil.which("curl"):
        raise Stop("curl is not installed; install it with: apt-get install curl")
    options = ["--disable", "--config", "-", "--fail", "--silent", "--location", "--compressed", "--retry", "4"]
    command = ["curl", *options, "--connect-timeout", "10", "--max-time", "60"]
    request = f'url = "{url}"\nheader = "Accept: text/html"\n'
    done = subprocess.run(command, input=request, capture_output=True, text=True)
    if done.returncode:
        raise Stop(f"the package index does not answer: {fetch.redact(url)} (curl {done.returncode}); check the network")
    return done.stdout


# uv --------------------------------------------------------------------------------------------------------------


def uv_folder(prefix: Path) -> Path:
    """uv's cache if the cache is on another disk than the prefix; removed when the prefix is finished."""
    return prefix.with_name(prefix.name + ".uv")


def uv_environment(cache: Path, prefix: Path, environ: Dict[str, str]) -> Dict[str, str]:
    """What uv runs with: the machine's index, and a cache on the prefix's disk, so that it links and does not copy."""
    together = same_filesystem(cache, prefix.parent)
    ours = {
        "UV_CACHE_DIR": str(cache / "uv" if together else uv_folder(prefix)),
        "UV_PYTHON_INSTALL_DIR": str(cache / "python"),
        "UV_LINK_MODE": "hardlink",
        "UV_HTTP_TIMEOUT": environ.get("UV_HTTP_TIMEOUT", "120"),
    }
    if not any(environ.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")):
        index = configured_index(environ)
        if index:
            ours["UV_DEFAULT_INDEX"] = index
    if not environ.get("SSL_CERT_FILE"):  # uv's own list of authorities lacks a company's; the machine's has it
        bundles = [environ.get("PIP_CERT", ""), *CERTIFICATES]
        ours.update({"SSL_CERT_FILE": bundle for bundle in bundles[::-1] if bundle and Path(bundle).exists()})
    return {**environ, **ours}


def bring_uv(cache: Path, steps: Steps, offline: Optional[Path] = None) -> Path:
    """The locked uv: from the cache, or from the index by hash, or one from PATH that is new enough. Raises Stop."""
    pin = next(p for p in locks.read_pip_lock(locks.REQUIREMENTS) if p.name == "uv")
    uv = cache / "bin" / f"uv-{pin.version}"
    if uv.exists():
        return uv
    try:
        if offline:
            wheels = [p for p in (offline / "wheels").glob("uv-*.whl") if file_sha256(p) == pin.sha256]
            if not wheels:
                raise Stop(f"{offline}/wheels has no uv {pin.version}; collect it anew with --download-only {offline}")
            wheel = wheels[0]
        else:
            item = index_items([pin], dict(os.environ))[0]
            fetch.fetch([item], cache / "wheels", steps.say, quiet=True)
            wheel = cache / "wheels" / item.name
    except (Stop, fetch.FetchError):
        found = shutil.which("uv")
        if found and version_tuple(subprocess.run([found, "--version"], capture_output=True, text=True).stdout) >= OLDEST_UV:
            return Path(found)
        raise
    uv.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
        beside = uv.with_name(f".uv.{os.getpid()}")
        beside.write_bytes(archive.read(member))
        beside.chmod(0o755)
        beside.replace(uv)
    return uv


# The finished state ----------------------------------------------------------------------------------------------


def lock_digest(backend: str) -> str:
    """One sha256 over what the locks of a backend name, whatever their comments say."""
    import hashlib

    if backend == "conda":
        lines = [f"{p.name} {p.sha256}" for p in locks.read_conda_lock().packages]
        lines += [f"{p.name} {p.sha256}" for p in locks.read_pip_lock(locks.PIP_LOCK)]
    else:
        lines = [f"{p.name} {p.sha256}" for p in locks.read_pip_lock(locks.REQUIREMENTS)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def stamp_path(prefix: Path) -> Path:
    return prefix / "maximalcai.json"


def read_stamp(prefix: Path) -> Dict[str, str]:
    """What a finished prefix says of itself: backend, locks, finished. Empty if it is not finished."""
    try:
        stamp = json.loads(stamp_path(prefix).read_text())
        return stamp if isinstance(stamp, dict) else {}
    except (OSError, ValueError):
        return {}
