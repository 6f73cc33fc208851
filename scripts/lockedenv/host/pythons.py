"""The Pythons of this machine: on PATH, and where pyenv, uv, conda, asdf, mise and
/opt keep others beside it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from lockedenv.host.process import ask

# What a Python must say of itself to be taken: its version, and the interpreter below any virtual
# environment. `ensurepip` and `venv` are not asked for: uv needs neither.
PROBE = (
    "import os, platform, sys; "
    "assert platform.python_implementation() == 'CPython' and sys.maxsize > 2**32; "
    "print('%d.%d' % sys.version_info[:2]); "
    "print(os.path.realpath(getattr(sys, '_base_executable', None) or sys.executable))"
)
CONDA_FOLDERS = (
    "miniconda3",
    "anaconda3",
    "miniforge3",
    "mambaforge",
    "micromamba",
    "conda",
)


def find_python(
    version: str,
    environ: Mapping[str, str],
    more: Sequence[Path] = (),
    without: Sequence[Path] = (),
) -> Path | None:
    """An interpreter of a version such as "3.12", or None.

    `more`: folders of Pythons that are looked into besides. `without`: folders whose own Pythons
    are not taken, such as a prefix that is about to be made anew.
    """
    for candidate in candidates(version, environ, more):
        found = probe(candidate, version)
        if found is not None and not _inside(found, without):
            return found
    return None


def probe(python: Path, version: str) -> Path | None:
    """The interpreter that a program starts, without the virtual environment around it,
    if it is of the version.
    """
    # -I: neither PYTHONHOME nor another of Python's variables decides what it says.
    answer = ask([python, "-I", "-c", PROBE], 20)
    lines = answer.output.splitlines()
    if answer.status != 0 or len(lines) != 2 or lines[0] != version:
        return None
    return Path(lines[1])


def candidates(
    version: str, environ: Mapping[str, str], more: Sequence[Path]
) -> Iterator[Path]:
    """The programs that may be such a Python, the most likely first; each
    exists and may be started.
    """
    seen = set()
    names = (f"python{version}", "python3", "python")
    for folder in folders(version, environ, more):
        for name in names:
            path = folder / name
            if path not in seen and path.is_file() and os.access(path, os.X_OK):
                seen.add(path)
                yield path


def folders(
    version: str, environ: Mapping[str, str], more: Sequence[Path]
) -> Iterator[Path]:
    """The bin folders of Pythons: PATH's, the system's, and those of the
    tools that keep several.
    """
    for text in environ.get("PATH", os.defpath).split(os.pathsep):
        if text:
            yield Path(text)
    yield Path(sys.base_prefix, "bin")
    for folder in ("/usr/local/bin", "/usr/bin"):
        yield Path(folder)
    for root in (*more, *_roots(environ)):
        for pattern in (
            f"{version}*/bin",
            f"*-{version}*/bin",
            f"python{version}*/bin",
        ):
            yield from sorted(root.glob(pattern), reverse=True)
    for root in _conda_roots(environ):
        yield root / "bin"
        yield from sorted(root.glob("envs/*/bin"))


def _roots(environ: Mapping[str, str]) -> Iterator[Path]:
    """Folders that hold one folder a Python."""
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
    pyenv = shutil.which("pyenv", path=environ.get("PATH"))
    if pyenv:
        yield Path(os.path.realpath(pyenv)).parent.parent / "versions"
    yield Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    yield Path(sys.base_prefix).parent
    yield Path(environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv/python")
    yield home / ".asdf/installs/python"
    yield data / "mise/installs/python"
    yield Path("/opt")
    yield Path("/opt/python")


def _conda_roots(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where conda is installed; its environments come last, since people remove them."""
    program = environ.get("CONDA_EXE") or shutil.which(
        "conda", path=environ.get("PATH")
    )
    if program:
        yield Path(os.path.realpath(program)).parent.parent
    if environ.get("MAMBA_ROOT_PREFIX"):
        yield Path(environ["MAMBA_ROOT_PREFIX"])
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    for parent in (home, Path("/opt")):
        for name in CONDA_FOLDERS:
            yield parent / name


def _inside(path: Path, places: Sequence[Path]) -> bool:
    return any(place in path.parents for place in places)


def how_to_get(version: str, environ: Mapping[str, str]) -> str:
    """The command that brings a Python of a version on this machine; empty
    where none is known to work.
    """
    path = environ.get("PATH")
    if shutil.which("apt-cache", path=path):
        # Debian 12 has no package python3.12, and apt-get would only say so.
        said = ask(["apt-cache", "policy", f"python{version}"], 20).output
        if "Candidate:" in said and "Candidate: (none)" not in said:
            return f"apt-get install python{version}"
    if shutil.which("dnf", path=path):
        answer = ask(["dnf", "--cacheonly", "--quiet", "info", f"python{version}"], 20)
        if answer.status == 0:
            return f"dnf install python{version}"
    if shutil.which("uv", path=path):
        return f"uv python install {version}"
    if shutil.which("pyenv", path=path):
        return f"pyenv install {version}"
    for conda in ("conda", "mamba", "micromamba"):
        if shutil.which(conda, path=path):
            return f"{conda} create -n python{version} -c conda-forge python={version}"
    return ""
