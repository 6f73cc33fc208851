"""What surrounds the environment: variables, the user's own packages, what is known of the locked versions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Tuple

from lockedenv.host.versions import version_tuple
from lockedenv.prefix.records import site_folders
from lockedenv.spec.vulnerabilities import find_vulnerabilities
from lockedenv.verify.checks import Context, Result, check, failed, passed, verdict, warned

# What the locked libraries take from LD_LIBRARY_PATH before the prefix, by experiment with copies of all of them on it: nvJitLink
# (cusparse and cusolver have DT_RUNPATH, which comes after it) and cuDNN's sub-libraries (opened by name). With nvJitLink older
# than torch's CUDA `import torch` fails (undefined symbol __nvJitLinkComplete_...), with a newer one it works; other cuDNN
# sub-libraries are used in silence, or do not load beside cuDNN. Not taken: cudart, cublas, cudnn itself, cufft, curand,
# cusolver, cusparse, cupti, nccl, nvrtc (torch's DT_RPATH comes first).


def misleading(
    prefix: Path, environ: Dict[str, str], cuda: str, cudnn: str
) -> List[Tuple[str, str]]:
    """(what is wrong, remedy) of the environment variables that put something else before what the prefix holds, whose torch
    is built for this CUDA and cuDNN."""
    wrong, oldest = [], version_tuple(cuda)
    loaded: Dict[str, Callable[[Tuple[int, ...]], bool]] = (
        {  # what the loader looks for -> whether a version fits
            f"libnvJitLink.so.{cuda.split('.')[0]}": lambda version: version >= oldest,
            "libcudnn_*.so*": lambda version: version[:3] == version_tuple(cudnn)[:3],
        }
    )
    for folder in filter(None, environ.get("LD_LIBRARY_PATH", "").split(":")):
        path = Path(folder).resolve()
        found = [
            (p.name, p.resolve().name.partition(".so")[2], fits)
            for names, fits in loaded.items()
            if cuda
            for p in path.glob(names)
        ]
        libraries = sorted(
            name for name, version, fits in found if not fits(version_tuple(version))
        )
        if libraries and prefix.resolve() not in [path, *path.parents]:
            said = (
                f"LD_LIBRARY_PATH has {folder}, whose {libraries[0]} is found before the locked one"
            )
            wrong.append((said, "unset LD_LIBRARY_PATH"))
    if environ.get("BNB_CUDA_VERSION", built := cuda.replace(".", "")) != built:
        said = f"BNB_CUDA_VERSION={environ['BNB_CUDA_VERSION']}: bitsandbytes would load another CUDA's library"
        wrong.append((said, "unset BNB_CUDA_VERSION"))
    if environ.get("PYTHONPATH"):
        said = f"PYTHONPATH={environ['PYTHONPATH']} is searched before the environment"
        wrong.append((said, "unset PYTHONPATH"))
    return wrong


def compile_problem(prefix: Path, backend: str, environ: Mapping[str, str]) -> Optional[str]:
    """What torch.compile would lack in a prefix, and how to get it, or None; the conda backend ("conda") brings its own g++."""
    path = f"{prefix / 'bin'}:{environ.get('PATH', os.defpath)}"
    if backend == "conda" or environ.get("CXX") or shutil.which("g++", path=path):
        return None
    return "there is no g++ for torch.compile, and CXX is not set; apt-get update && apt-get install -y g++"


@check("variables", "no environment variable puts another CUDA, Python package or library first")
def variables(context: Context) -> Result:
    cudnn = "" if context.lock_error else context.environment.cudnn(context.installed.backend)
    wrong = misleading(context.installed.prefix, context.environ, context.cuda, cudnn)
    good = "LD_LIBRARY_PATH, BNB_CUDA_VERSION and PYTHONPATH leave the locked libraries first"
    if not wrong and context.environ.get("LD_PRELOAD", "").strip():
        said = f"LD_PRELOAD={context.environ['LD_PRELOAD']} comes before every library"
        return warned(said, "unset LD_PRELOAD, if you do not know why it is set")
    return verdict([what for what, _ in wrong], "; ".join(remedy for _, remedy in wrong), good)


@check(
    "hf-transfer",
    "HF_HUB_ENABLE_HF_TRANSFER, if set, has its package where the hub needs it: else every download fails",
)
def hf_transfer(context: Context) -> Result:
    enabled = context.environ.get("HF_HUB_ENABLE_HF_TRANSFER", "").upper() in (
        "1",
        "ON",
        "YES",
        "TRUE",
    )
    there, hub = context.installed.version("hf-transfer"), context.installed.version(
        "huggingface-hub"
    )
    if version_tuple(hub or "0") >= (1,):
        return passed(
            f"huggingface-hub {hub} leaves HF_HUB_ENABLE_HF_TRANSFER aside, and uses hf-xet"
        )
    if enabled and not there:
        return failed(
            "HF_HUB_ENABLE_HF_TRANSFER is set and hf_transfer is not installed",
            "scripts/post_create.sh",
        )
    return passed(
        f"hf_transfer {there or 'not installed'}, {'enabled' if enabled else 'not enabled'}"
    )


@check(
    "vulnerabilities",
    "no installed package has a known vulnerability; what to do about those that have one",
)
def known_vulnerabilities(context: Context) -> Result:
    found = find_vulnerabilities(context.installed.version)
    if not found:
        return passed("none of the known ones applies")
    lines = [f"{v.id} ({v.package} {v.installed}): {v.what}; {v.remedy}" for v in found]
    packages = " and ".join(sorted({f"{v.package} {v.installed}" for v in found}))
    remedy = "known, and accepted with these versions (README, Limits): keep to the remedy of each"
    return warned(f"{len(found)} known vulnerabilities of {packages}", remedy, lines)


@check("user-site", "no package in the user's own site folder comes before the environment's")
def user_site(context: Context) -> Result:
    folders = [
        p
        for p in site_folders(context.installed.prefix)
        if context.installed.prefix not in p.parents
    ]
    if not folders:
        return passed("packages come from the prefix alone")
    names = {
        path.name.split(".")[0] for site in context.installed.sites for path in site.iterdir()
    } - {"__pycache__"}
    paths = [
        path
        for folder in folders
        for path in folder.iterdir()
        if path.suffix in ("", ".py", ".so", ".pth")
    ]
    before = [
        p
        for p in paths
        if p.suffix == ".pth" or "customize" in p.name or p.name.split(".")[0] in names
    ]
    remedy = "export PYTHONNOUSERSITE=1, or do without system packages"
    if before:
        return failed(
            f"packages are also taken from {folders[0]}, and its {before[0].name} comes first",
            remedy,
        )
    return warned(f"packages are also taken from {folders[0]}", remedy)
