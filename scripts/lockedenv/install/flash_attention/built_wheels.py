"""The flash-attn wheels that were built here, kept in the cache so that the hours are spent once.

A wheel in the cache is believed only by a hash that the user's own state holds, outside the cache.
The JSON beside a wheel says what it was built from and for, and proves nothing: on a volume that
many pods share, whoever writes there can put another wheel with a right JSON into the folder, and
it would run in every pod. The user's state is written by the run that has built the wheel. On
another machine the wheel is taken with --wheel FILE --sha256 HEX, where HEX is what the build said.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lockedenv.backends.file_names import is_plain_name
from lockedenv.errors import Stop
from lockedenv.host.files import read_json, write_atomically
from lockedenv.host.places import home
from lockedenv.host.versions import version_tuple
from lockedenv.install.flash_attention.target import Torch
from lockedenv.install.flash_attention.toolchain import Toolchain
from lockedenv.prefix.records import file_sha256
from lockedenv.reporter import Reporter
from lockedenv.spec.locks import PipPackage

FOLDER = "flash-attn"
_DESCRIPTION = "wheel.json"


def make_key(
    pin: PipPackage, torch: Torch, archs: tuple[str, ...], shared: bool = False
) -> str:
    """What a wheel must have been built from and for to be the one that is wanted.

    `shared`: without the part of its source that flash-attn-4 has too.
    """
    variant = "-nocute" if shared else ""
    python = (
        f"torch{torch.version}-cu{torch.cuda}-abi{int(torch.cxx11abi)}-{torch.python}"
    )
    return (
        f"flash_attn-{pin.version}-{pin.sha256[:12]}{variant}-{python}-sm{'+'.join(archs)}"
        f"-{torch.platform}"
    )


def make_full_key(key: str, tools: Toolchain, glibc: str) -> str:
    """The name of a built wheel's folder in the cache: its key, and what compiled it."""
    return f"{key}-nvcc{tools.nvcc}-gcc{tools.gcc}-glibc{glibc}"


def find_built_glibc(folder_name: str, key: str) -> str | None:
    """The glibc that the wheel of a cache folder was built on; None if it is not of this key."""
    pattern = re.escape(key) + r"-nvcc[\d.]+-gcc[\d.]+-glibc([\d.]+)(?:-[0-9a-f]{12})?"
    match = re.fullmatch(pattern, folder_name)
    if not match:
        return None
    return match[1]


def runs_here(folder_name: str, key: str, glibc: str) -> bool:
    """Whether a wheel is the wanted one, and built on a glibc no newer than this machine's."""
    built = find_built_glibc(folder_name, key)
    return built is not None and version_tuple(built) <= version_tuple(glibc)


@dataclass(frozen=True)
class BuiltWheel:
    path: Path
    sha256: str
    full_key: str


def find_built_wheel(
    cache: Path, key: str, glibc: str, reporter: Reporter | None = None
) -> BuiltWheel | None:
    """The wheel of this key in the cache that runs here and that this user has
    built, of the newest glibc.

    With a reporter, one that is not what was built is set aside, and one that is
    not this user's is named.
    """
    folders = [
        path for path in cache.glob(f"{key}-*") if runs_here(path.name, key, glibc)
    ]
    folders.sort(key=lambda path: version_tuple(find_built_glibc(path.name, key) or ""))
    folders.reverse()
    own = read_own_builds()
    for folder in folders:
        wheel = _read_folder(folder)
        if wheel and own.get(wheel.sha256) == wheel.full_key:
            return wheel
        if not reporter:
            continue
        if wheel:
            reporter.say(
                f"the cache has {wheel.path}, which is not noted as built by you on this machine, "
                "so it is not taken; if you trust who built it: --wheel FILE --sha256 HEX, with "
                "the hash that the build has printed"
            )
        else:
            aside = folder.rename(
                folder.with_name(f"damaged-{time.time_ns()}-{folder.name}")
            )
            reporter.say(
                f"the cached wheel is not what was built; set aside as {aside}"
            )
    return None


def _read_folder(folder: Path) -> BuiltWheel | None:
    """The wheel of a folder if it is the one that its JSON names; otherwise None."""
    description = read_json(folder / _DESCRIPTION)
    name = description.get("wheel")
    sha256 = description.get("sha256")
    if (
        not isinstance(name, str)
        or not isinstance(sha256, str)
        or not is_plain_name(name)
    ):
        return None
    if not sha256 or file_sha256(folder / name) != sha256:
        return None
    full_key = re.sub(r"-[0-9a-f]{12}$", "", folder.name)
    return BuiltWheel(folder / name, sha256, full_key)


def keep_built_wheel(
    wheel: Path, cache: Path, full_key: str, facts: dict[str, object]
) -> BuiltWheel:
    """Puts a wheel that was built just now into the cache, with its JSON, both or neither, and
    notes it as this user's.

    Another pod's wheel of the same key has another hash and another folder; both stay.
    """
    beside = Path(tempfile.mkdtemp(prefix=f".{full_key[:40]}-", dir=cache))
    shutil.copy2(wheel, beside / wheel.name)
    sha256 = file_sha256(beside / wheel.name)
    document = {"wheel": wheel.name, "sha256": sha256, **facts}
    (beside / _DESCRIPTION).write_text(json.dumps(document, indent=2) + "\n")
    beside.chmod(0o755)
    folder = cache / f"{full_key}-{sha256[:12]}"
    if folder.exists():
        shutil.rmtree(beside)
    else:
        beside.rename(folder)
    note_own_build(sha256, full_key)
    return BuiltWheel(folder / wheel.name, sha256, full_key)


def describe_build(
    started: float, jobs: int, tools: Toolchain, torch: Torch, archs: tuple[str, ...]
) -> dict[str, object]:
    """What the JSON beside a built wheel says. `started`: time.monotonic() of then."""
    return {
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.monotonic() - started, 1),
        "jobs": jobs,
        "nvcc": tools.nvcc,
        "gcc": tools.gcc,
        "torch": asdict(torch),
        "archs": list(archs),
    }


# The user's state ---------------------------------------------------------------------------------


def find_state_file() -> Path | None:
    """Where the hashes of one's own builds are noted: outside every cache.

    None where the user has no home.
    """
    named = Path(os.environ.get("XDG_STATE_HOME", ""))
    if named.is_absolute():
        return named / "maximalcai/flash-attn-builds.json"
    try:
        return home() / ".local/state/maximalcai/flash-attn-builds.json"
    except Stop:
        return None


def read_own_builds() -> dict[str, str]:
    """sha256 -> full key of the wheels that this user has built; empty where others
    could have written the note.
    """
    file = find_state_file()
    if not file:
        return {}
    for path in (file, file.parent):
        try:
            status = path.lstat()
        except OSError:
            return {}
        if status.st_uid != os.getuid() or status.st_mode & (
            stat.S_IWGRP | stat.S_IWOTH
        ):
            return {}
    return {sha: key for sha, key in read_json(file).items() if isinstance(key, str)}


def note_own_build(sha256: str, full_key: str) -> None:
    """Notes a wheel as built by this user, if there is a place for it."""
    file = find_state_file()
    if not file:
        return
    builds = {**read_own_builds(), sha256: full_key}
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(file, json.dumps(builds, indent=1) + "\n")
    file.chmod(0o600)
