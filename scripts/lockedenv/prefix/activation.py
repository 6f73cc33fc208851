"""What enters an environment: `activate`, conda's hooks, and the constraints that keep the locked
versions.

The texts name PREFIX, not the folder that it leads to, so that a running shell follows an exchange.
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
# pip's settings that make it install into another folder.
ELSEWHERE = ("target", "prefix", "root", "python")
# `activate` saves these variables, and `deactivate` restores them.
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
    """Writes PREFIX/activate, which enters an environment of either backend and needs nothing else.

    Gives the paths that were written, relative to the prefix.
    """
    write_atomically(prefix.path / "activate", activate_text(prefix, backend))
    # `source PREFIX/bin/activate` is the usual command for a virtual environment; it does the same.
    if backend.is_venv:
        text = f"# As PREFIX/activate.\n. {shlex.quote(str(prefix.public_path / 'activate'))}\n"
        write_atomically(prefix.path / "bin/activate", text)
        return ["activate", "bin/activate"]
    return ["activate"]


def restore_activate(prefix: Prefix, backend: BackendName) -> list[str]:
    """Writes `activate` again where the text of the set-up is no longer in it; the edited one is
    kept as activate.old.

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
    """Writes the constraints, and what makes pip and uv read them. An installation then leaves the
    locked packages as they are, or fails.

    pip reads PREFIX/pip.conf for this environment alone. A pip.conf that names the constraints
    stays; so does every one where the environment is not `ours`, which is made by the set-up.
    Another one is kept as pip.conf.old. The constraints are named as an address, because pip and uv
    split the setting at spaces. uv reads no pip.conf: `activate` and conda's hooks set a variable
    for it. Gives the paths that were written, relative to the prefix.
    """
    written = _write_constraints(prefix.path, locked)
    written += _write_pip_conf(prefix, ours)
    if backend.has_conda_layer:
        written += _write_hooks(prefix)
    return written


def _write_constraints(folder: Path, locked: Iterable[PipPackage]) -> list[str]:
    lines = ["# What is locked; `rm pip.conf` beside this file lets pip replace it.\n"]
    for pin in locked:
        lines.append(f"{pin.name}=={pin.version}\n")
    write_atomically(folder / CONSTRAINTS, "".join(lines))
    return [CONSTRAINTS]


def _write_pip_conf(prefix: Prefix, ours: bool) -> list[str]:
    path = prefix.path / "pip.conf"
    present = _read(path)
    if present and (not ours or has_guard(prefix)):
        return []
    if present:
        path.rename(_free_name(path))
    write_atomically(path, guard_text(prefix))
    return ["pip.conf"]


def _write_hooks(prefix: Prefix) -> list[str]:
    written = []
    hooks = {"activate.d": "guard_on.sh", "deactivate.d": "guard_off.sh"}
    for name, text in hooks.items():
        path = f"etc/conda/{name}/maximalcai.sh"
        write_atomically(prefix.path / path, _fill(text, prefix))
        written.append(path)
    return written


def has_guard(prefix: Prefix) -> bool:
    """Whether pip.conf names the constraints; it may have other settings too."""
    return _constraint_setting(prefix) in _read(prefix.path / "pip.conf").splitlines()


def guard_text(prefix: Prefix) -> str:
    """What the set-up writes into pip.conf.

    pip reads it after the user's and the machine's, in which these settings would make it install
    elsewhere. An empty setting overrides theirs.
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
    """Writes PREFIX/bin/maximalcai, a command on PATH. Gives its path, relative to the prefix."""
    path = prefix / COMMAND
    write_atomically(path, LAUNCHER.read_text(encoding="utf-8"))
    path.chmod(0o755)
    return [COMMAND]


def enter_text(prefix: Prefix) -> str:
    """The line to show that enters an environment; users copy it."""
    return f"enter it with:  source {shlex.quote(str(prefix.public_path / 'activate'))}"


def _read(path: Path) -> str:
    try:
        return read_regular(path, LIMIT).decode("utf-8", errors="replace")
    except (OSError, FileRefused):
        return ""


def _free_name(path: Path) -> Path:
    """NAME.old; with a number where that exists: an earlier one is never overwritten."""
    free = path.with_name(f"{path.name}.old")
    number = 1
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name}.old.{number}")
    return free
