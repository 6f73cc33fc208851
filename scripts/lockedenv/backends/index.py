"""The package index that this machine is set up with, its certificates, and the pip that knows
both.

The settings are read from uv's variables, otherwise from pip's variables and configuration files,
and given to uv as its variables. Everything else that the user has set for either is left out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Mapping
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]  # not in typeshed
    getproxies_environment,
    proxy_bypass_environment,
)

from lockedenv.backends.base import Obstacle
from lockedenv.backends.curl import CURL
from lockedenv.backends.private_folders import refuse_foreign, temporary
from lockedenv.host.files import FileRefused, read_regular, write_atomically
from lockedenv.host.process import ask
from lockedenv.redaction import redact
from lockedenv.spec.variables import is_index_of_uv

# The machine's authorities, where Debian has them and Red Hat: uv's own list lacks a company's.
MACHINE_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
)
# What pip calls a setting, and uv. The certificates are joined by `certificate_file`.
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
}
PIP_VARIABLES = {
    "UV_DEFAULT_INDEX": "PIP_INDEX_URL",
    "UV_EXTRA_INDEX_URL": "PIP_EXTRA_INDEX_URL",
    "UV_FIND_LINKS": "PIP_FIND_LINKS",
    "SSL_CERT_FILE": "PIP_CERT",
}
INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX")
# What each tool believes beside the machine's authorities: pip its option, then these two; uv and
# curl the last one.
CERTIFICATE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
CERTIFICATE_LIMIT = 16_000_000  # bytes; the machine's authorities have 230,000
# Debian keeps ensurepip's wheels in a folder of their own.
BUNDLED_PIP = (
    "import ensurepip, glob, os, sysconfig; "
    "own = os.path.join(os.path.dirname(ensurepip.__file__), '_bundled'); "
    "folder = sysconfig.get_config_var('WHEEL_PKG_DIR') or own; "
    "print(glob.glob(folder + '/pip-*.whl')[0])"
)
ASK_INDEX = (
    *CURL,
    *("--connect-timeout", "10", "--max-time", "20", "--max-filesize", "5000000"),
)
CURL_PROXY = 5
CURL_HOST = 6
CURL_CONNECT = 7
CURL_TIMEOUT = 28
CURL_CERTIFICATE = 60
CURL_SOCKS = 97
# What OpenSSL finds wrong with a certificate (X509_V_ERR_... in openssl/x509_vfy.h.in). The dates
# are compared with this machine's clock.
NOT_YET_VALID = 9
EXPIRED = 10
OTHER_HOST = 62


def is_left_out(program: str) -> bool:
    """Whether a program of the machine's is not to be used: MAXIMALCAI_WITHOUT names them, such as
    "pip,uv".
    """
    return program in os.environ.get("MAXIMALCAI_WITHOUT", "").split(",")


@functools.lru_cache()
def pip_command() -> list[str]:
    """This machine's pip: an interpreter's, the one that its virtual environment was made of, or
    ensurepip's; or empty.
    """
    if is_left_out("pip"):
        return []
    pythons = [sys.executable]
    base = getattr(sys, "_base_executable", sys.executable)
    if base not in pythons:
        pythons.append(base)
    for python in pythons:
        if ask([python, "-c", "import pip"]).status == 0:
            return [python, "-m", "pip"]
    for python in pythons:
        wheel = ask([python, "-c", BUNDLED_PIP]).output.strip()
        if wheel:
            # Out of its wheel it starts three times as slowly.
            return [python, f"{wheel}/pip"]
    return []


@functools.lru_cache()
def _pip_config(command: tuple[str, ...], environ: frozenset[tuple[str, str]]) -> str:
    """What `pip config list` says; pip takes 0.3 s to start."""
    return ask([*command, "config", "list"], env=dict(environ)).output


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings by name, from its files and variables, the last of which win; empty without a
    pip.
    """
    command = pip_command()
    if not command:
        return {}
    said = _pip_config(tuple(command), frozenset({**environ, "PIP_QUIET": "0"}.items()))
    found = {}
    for scope in ("global", "install", ":env:"):
        for name, value in re.findall(
            rf"^{scope}\.([\w-]+)=('.*'|\".*\")$", said, re.M
        ):
            found[name] = " ".join(str(ast.literal_eval(value)).split())
    return found


