"""What surrounds the environment: variables, the user's own packages, what is known of the locked versions."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lockedenv.host.versions import version_tuple
from lockedenv.prefix.inventory import Kind
from lockedenv.prefix.records import site_folders
from lockedenv.spec.vulnerabilities import Vulnerability, find_vulnerabilities
from lockedenv.verify.checks import Context, Result, check, failed, passed, verdict, warned
from lockedenv.verify.remedies import repair_command
from lockedenv.verify.search_path import find_taken

ENABLED = ("1", "ON", "YES", "TRUE")  # huggingface_hub/constants.py
SEVERITIES = ("unknown", "low", "moderate", "medium", "high", "critical")  # the least first
NO_HF_TRANSFER = (1,)  # from this version on the hub does not use hf-transfer


class Misleading(NamedTuple):
    """A variable that puts something else before what the prefix holds."""

    problem: str
    remedy: str


def misleading(prefix: Path, environ: Mapping[str, str], cuda: str, cudnn: str) -> list[Misleading]:
    """The variables that put something else before what the prefix holds.

    `cuda` and `cudnn`: the versions that the prefix's torch is built for; empty for a CPU build.
    """
    found = []
    for folder in _split(environ.get("LD_LIBRARY_PATH", "")):
        library = _find_other_version(prefix, folder, cuda, cudnn)
        if library:
            problem = (
                f"LD_LIBRARY_PATH has {folder}, whose {library} is found before the locked one"
            )
            found.append(Misleading(problem, "unset LD_LIBRARY_PATH"))
    if environ.get("LD_AUDIT", "").strip():
        problem = (
            f"LD_AUDIT={environ['LD_AUDIT']} runs in every program, and may replace any library"
        )
        found.append(Misleading(problem, "unset LD_AUDIT"))
    built = cuda.replace(".", "")
    chosen = environ.get("BNB_CUDA_VERSION", built)
    if chosen != built:
        problem = f"BNB_CUDA_VERSION={chosen}: bitsandbytes would load another CUDA's library"
        found.append(Misleading(problem, "unset BNB_CUDA_VERSION"))
    # A folder that does not exist is searched for nothing.
    if any(os.path.exists(folder) for folder in _split(environ.get("PYTHONPATH", ""))):
        problem = f"PYTHONPATH={environ['PYTHONPATH']} is searched before the environment"
        found.append(Misleading(problem, "unset PYTHONPATH"))
    if environ.get("PYTHONHOME"):
        problem = f"PYTHONHOME={environ['PYTHONHOME']} replaces the standard library"
        found.append(Misleading(problem, "unset PYTHONHOME"))
    return found


def _split(text: str) -> list[str]:
    return [part for part in text.split(":") if part]


# What the locked libraries take of NVIDIA's from LD_LIBRARY_PATH before the prefix, by experiment with
# copies of all of them on it: nvJitLink (cusparse and cusolver have DT_RUNPATH, which comes after it)
# and cuDNN's sub-libraries (opened by name). With nvJitLink older than torch's CUDA `import torch`
# fails (undefined symbol __nvJitLinkComplete_...), with a newer one it works; other cuDNN
# sub-libraries are used in silence, or do not load beside cuDNN. Not taken: cudart, cublas, cudnn
# itself, cufft, curand, cusolver, cusparse, cupti, nccl, nvrtc (torch's DT_RPATH comes first).
def _find_other_version(prefix: Path, folder: str, cuda: str, cudnn: str) -> str:
    """The first library of a folder that torch would take and that does not fit; empty if none."""
    place = Path(folder).resolve()
    own = prefix.resolve()
    if not cuda or own in (place, *place.parents):
        return ""
    wrong = []
    for path in place.glob(f"libnvJitLink.so.{cuda.split('.')[0]}"):
        if _version_in_name(path) < version_tuple(cuda):
            wrong.append(path.name)
    for path in place.glob("libcudnn_*.so*"):
        if _version_in_name(path)[:3] != version_tuple(cudnn)[:3]:
            wrong.append(path.name)
    return min(wrong, default="")


def _version_in_name(library: Path) -> tuple[int, ...]:
    return version_tuple(library.resolve().name.partition(".so")[2])


def compile_problem(prefix: Path, backend: str, environ: Mapping[str, str]) -> str | None:
    """What torch.compile would lack in a prefix, and how to get it, or None.

    The conda backend ("conda") brings its own g++.
    """
    path = f"{prefix / 'bin'}:{environ.get('PATH', os.defpath)}"
    if backend == "conda" or environ.get("CXX") or shutil.which("g++", path=path):
        return None
    return (
        "there is no g++ for torch.compile, and CXX is not set; "
        "apt-get update && apt-get install -y g++"
    )


@check("variables", "no environment variable puts another CUDA, Python package or library first")
def variables(context: Context) -> Result:
    environ = context.environ
    cudnn = "" if context.lock_error else context.environment.cudnn(context.installed.backend)
    found = misleading(context.installed.prefix, environ, context.cuda, cudnn)
    found += _taken_libraries(context)
    preloaded = environ.get("LD_PRELOAD", "").strip()
    if preloaded and not found:
        text = f"LD_PRELOAD={environ['LD_PRELOAD']} comes before every library"
        return warned(text, "unset LD_PRELOAD, if you do not know why it is set")
    problems = [variable.problem for variable in found]
    remedies = dict.fromkeys(variable.remedy for variable in found)
    good = "LD_LIBRARY_PATH, BNB_CUDA_VERSION and PYTHONPATH leave the locked libraries first"
    return verdict(problems, "; ".join(remedies), good)


def _taken_libraries(context: Context) -> Iterator[Misleading]:
    folders = [Path(part) for part in _split(context.environ.get("LD_LIBRARY_PATH", ""))]
    if not any(folder.is_dir() for folder in folders):
        return
    libraries = []
    for entry in context.contents.expected.entries:
        if entry.kind is Kind.FILE and ".so" in entry.path:
            libraries.append(entry.path)
    for taken in find_taken(context.installed.prefix, libraries, folders):
        problem = f"LD_LIBRARY_PATH has {taken.path}, which {taken.loaded_by} then loads"
        yield Misleading(problem, "unset LD_LIBRARY_PATH")


@check(
    "hf-transfer",
    "HF_HUB_ENABLE_HF_TRANSFER, if set, has its package where the hub needs it: else every download fails",
)
def hf_transfer(context: Context) -> Result:
    variable = "HF_HUB_ENABLE_HF_TRANSFER"
    enabled = context.environ.get(variable, "").upper() in ENABLED
    hub = context.installed.version("huggingface-hub") or "0"
    if version_tuple(hub) >= NO_HF_TRANSFER:
        return passed(f"huggingface-hub {hub} leaves {variable} aside, and uses hf-xet")
    installed = context.installed.version("hf-transfer")
    if enabled and not installed:
        text = f"{variable} is set and hf_transfer is not installed"
        return failed(text, repair_command(context.installed.prefix))
    if enabled:
        return passed(f"hf_transfer {installed}, enabled")
    return passed(f"hf_transfer {installed or 'not installed'}, not enabled")


@check(
    "vulnerabilities",
    "no installed package has a known vulnerability; what to do about those that have one",
    brief=True,
)
def known_vulnerabilities(context: Context) -> Result:
    found = find_vulnerabilities(context.installed.version)
    if not found:
        return passed("none of the known ones applies")
    lines = []
    packages: Counter[str] = Counter()
    for known in found:
        packages[f"{known.package} {known.installed}"] += 1
        lines.append(
            f"{known.id} ({known.package} {known.installed}): {known.what}; {known.remedy}"
        )
    worst = max(found, key=_rank_severity)
    remedy = "known, and accepted with these versions (README, Limits): keep to the remedy of each"
    text = f"{len(found)} known CVEs, {_describe_owners(packages)}: {worst.remedy}"
    return warned(text, remedy, lines)


def _rank_severity(known: Vulnerability) -> int:
    if known.severity in SEVERITIES:
        return SEVERITIES.index(known.severity)
    return 0


def _describe_owners(packages: Counter[str]) -> str:
    ((most, _),) = packages.most_common(1)
    if len(packages) == 1:
        return f"all of {most}"
    return f"mostly of {most}"


@check("user-site", "no package in the user's own site folder comes before the environment's")
def user_site(context: Context) -> Result:
    prefix = context.installed.prefix
    folders = [folder for folder in site_folders(prefix) if prefix not in folder.parents]
    if not folders:
        return passed("packages come from the prefix alone")
    names = set()
    for site in context.installed.sites:
        for path in site.iterdir():
            names.add(path.name.partition(".")[0])
    names.discard("__pycache__")
    remedy = "export PYTHONNOUSERSITE=1, or do without system packages"
    text = f"packages are also taken from {folders[0]}"
    for folder in folders:
        for path in folder.iterdir():
            if _comes_first(path, names):
                return failed(f"{text}, and its {path.name} comes first", remedy)
    return warned(text, remedy)


def _comes_first(path: Path, names: set[str]) -> bool:
    """Whether Python runs a path of a site folder at its start, or it is named as one of `names`."""
    if path.suffix not in ("", ".py", ".so", ".pth"):
        return False
    if path.suffix == ".pth" or "customize" in path.name:
        return True
    return path.name.partition(".")[0] in names
