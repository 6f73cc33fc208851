"""The names under which fetched files lie in the cache: made from the lock, never taken from a
server.

A server may choose an address, and an address may hold anything (`..%2F..%2Fthesis.tex`). The lock
knows the name, the version and the hash of a package. Only the tags in a wheel's file name come
from outside, and they hold nothing but letters, digits, dots and underscores.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from lockedenv.errors import Stop
from lockedenv.spec.locks import PipPackage, canonical

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]{0,250}", re.ASCII)
# https://packaging.python.org/en/latest/specifications/binary-distribution-format/#file-name-convention  # noqa: E501
_WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)"
    r"(?P<tags>(?:-[0-9][A-Za-z0-9_.]*)?-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+)\.whl",
    re.ASCII,
)
# https://packaging.python.org/en/latest/specifications/source-distribution-format/; older ones have
# other separators.
_SDIST = re.compile(
    r"(?P<name>[A-Za-z0-9_.-]+)-(?P<version>[A-Za-z0-9_.!+]+?)(?P<suffix>\.tar\.gz|\.zip)",
    re.ASCII,
)


def is_plain_name(name: str) -> bool:
    """Whether a name can only be a file of the folder that it is put
    into, and no unfinished one.
    """
    return _PLAIN.fullmatch(name) is not None and not name.endswith(".part")


def require_plain_name(name: str) -> str:
    """Gives the name back. Raises Stop for one that leads out of its folder."""
    if not is_plain_name(name):
        raise Stop(
            f"{name[:80]!r} is not a plain file name, so nothing is written there: "
            "check where it comes from, a lock, a mirror or a package index"
        )
    return name


def last_part(address: str) -> str:
    """What stands behind the last slash of an address, decoded first: an encoded slash is a slash
    too.
    """
    path = address
    if "://" in address:
        path = urlsplit(address).path
    return unquote(path).rsplit("/", 1)[-1]


def distribution_file_name(pin: PipPackage, offered: str) -> str:
    """The file name of a locked wheel or sdist.

    `offered` is the address or the name that a server gives; it decides the wheel's tags and
    nothing else. Raises Stop if that is no file name of the locked version.
    """
    found = last_part(offered)
    wheel = _WHEEL.fullmatch(found)
    sdist = _SDIST.fullmatch(found)
    if wheel and _is_of(pin, wheel):
        return require_plain_name(f"{wheel['name']}-{pin.version}{wheel['tags']}.whl")
    if sdist and _is_of(pin, sdist):
        return require_plain_name(f"{sdist['name']}-{pin.version}{sdist['suffix']}")
    raise Stop(
        f"the package index or mirror offers {found[:80]!r} for {pin.name} {pin.version}, "
        "which is no file name of that version; use another index"
    )


def _is_of(pin: PipPackage, found: re.Match[str]) -> bool:
    same_name = canonical(found["name"]) == pin.name
    return same_name and found["version"] == pin.version
