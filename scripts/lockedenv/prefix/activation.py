"""The ways into an environment: `activate`, conda's hooks, and the constraints that keep what is
locked.

The texts name PREFIX as people name it, not the folder that it leads to: a running shell follows an
exchange.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Iterable

from lockedenv.host.files import FileRefused, read_regular, write_atomically
from lockedenv.host.places import default_cache
from lockedenv.prefix.compare_inventory import keeps_content
from lockedenv.prefix.inventory import inventory_or_none
from lockedenv.prefix.place import Prefix, mark_or_none
from lockedenv.prefix.records import COMMAND, CONSTRAINTS
from lockedenv.spec.flash_attention_kernels import KERNEL_FOLDER
from lockedenv.spec.layers import BackendName
from lockedenv.spec.locks import PipPackage

SHELL = Path(__file__).with_name("shell")
LAUNCHER = Path(__file__).with_name("launcher.py")
LIMIT = 1_000_000  # bytes of a pip.conf
# pip's settings that choose another place.
ELSEWHERE = ("target", "prefix", "root", "python")
# Saved when an environment is entered, and given back when it is left.
NAMES = (
    "UV_SYSTEM_PYTHON",
    "UV_PYTHON",
    "UV_TARGET",
    "UV_PREFIX",
    "UV_CONSTRAINT",
    "UV_OVERRIDE",
    "PIP_PYTHON",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "PIP_CONFIG_FILE",
    "PIP_CONSTRAINT",
    "PYTHONHOME",
    "PYTHONPLATLIBDIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    "USE_HUB_KERNELS",
    "DISABLE_KERNEL_MAPPING",
)


def write_activate(prefix: Prefix, backend: BackendName) -> list[str]:
    """PREFIX/activate: one way in for both backends, which needs nothing but the environment.

    Gives the paths that were written, relative to the prefix.
    """
    write_atomically(prefix.path / "activate", activate_text(prefix, backend))
    # `source PREFIX/bin/activate`, as people know it from any virtual environment, is the same way
    # in.
    if backend.is_venv:
        text = f"# As PREFIX/activate.\n. {shlex.quote(str(prefix.public_path / 'activate'))}\n"
        write_atomically(prefix.path / "bin/activate", text)
        return ["activate", "bin/activate"]
    return ["activate"]


def restore_activate(prefix: Prefix, backend: BackendName) -> list[str]:
    """Writes `activate` again where what the set-up wrote is no longer in it; the edited one stays
    as activate.old.

    Gives the paths that were written, relative to the prefix.
    """
    inventory = inventory_or_none(prefix.path)
    if inventory is None:
        return []
    entries = inventory.entries_by_path()
    lost = False
    for path in ("activate", "bin/activate"):
        entry = entries.get(path)
        if entry is None or keeps_content(prefix.path, entry):
            continue
        lost = True
        place = prefix.path / path
        if place.is_symlink() or (place.exists() and place.stat().st_size):
            place.rename(_free_name(place))
    if not lost:
        return []
    return write_activate(prefix, backend)


def activate_text(prefix: Prefix, backend: BackendName) -> str:
    """What enters an environment, in bash and zsh."""
    if backend.has_conda_layer:
        # The guard is one of the hooks, for `micromamba activate` too.
        enter = _fill("hooks.sh", prefix, HOOKS="activate.d")
        leave = _fill("hooks.sh", prefix, HOOKS="deactivate.d")
        variable = "CONDA_PREFIX"
    else:
        enter = _fill("guard_on.sh", prefix)
        leave = _fill("guard_off.sh", prefix)
        variable = "VIRTUAL_ENV"
    indented = "\n".join(f"  {line}" for line in leave.splitlines())
    return _fill("activate.sh", prefix, VARIABLE=variable, ENTER=enter, LEAVE=indented)


def find_kernel_folder(prefix: Prefix) -> Path:
    """Where the kernels of FlashAttention 4 lie: in the cache that the mark names, else the usual.

    The set-up compiles into it and the ways in name it, also when a later run has another cache.
    """
    mark = mark_or_none(prefix.path)
    if mark is not None and mark.cache:
        return Path(mark.cache) / KERNEL_FOLDER
    return default_cache() / KERNEL_FOLDER


def _fill(name: str, prefix: Prefix, **values: str) -> str:
    """A shell text with its @WORDS@ filled in."""
    text = (SHELL / name).read_text(encoding="utf-8")
    constraints = prefix.public_path / CONSTRAINTS
    for word, value in values.items():
        text = text.replace(f"@{word}@", value.rstrip("\n"))
    known = {
        "NAMES": " ".join(NAMES),
        "PREFIX": shlex.quote(str(prefix.public_path)),
        "TITLE": shlex.quote(prefix.public_path.name),
        "CONSTRAINTS": shlex.quote(constraints.as_uri()),
        "CONSTRAINTS_FILE": shlex.quote(str(constraints)),
        "KERNELS": shlex.quote(str(find_kernel_folder(prefix))),
    }
    for word, value in known.items():
        text = text.replace(f"@{word}@", value)
    return text


def write_guard(
    prefix: Prefix, locked: Iterable[PipPackage], backend: BackendName, ours: bool
) -> list[str]:
    """The constraints, and what makes pip and uv read them: what people install leaves what is
    locked, or stops.

    pip reads PREFIX/pip.conf for this environment alone. One that names the constraints already
    stays, and any in an environment that people made; another one is kept as pip.conf.old. The
    constraints are named as an address, because pip and uv split the setting at spaces. uv reads no
    such file: `activate` and conda's hooks tell it. Gives the paths that were written, relative to
    the prefix.
    """
    folder = prefix.path
    written = [CONSTRAINTS]
    lines = ["# What is locked; `rm pip.conf` beside this file lets pip replace it.\n"]
    for pin in locked:
        lines.append(f"{pin.name}=={pin.version}\n")
    write_atomically(folder / CONSTRAINTS, "".join(lines))
    conf = folder / "pip.conf"
    present = _read(conf)
    if not present or (ours and not has_guard(prefix)):
        if present:
            conf.rename(_free_name(conf))
        write_atomically(conf, guard_text(prefix))
        written.append("pip.conf")
    if backend.has_conda_layer:
        hooks = {"activate.d": "guard_on.sh", "deactivate.d": "guard_off.sh"}
        for name, text in hooks.items():
            path = f"etc/conda/{name}/maximalcai.sh"
            write_atomically(folder / path, _fill(text, prefix))
            written.append(path)
    return written


def has_guard(prefix: Prefix) -> bool:
    """Whether pip.conf names the constraints, whatever people have put into it besides."""
    return _constraint_setting(prefix) in _read(prefix.path / "pip.conf").splitlines()


def guard_text(prefix: Prefix) -> str:
    """What the set-up writes into pip.conf.

    pip reads it after the user's and the machine's, in which these settings would lead every
    installation elsewhere. An empty one takes back what they say.
    """
    lines = []
    for section in ("global", "install"):
        lines.append(f"[{section}]")
        for setting in ELSEWHERE:
            lines.append(f"{setting} =")
        lines.append("user = false")
    lines.append(_constraint_setting(prefix))
    return "\n".join(lines) + "\n"


def _constraint_setting(prefix: Prefix) -> str:
    return f"constraint = {(prefix.path / CONSTRAINTS).as_uri()}"


def write_command(prefix: Path) -> list[str]:
    """PREFIX/bin/maximalcai: on PATH in the environment. Gives its path, relative to the prefix."""
    path = prefix / COMMAND
    write_atomically(path, LAUNCHER.read_text(encoding="utf-8"))
    path.chmod(0o755)
    return [COMMAND]


def enter_text(prefix: Prefix) -> str:
    """The line that enters an environment, alone: it is copied."""
    return f"enter it with:  source {shlex.quote(str(prefix.public_path / 'activate'))}"


def _read(path: Path) -> str:
    try:
        return read_regular(path, LIMIT).decode("utf-8", errors="replace")
    except (OSError, FileRefused):
        return ""


def _free_name(path: Path) -> Path:
    """NAME.old, or with a number: an earlier one is never written over."""
    free = path.with_name(f"{path.name}.old")
    number = 1
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name}.old.{number}")
    return free