def index_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The index and its certificates as uv's variables."""
    found = {}
    for name, value in environ.items():
        if is_index_of_uv(name):
            found[name] = value
    settings = pip_settings(environ)
    if not set(INDEX_VARIABLES) & set(found):
        for name, variable in UV_NAMES.items():
            if name in settings and not environ.get(variable):
                found[variable] = settings[name]
    certificates = certificate_file(environ, settings.get("cert", ""))
    if certificates:
        found["SSL_CERT_FILE"] = certificates
    return found


def certificate_file(environ: Mapping[str, str], pip_cert: str) -> str:
    """One file with every authority that pip, uv or curl is told to believe, and the machine's;
    empty if there is none.

    A company's own authority is often named to one of the tools alone: pip's `cert` would lose to a
    system's SSL_CERT_FILE (astral-sh/uv#2043).
    """
    named = [pip_cert]
    named += [environ.get(name, "") for name in CERTIFICATE_VARIABLES]
    named += MACHINE_CERTIFICATES
    parts: dict[str, str] = {}
    for name in named:
        path = os.path.realpath(os.path.expanduser(name)) if name else ""
        if not path or path in parts:
            continue
        try:
            parts[path] = read_regular(Path(path), CERTIFICATE_LIMIT).decode()
        except (OSError, FileRefused, UnicodeDecodeError):
            continue
    if len(set(parts.values())) < 2:
        return next(iter(parts), "")
    return _join_certificates(list(dict.fromkeys(parts.values())))


def _join_certificates(texts: list[str]) -> str:
    """The path of a file of one's own with all of the texts; the same for the same texts."""
    joined = "\n".join(texts) + "\n"
    digest = hashlib.sha256(joined.encode()).hexdigest()[:12]
    folder = temporary("certificates", Path(digest))
    refuse_foreign(folder)
    path = folder / "authorities.pem"
    if not path.is_file() or path.read_text(encoding="utf-8") != joined:
        write_atomically(path, joined)
    return str(path)


def pip_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The same settings as pip's variables, for the pip that fetches uv."""
    found = index_settings(environ)
    translated = {}
    for name, variable in PIP_VARIABLES.items():
        if name in found:
            translated[variable] = found[name]
    return translated


def socks_problem(environ: Mapping[str, str]) -> Obstacle | None:
    """Why pip cannot use the proxy that is set, or None: it needs the package PySocks for a SOCKS
    proxy.
    """
    proxy = ""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        proxy = proxy or environ.get(name, "")
    if not proxy.lower().startswith("socks") or not pip_command():
        return None
    if ask([pip_command()[0], "-c", "import socks"]).status == 0:
        return None
    return Obstacle(
        f"the proxy is {redact(proxy)}, and pip needs the package PySocks for a SOCKS proxy",
        "install it (apt-get install python3-socks), put a uv 0.5 or newer on PATH, which needs "
        "none, or set HTTPS_PROXY to an http:// proxy",
    )


def index_address(environ: Mapping[str, str]) -> str:
    """The address of the first index; pip's default where none is set, empty where there is no pip
    to ask.
    """
    found = index_settings(environ)
    for name in INDEX_VARIABLES:
        if found.get(name):
            # UV_INDEX takes NAME=ADDRESS too.
            return re.sub(r"^[\w-]+=", "", found[name].split()[0])
    return default_index()


@functools.lru_cache()
def default_index() -> str:
    """The index that pip asks where none is set, from its own help; empty without a pip."""
    command = pip_command()
    if not command:
        return ""
    said = ask([*command, "download", "--help"]).output
    match = re.search(
        r"--index-url <url>.*?\(default\s+(https?://[^\s)]+)\)", said, re.S
    )
    return match[1] if match else ""


