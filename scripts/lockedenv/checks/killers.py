"""What usually breaks this environment, each by name. Nothing heavy is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Tuple

from lockedenv import manifest
from lockedenv.checks import Context, check, first
from lockedenv.drift import REMAKE
from lockedenv.host import driver_problem, version_tuple
from lockedenv.installed import site_folders
from lockedenv.results import Result, failed, passed, skipped, warned

CUDA = "12.4"
# The CUDA 12.4 libraries' own versions where they are not numbered 12.4.
# https://docs.nvidia.com/cuda/archive/12.4.1/cuda-toolkit-release-notes/#cuda-toolkit-major-component-versions
CUDA_VERSIONS = {
    "cufft": "11.2.1",
    "curand": "10.3.5",
    "cusolver": "11.6.1",
    "cusparse": "12.3.1",
    "cufile": "1.9.1",
    "npp": "12.2.5",
    "nvjpeg": "12.3.1",
}


@check("driver", "there is a GPU that answers, with a driver new enough for CUDA 12.4")
def driver(context: Context) -> Result:
    if context.gpu_mode == "off":
        return skipped("--gpu off")
    if context.gpu_error:
        return failed(context.gpu_error, "run nvidia-smi by hand; if it says the same, take another pod")
    if not context.gpus:
        if context.gpu_mode == "require":
            return failed("no GPU found, and --gpu require was given", "rent a pod with a GPU, or leave out --gpu require")
        return skipped("no NVIDIA GPU on this machine")
    problem = driver_problem(context.gpus)
    if problem:
        return failed(problem.split(";")[0], problem.split("; ")[1])
    names = sorted({f"{g.name}, compute capability {g.capability}" for g in context.gpus})
    return passed(f"{len(context.gpus)} x {' and '.join(names)}, driver {context.gpus[0].driver}")


@check("torch-origin", "torch comes from the layer that the lock takes it from")
def torch_origin(context: Context) -> Result:
    dists = [d for d in context.installed.dists if d.name == "torch"]
    if not dists:
        return failed("torch is not installed", REMAKE)
    wanted = context.installed.backend
    wrong = [d for d in dists if d.manager != wanted]
    if wrong:
        said = f"torch {wrong[0].version} was put there by {wrong[0].manager}, over the locked one"
        return failed(said, f"something ran `pip install torch` or a package that needs another torch; {REMAKE}")
    return passed(f"torch {dists[0].version} from {wanted}")


@check("cuda-libraries", "every CUDA library beside torch is CUDA 12.4's")
def cuda_libraries(context: Context) -> Result:
    if context.installed.backend == "conda":
        found = {r.name: r.version for r in context.installed.conda if r.channel == "nvidia"}
    else:
        found = {d.name: d.version for d in context.installed.dists if re.match(r"nvidia-.*-cu\d+$", d.name)}
    locked = {p.name for p in context.conda_lock} | {p.name for p in context.pip_lock}
    stray = [d for d in context.installed.dists if re.match(r"nvidia-.*-cu\d+$", d.name) and d.manager == "pip"]
    wrong = [f"{d.name} {d.version} (not in the lock)" for d in stray if d.name not in locked]
    if context.installed.backend == "conda":
        wrong = [f"{d.name} {d.version} (pip's CUDA library beside conda's)" for d in stray]
    for name, version in sorted(found.items()):
        part = re.sub(r"^(nvidia-|lib|cuda-)|(-cu\d+|-dev)$", "", name)
        if part in ("cudnn", "nccl", "cusparselt"):
            continue  # versioned apart from CUDA; the layers' checks compare them with the lock
        wants = CUDA_VERSIONS.get(part, CUDA)
        if part != "cccl" and version_tuple(version)[: len(version_tuple(wants))] != version_tuple(wants):
            wrong.append(f"{name} {version} (CUDA {CUDA} has {wants})")
    if wrong:
        return failed(first(wrong), REMAKE, wrong[1:])
    return passed(f"{len(found)} libraries, all of CUDA {CUDA}") if found else failed("no CUDA library found", REMAKE)


@check("blas", "conda backend: numpy computes with MKL, one older than 2024.1, and no other BLAS is beside it")
def blas(context: Context) -> Result:
    if context.installed.backend != "conda":
        return skipped("wheels bring their own BLAS: numpy OpenBLAS, torch MKL")
    mkl, libblas = context.installed.conda_record("mkl"), context.installed.conda_record("libblas")
    if not mkl or version_tuple(mkl.version) >= (2024, 1):
        said = f"mkl {mkl.version}: torch 2.5.1 needs a symbol that 2024.1 removed (iJIT_NotifyEvent)" if mkl else "no mkl"
        return failed(said, REMAKE)
    if not libblas or "mkl" not in libblas.build:
        return failed(f"libblas is {libblas.build if libblas else 'missing'}: numpy's BLAS is not MKL", REMAKE)
    link = context.installed.prefix / "lib" / "libblas.so.3"
    if link.exists() and "mkl" not in link.resolve().name:
        return failed(f"{link} is {link.resolve().name}: numpy's BLAS is not MKL", REMAKE)
    numpy = [d for d in context.installed.dists if d.name == "numpy" and d.manager == "pip"]
    if numpy:
        return failed(f"numpy {numpy[0].version} was put there by pip: its BLAS is OpenBLAS", REMAKE)
    return passed(f"MKL {mkl.version} through {libblas.build}")


@check("openmp", "one OpenMP runtime in the prefix's lib: two in one process hang or compute wrongly")
def openmp(context: Context) -> Result:
    if context.installed.backend != "conda":
        return skipped("wheels carry private copies of their OpenMP runtime")
    lib = context.installed.prefix / "lib"
    real = {p.resolve() for p in (lib / n for n in ("libgomp.so.1", "libiomp5.so", "libomp.so")) if p.exists()}
    if len(real) > 1:
        names = ", ".join(sorted(p.name for p in real))
        return failed(f"{len(real)} OpenMP runtimes: {names}", f"_openmp_mutex should link them to one; {REMAKE}")
    return passed(f"{real.pop().name if real else 'none'} alone")


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


@check("companions", "no package beside the stack breaks peft (torchao) or torch.compile (setuptools)")
def companions(context: Context) -> Result:
    wrong: List[str] = []
    torchao = context.installed.version("torchao")
    if torchao and version_tuple(torchao) < (0, 16):
        wrong.append(f"torchao {torchao}: peft raises on any older than 0.16; pip uninstall torchao")
    if not context.installed.version("setuptools"):
        wrong.append("setuptools is missing: triton imports it, so torch.compile fails; scripts/post_create.sh")
    if wrong:
        return failed(first(wrong), REMAKE, wrong[1:])
    return passed("no torchao older than 0.16; setuptools is there")


@check("vulnerabilities", "no installed package has a known vulnerability; what to do about those that have one")
def known_vulnerabilities(context: Context) -> Result:
    found = manifest.vulnerabilities(context.installed)
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
