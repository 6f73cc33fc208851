"""Whether a wheel fits an environment, by its file name: the rules of tags, and what
flash-attn's own names add.

This is the part of the `packaging` library that an x86-64 Linux with glibc needs, because nothing
but the standard library is there when --wheel is judged. tests/flash_attention compares it with
`packaging` itself. The rules:
https://packaging.python.org/en/latest/specifications/platform-compatibility-tags/ and
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lockedenv.host.versions import version_tuple
from lockedenv.install.flash_attention.target import Torch
from lockedenv.spec.locks import canonical

_FILE_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<public>[A-Za-z0-9_.!]+)(?:\+(?P<local>[A-Za-z0-9_.]+))?"
    r"(?:-[0-9][A-Za-z0-9_.]*)?"
    r"-(?P<python>[A-Za-z0-9_.]+)-(?P<abi>[A-Za-z0-9_.]+)-(?P<platform>[A-Za-z0-9_.]+)\.whl",
    re.ASCII,
)
# https://peps.python.org/pep-0600/#legacy-manylinux-tags
_LEGACY_MANYLINUX = {
    "manylinux1": "2.5",
    "manylinux2010": "2.12",
    "manylinux2014": "2.17",
}
_MACHINE = "x86_64"


@dataclass(frozen=True)
class WheelName:
    """The parts of a wheel's file name. A tag part may name several, with dots between."""

    filename: str
    name: str
    version: str
    local: str
    pythons: tuple[str, ...]
    abis: tuple[str, ...]
    platforms: tuple[str, ...]


def parse_wheel_name(filename: str) -> WheelName | None:
    """The parts of a file name; None if it is no wheel's."""
    match = _FILE_NAME.fullmatch(filename)
    if not match:
        return None
    return WheelName(
        filename=filename,
        name=canonical(match["name"]),
        version=match["public"],
        local=match["local"] or "",
        pythons=tuple(match["python"].split(".")),
        abis=tuple(match["abi"].split(".")),
        platforms=tuple(match["platform"].split(".")),
    )


def fits_python(pythons: tuple[str, ...], abis: tuple[str, ...], ours: str) -> bool:
    """Whether an interpreter, such as "cp311", takes one of these
    combinations of Python and ABI tags.
    """
    minor = int(ours[3:])
    for python in pythons:
        for abi in abis:
            if python == ours and abi in (ours, "abi3", "none"):
                return True
            match = re.fullmatch(r"(cp|py)3(\d*)", python)
            if not match:
                continue
            if match[1] == "cp" and abi == "abi3" and 2 <= int(match[2] or 0) <= minor:
                return True
            if match[1] == "py" and abi == "none" and int(match[2] or 0) <= minor:
                return True
    return False


def fits_platform(platform: str, glibc: str) -> bool:
    """Whether an x86-64 Linux with this glibc takes a platform tag."""
    if platform in ("any", f"linux_{_MACHINE}"):
        return True
    if not platform.endswith(f"_{_MACHINE}"):
        return False
    kind = platform[: -len(f"_{_MACHINE}")]
    needed = _LEGACY_MANYLINUX.get(kind)
    match = re.fullmatch(r"manylinux_(\d+)_(\d+)", kind)
    if match:
        needed = f"{match[1]}.{match[2]}"
    if not needed:
        return False
    return version_tuple(needed) <= version_tuple(glibc)


def find_misfit(filename: str, torch: Torch, glibc: str) -> str | None:
    """Which parts of a flash-attn wheel's name do not fit the environment
    and this machine, or None.
    """
    wheel = parse_wheel_name(filename)
    if not wheel or wheel.name != "flash-attn":
        return f"{filename} is not the name of a flash-attn wheel"
    problems = []
    if not fits_python(wheel.pythons, wheel.abis, torch.python):
        named = ".".join(wheel.pythons)
        if torch.python in wheel.pythons:
            named += f" with the ABI {'.'.join(wheel.abis)}"
        problems.append(f"Python {named}, the environment has {torch.python}")
    platforms = set(wheel.platforms)
    if not fits_python(wheel.pythons, tuple({"none"} & set(wheel.abis)), torch.python):
        platforms.discard("any")  # code that needs an ABI is for one kind of machine
    if not any(fits_platform(platform, glibc) for platform in platforms):
        named = ".".join(wheel.platforms)
        problems.append(
            f"platform {named}, this machine is linux_{_MACHINE} with glibc {glibc}"
        )
    problems += _local_problems(wheel.local, torch)
    if not problems:
        return None
    return f"{filename} is for {'; for '.join(problems)}"


def _local_problems(local: str, torch: Torch) -> list[str]:
    """What flash-attn's project writes behind the +, such as cu12torch2.5cxx11abiFALSE,
    against the environment.
    """
    expected = (
        ("CUDA", r"cu(\d\d)", torch.cuda.split(".")[0]),
        ("torch", r"torch(\d+\.\d+)", ".".join(torch.version.split(".")[:2])),
        ("C++ ABI", r"cxx11abi(TRUE|FALSE)", str(torch.cxx11abi).upper()),
    )
    problems = []
    for kind, pattern, ours in expected:
        match = re.search(pattern, local)
        if match and match[1] != ours:
            problems.append(f"{kind} {match[1]}, the environment has {ours}")
    return problems