def index_problem(environ: Mapping[str, str]) -> Obstacle | None:
    """Why the package index gives nothing, asked with curl; None if it seems well, or cannot be
    asked.

    For after a failure: pip and uv say the same "No matching distribution found" for a certificate
    that is not believed, for a proxy and for a login page.
    """
    address = index_address(environ)
    if "://" not in address or address.startswith("file:") or not shutil.which("curl"):
        return None
    config = f'url = "{address.rstrip("/")}/uv/"\n'
    certificates = index_settings(environ).get("SSL_CERT_FILE")
    if certificates:
        config += f'cacert = "{certificates}"\n'
    wanted = "\n%{http_code} %{ssl_verify_result}"
    answer = ask([*ASK_INDEX, "--write-out", wanted], 30, config)
    status = answer.status
    page, _, numbers = answer.output.rpartition("\n")
    code, _, verified = numbers.partition(" ")
    host = redact(urlsplit(address).netloc).rpartition("@")[2]
    said = redact(" ".join(answer.error.split()))
    if status == 0:
        return _page_problem(host, page, code)
    if status == CURL_CERTIFICATE:
        return _certificate_problem(host, said, verified)
    proxy = _find_proxy(address)
    if proxy and status in (CURL_PROXY, CURL_SOCKS, CURL_CONNECT, CURL_TIMEOUT):
        return Obstacle(
            f"the package index {host} does not answer through the proxy {redact(proxy)} ({said})",
            "check HTTPS_PROXY and ALL_PROXY, or unset them",
        )
    if status in (CURL_HOST, CURL_CONNECT, CURL_TIMEOUT):
        return Obstacle(
            f"the package index {host} does not answer ({said})",
            "check the network, or name an index that this machine reaches: export "
            "UV_DEFAULT_INDEX=https://..., or a proxy: export HTTPS_PROXY=http://...",
        )
    return None


def _find_proxy(address: str) -> str:
    """The proxy that the variables of this process name for an address; empty if there is none."""
    parts = urlsplit(address)
    if proxy_bypass_environment(parts.hostname or ""):
        return ""
    proxies = getproxies_environment()
    return proxies.get(parts.scheme, proxies.get("all", ""))


def _certificate_problem(host: str, said: str, verified: str) -> Obstacle:
    """Why a certificate is not accepted. `verified`: OpenSSL's number, as curl gives it."""
    if verified in (str(NOT_YET_VALID), str(EXPIRED)):
        now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        return Obstacle(
            f"the certificate of {host} is not valid at the time of this machine's clock, {now} "
            f"UTC ({said})",
            "if the clock is wrong, set it (date, timedatectl)",
        )
    if verified == str(OTHER_HOST):
        return Obstacle(
            f"the certificate that came is not that of {host}, as from a login page ({said})",
            "log in with a browser, or check the address and the proxy",
        )
    return Obstacle(
        f"the certificate of {host} is signed by an authority that this machine does not "
        f"believe, as behind a proxy that inspects TLS ({said})",
        "ask for the authority's file, and name it: export SSL_CERT_FILE=/path/to/company-ca.pem",
    )


def _page_problem(host: str, page: str, code: str) -> Obstacle | None:
    """Why a page is not the list of a package's files, or None."""
    if code in ("401", "403", "407"):
        return Obstacle(
            f"the package index {host} wants a user and a password (HTTP {code})",
            "put them into its address or into ~/.netrc",
        )
    is_list = "<a " in page.lower() or '"files"' in page
    if code == "200" and not is_list:
        return Obstacle(
            f"{host} answers with a page that is no package index, as a login page of a network "
            "does",
            "log in with a browser, or name an index that this machine reaches: export "
            "UV_DEFAULT_INDEX=https://...",
        )
    return None
