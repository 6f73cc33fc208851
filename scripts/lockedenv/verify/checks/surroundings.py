"""What surrounds the environment: variables, the user's own packages, what is known of the locked versions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Tuple

from lockedenv.installed import site_folders
from lockedenv.machine import version_tuple
from lockedenv.provenance.advisories import vulnerabilities
from lockedenv.verify.checks import Context, check, first
from lockedenv.verify.results import Result, failed, passed, warned

CUDA = "12.4"
# What torch 2.5.1 loads by name, and so could take from elsewhere; cuDNN and NCCL as its PyPI metadata pins them.
LOADED = {"nvJitLink": CUDA, "cublas": CUDA, "cublasLt": CUDA, "cudart": CUDA, "cudnn": "9.1.0", "nccl": "2.21.5"}


def _another_version(library: Path) -> bool:
    """Whether a file is one of the libraries that torch loads, of another version than the locked one (by its name)."""
    match = re.match(r"lib(\w+)\.so\.?([\d.]*)$", library.resolve().name)
    if not match or match[1] not in LOADED:
        return False
    wants = version_tuple(LOADED[match[1]])
    return version_tuple(match[2])[: len(wants)] != wants


def misleading(prefix: Path, environ: Dict[str, str]) -> List[Tuple[str, str]]:
    """(what is wrong, remedy) of the environment variables that put something else before what the prefix holds."""
    wrong = []
    for folder in filter(None, environ.get("LD_LIBRARY_PATH", "").split(":")):
        path = Path(folder).resolve()
        libraries = [p.name for p in sorted(path.glob("lib*.so*")) if _another_version(p)]
        if libraries and prefix.resolve() not in [path, *path.parents]:
            said = f"LD_LIBRARY_PATH has {folder}, whose {libraries[0]} is found before the locked one"
            wrong.append((said, "unset LD_LIBRARY_PATH"))
    if environ.get("BNB_CUDA_VERSION", "124") != "124":
        said = f"BNB_CUDA_VERSION={environ['BNB_CUDA_VERSION']}: bitsandbytes would load another CUDA's library"
        wrong.append((said, "unset BNB_CUDA_VERSION"))
    if environ.get("PYTHONPATH"):
        said = f"PYTHONPATH={environ['PYTHONPATH']} is searched before the environment"
        wrong.append((said, "unset PYTHONPATH"))
    return wrong


@check("variables", "no environment variable puts another CUDA, Python package or library first")
def variables(context: Context) -> Result:
    wrong = misleading(context.installed.prefix, context.environ)
    if wrong:
        said = [what for what, _ in wrong]
        return failed(first(said), "; ".join(remedy for _, remedy in wrong), said[1:])
    return passed("LD_LIBRARY_PATH, BNB_CUDA_VERSION and PYTHONPATH leave the locked libraries first")


@check("hf-transfer", "HF_HUB_ENABLE_HF_TRANSFER, if set, has its package: without it every download fails")
def hf_transfer(context: Context) -> Result:
    enabled = context.environ.get("HF_HUB_ENABLE_HF_TRANSFER", "").upper() in ("1", "ON", "YES", "TRUE")
    there = context.installed.version("hf-transfer")
    if enabled and not there:
        return failed("HF_HUB_ENABLE_HF_TRANSFER is set and hf_transfer is not installed", "scripts/post_create.sh")
    return passed(f"hf_transfer {there or 'not installed'}, {'enabled' if enabled else 'not enabled'}")


@check("vulnerabilities", "no installed package has a known vulnerability; what to do about those that have one")
def known_vulnerabilities(context: Context) -> Result:
    found = vulnerabilities(context.installed)
    if not found:
        return passed("none of the known ones applies")
    lines = [f"{v['id']} ({v['package']} {v['installed']}): {v['what']}; {v['remedy']}" for v in found]
    packages = " and ".join(sorted({f"{v['package']} {v['installed']}" for v in found}))
    remedy = "known, and accepted with torch 2.5.1 (README, Limits): keep to the remedy of each"
    return warned(f"{len(found)} known vulnerabilities of {packages}", remedy, lines)


@check("user-site", "no package in the user's own site folder comes before the environment's")
def user_site(context: Context) -> Result:
    folders = [p for p in site_folders(context.installed.prefix) if context.installed.prefix not in p.parents]
    if folders:
        said = f"packages are also taken from {folders[0]}"
        return warned(said, "export PYTHONNOUSERSITE=1, or make the virtual environment without system packages")
    return passed("packages come from the prefix alone")
