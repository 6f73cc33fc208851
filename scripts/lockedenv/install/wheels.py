"""The package index, uv, and the wheels that it installs by hash."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Dict, List, Optional

from lockedenv import locks
from lockedenv.console import Steps, Stop, redact
from lockedenv.install import fetch
from lockedenv.installed import file_sha256
from lockedenv.machine import same_filesystem, version_tuple

OLDEST_UV = (0, 5)
CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")  # Debian's, Red Hat's

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
            raise Stop(f"{redact(page)} has no file of sha256 {pin.sha256} ({pin.name} {pin.version}); "
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
        raise Stop(f"the package index does not answer: {redact(url)} (curl {done.returncode}); check the network")
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
