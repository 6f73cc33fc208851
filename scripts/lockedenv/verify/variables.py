"""The variables of the machine that change what an environment runs:
pure functions over the variables.

Misleading ones put something else in the place of what is locked. Others run or change something
beside it: they are named.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lockedenv.host.files import read_json
from lockedenv.host.gpus import RENTED, find_count_problem
from lockedenv.host.versions import version_tuple
from lockedenv.prefix.conda_files import STATE
from lockedenv.spec.variables import TRITON_TOOLS, find_misleading_switches
from lockedenv.verify.search_path import HWCAPS

PRELOAD_FILE = Path("/etc/ld.so.preload")
# Variables that change what a program does and replace nothing that is locked.
NOTED = {
    "PYTHONSTARTUP": "runs in every interactive Python",
    "PYTHONINSPECT": "keeps Python running after a script has ended",
    "PYTHONOPTIMIZE": "leaves out every assert of every package",
    "PYTHONPYCACHEPREFIX": "lets Python take bytecode from a folder that is not verified",
    "GCONV_PATH": "lets the C library load converters from there",
    "OPENSSL_CONF": "may load code into every program that uses OpenSSL",
    "OPENSSL_MODULES": "lets OpenSSL load its modules from there",
    "OPENSSL_ENGINES": "lets OpenSSL load its modules from there",
}


class Misleading(NamedTuple):
    """A variable that puts something else before what the prefix holds."""

    problem: str
    remedy: str


def misleading(
    prefix: Path, environ: Mapping[str, str], cuda: str, cudnn: str
) -> list[Misleading]:
    """The variables that put something else before what the prefix holds.

    `cuda` and `cudnn`: the versions that the prefix's torch is built for; empty for a CPU build.
    """
    found = []
    for folder in library_folders(environ):
        library = _find_other_version(prefix, folder, cuda, cudnn)
        if library:
            problem = (
                f"LD_LIBRARY_PATH has {folder}, "
                f"whose {library} is found before the locked one"
            )
            found.append(Misleading(problem, "unset LD_LIBRARY_PATH"))
    if environ.get("LD_AUDIT", "").strip():
        problem = (
            f"LD_AUDIT={environ['LD_AUDIT']} runs in every program, "
            "and may replace any library"
        )
        found.append(Misleading(problem, "unset LD_AUDIT"))
    built = cuda.replace(".", "")
    chosen = environ.get("BNB_CUDA_VERSION", built)
    if chosen != built:
        problem = (
            f"BNB_CUDA_VERSION={chosen}: bitsandbytes would load another CUDA's library"
        )
        found.append(Misleading(problem, "unset BNB_CUDA_VERSION"))
    # A folder that does not exist is searched for nothing.
    folders = environ.get("PYTHONPATH", "").split(":")
    if any(folder and os.path.exists(folder) for folder in folders):
        problem = (
            f"PYTHONPATH={environ['PYTHONPATH']} is searched before the environment"
        )
        found.append(Misleading(problem, "unset PYTHONPATH"))
    # The name of the library folder with which this Python was built changes nothing.
    harmless = {
        "PYTHONHOME": "",
        "PYTHONPLATLIBDIR": sysconfig.get_config_var("PLATLIBDIR"),
    }
    for name, value in harmless.items():
        if environ.get(name) and environ[name] != value:
            problem = f"{name}={environ[name]} replaces the standard library"
            found.append(Misleading(problem, f"unset {name}"))
    for name in TRITON_TOOLS:
        path = Path(environ.get(name, ""))
        if path.is_file() and prefix.resolve() not in path.resolve().parents:
            problem = f"{name}={path}: triton takes it in place of its own"
            found.append(Misleading(problem, f"unset {name}"))
    return found + misleading_switches(environ)


def misleading_switches(
    environ: Mapping[str, str], reader: str = ""
) -> list[Misleading]:
    """The variables by whose value a locked package does not work as it is verified.

    `reader`: the package; all of them where it is empty.
    """
    found = []
    for switch in find_misleading_switches(environ):
        if reader not in switch.readers:
            continue
        problem = f"{switch.name}={environ[switch.name]}: {switch.effect}"
        found.append(Misleading(problem, f"unset {switch.name}"))
    return found


def noted(environ: Mapping[str, str]) -> list[Misleading]:
    """The variables that run or change something, and leave what is locked in its place."""
    found = []
    for name, effect in NOTED.items():
        if environ.get(name):
            problem = f"{name}={environ[name]} {effect}"
            found.append(
                Misleading(problem, f"unset {name}, if you do not know why it is set")
            )
    problem = find_count_problem(environ)
    if problem:
        remedy = f"unset {RENTED}, if this is no pod, or set it to the number of GPUs"
        found.append(Misleading(problem, remedy))
    return found


def library_folders(environ: Mapping[str, str]) -> list[Path]:
    """The folders of LD_LIBRARY_PATH. An empty one is the current folder: ld.so(8)."""
    text = environ.get("LD_LIBRARY_PATH", "")
    if not text:
        return []
    return [Path(part or ".") for part in re.split("[:;]", text)]


def activation_variables(prefix: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """What `micromamba activate` and `micromamba run` set: the file in the prefix,
    and its variables.

    https://docs.conda.io/projects/conda/en/latest/dev-guide/deep-dives/activation.html
    """
    folder = prefix / "etc/conda/env_vars.d"
    for path in [*sorted(folder.glob("*.json")), prefix / STATE]:
        document = read_json(path)
        if path.name == "state":
            document = document.get("env_vars", {})
        values = {}
        if isinstance(document, dict):
            for name, value in document.items():
                values[name] = str(value)
        if values:
            yield path.relative_to(prefix).as_posix(), values


class Preloaded(NamedTuple):
    """A library that the loader puts before all others.

    `setting`: the variable or file that says so.
    """

    setting: str
    library: str


def preloaded(
    environ: Mapping[str, str], file: Path | None = None
) -> Iterator[Preloaded]:
    """The libraries of LD_PRELOAD, and of a file such as /etc/ld.so.preload,
    which every program reads."""
    value = environ.get("LD_PRELOAD", "").strip()
    for library in re.split("[ :]+", value):
        if library:
            yield Preloaded(f"LD_PRELOAD={value}", library)
    if file is None or not file.is_file():
        return
    for line in file.read_text(errors="replace").splitlines():
        for library in re.split("[ \t:]+", line.partition("#")[0]):
            if library:
                yield Preloaded(f"{file} has {library}, which", library)


def judge_preloaded(
    prefix: Path, found: Iterable[Preloaded], names: Collection[str]
) -> tuple[list[Misleading], list[Misleading]]:
    """Those that come in place of a locked library (`names`: their file names), and the others."""
    own = prefix.resolve()
    replacing: dict[Misleading, None] = {}
    others: dict[Misleading, None] = {}
    for setting, library in found:
        remedy = "unset LD_PRELOAD"
        if not setting.startswith("LD_PRELOAD"):
            remedy = f"remove {library} from {PRELOAD_FILE}"
        path = Path(library)
        exists = "/" not in library or path.exists()
        if exists and path.name in names and own not in path.resolve().parents:
            problem = f"{setting} comes in place of the locked {path.name}"
            replacing[Misleading(problem, remedy)] = None
        else:
            problem = f"{setting} comes before every library"
            remedy = f"{remedy}, if you do not know why it is set"
            others[Misleading(problem, remedy)] = None
    return list(replacing), list(others)


# What the locked libraries take of NVIDIA's from LD_LIBRARY_PATH before the prefix, by experiment
# with copies of all of them on it: nvJitLink (cusparse and cusolver have DT_RUNPATH, which comes
# after it) and cuDNN's sub-libraries (opened by name). With nvJitLink older than torch's CUDA
# `import torch` fails (undefined symbol __nvJitLinkComplete_...), with a newer one it works; other
# cuDNN sub-libraries are used in silence, or do not load beside cuDNN. Not taken: cudart, cublas,
# cudnn itself, cufft, curand, cusolver, cusparse, cupti, nccl, nvrtc (torch's DT_RPATH comes
# first).
def _find_other_version(prefix: Path, folder: Path, cuda: str, cudnn: str) -> str:
    """The first library of a folder that torch would take and that does not fit; empty if none."""
    place = folder.resolve()
    own = prefix.resolve()
    if not cuda or own in (place, *place.parents):
        return ""
    wrong = []
    for searched in (place, *place.glob(HWCAPS)):
        for path in searched.glob(f"libnvJitLink.so.{cuda.split('.')[0]}"):
            if _version_in_name(path) < version_tuple(cuda):
                wrong.append(path.name)
        for path in searched.glob("libcudnn_*.so*"):
            if _version_in_name(path)[:3] != version_tuple(cudnn)[:3]:
                wrong.append(path.name)
    return min(wrong, default="")


def _version_in_name(library: Path) -> tuple[int, ...]:
    return version_tuple(library.resolve().name.partition(".so")[2])
