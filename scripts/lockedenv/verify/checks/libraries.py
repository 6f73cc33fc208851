"""The libraries beside torch: where it comes from, its CUDA, one BLAS, one OpenMP.

Nothing heavy is imported.
"""

from __future__ import annotations

import re

from lockedenv.spec.layers import BackendName, Layer
from lockedenv.verify.checks import (
    Context,
    Result,
    check,
    damaged,
    passed,
    skipped,
    verdict,
)
from lockedenv.verify.remedies import RemedyKind, pip_uninstall_command, repair_command

# What conda's packages of NVIDIA's libraries are called.
NVIDIA = re.compile(
    r"nvidia-.*|cuda-.*|nccl"
    r"|(lib)?(cu(blas|dnn|dss|fft|file|rand|solver|sparse)|np[pv]|nv(jitlink|jpeg|fatbin)).*"
)
OPENMP = ("libgomp.so.1", "libiomp5.so", "libomp.so")


def _action(context: Context) -> RemedyKind:
    """On the PyPI backend all libraries are wheels, which are put right one by one."""
    if context.installed.backend.has_conda_layer:
        return RemedyKind.REBUILD
    return RemedyKind.REPAIR


def _broken(context: Context, *lines: str) -> Result:
    return damaged(context.installed.prefix, _action(context), lines)


@check(
    "torch-origin",
    "torch comes from the layer that the lock takes it from",
    speaks=True,
    yields_to="torch-build",
)
def torch_origin(context: Context) -> Result:
    dists = [dist for dist in context.installed.dists if dist.name == "torch"]
    if not dists:
        return _broken(context, "torch is not installed")
    wanted = context.environment.torch_layer(context.installed.backend).value
    for dist in dists:
        if dist.manager != wanted:
            text = f"torch {dist.version} was put there by {dist.manager}, over the locked one"
            return _broken(
                context,
                text,
                "`pip install torch` does that, and packages that ask for another",
            )
    return passed(f"torch {dists[0].version} from {wanted}")


@check(
    "cuda-libraries",
    "the CUDA libraries beside torch are those of the lock, and no others",
    speaks=True,
)
def cuda_libraries(context: Context) -> Result:
    locked = {}
    for conda_package in context.conda_lock:
        locked[conda_package.name] = conda_package.version
    for wheel in context.pip_lock:
        locked[wheel.name] = wheel.version
    found = []
    for record in context.installed.conda:
        if NVIDIA.fullmatch(record.name):
            found.append((record.name, record.version))
    for dist in context.installed.dists:
        if dist.name.startswith("nvidia-") and dist.manager == Layer.PIP:
            found.append((dist.name, dist.version))
    if not found and context.cuda:
        return _broken(context, "no CUDA library found")
    wrong = []
    added = []
    for name, version in found:
        if name not in locked:
            added.append(name)
            wrong.append(f"{name} {version} ({_why_not_locked(context)})")
        elif locked[name] != version:
            wrong.append(f"{name} {version} (locked is {locked[name]})")
    if (
        wrong
        and len(added) == len(wrong)
        and not context.installed.backend.has_conda_layer
    ):
        return verdict(
            wrong, pip_uninstall_command(context.installed.prefix, added), ""
        )
    if wrong:
        return _broken(context, *wrong)
    return passed(f"{len(found)} libraries of CUDA {context.cuda}, as locked")


def _why_not_locked(context: Context) -> str:
    if context.installed.backend.has_conda_layer:
        return "pip's CUDA library beside conda's"
    return "not in the lock"


@check(
    "blas",
    "conda backend: numpy computes with MKL, where the lock asks for it, "
    "and no other BLAS is beside it",
)
def blas(context: Context) -> Result:
    installed = context.installed
    if not installed.backend.has_conda_layer:
        return skipped("wheels bring their own BLAS: numpy OpenBLAS, torch MKL")
    if context.lock_error:
        return skipped(context.lock_error)
    if not context.environment.mkl:
        return skipped("the lock leaves open which BLAS numpy has")
    # Another MKL may lack what torch needs: https://github.com/pytorch/pytorch/issues/123097
    mkl = installed.conda_record("mkl")
    wanted = context.environment.version(BackendName.CONDA, "mkl")
    if mkl is None:
        return _broken(
            context, f"mkl is missing: torch and numpy are locked with {wanted}"
        )
    if mkl.version != wanted:
        text = f"mkl is {mkl.version}: torch and numpy are locked with {wanted}"
        return _broken(context, text)
    libblas = installed.conda_record("libblas")
    if libblas is None:
        return _broken(context, "libblas is missing: numpy's BLAS is not MKL")
    if "mkl" not in libblas.build:
        return _broken(context, f"libblas is {libblas.build}: numpy's BLAS is not MKL")
    link = installed.prefix / "lib" / "libblas.so.3"
    if link.exists() and "mkl" not in link.resolve().name:
        return _broken(
            context, f"{link} is {link.resolve().name}: numpy's BLAS is not MKL"
        )
    for dist in installed.dists:
        if dist.name == "numpy" and dist.manager == Layer.PIP:
            text = f"numpy {dist.version} was put there by pip: its BLAS is OpenBLAS"
            return _broken(context, text)
    return passed(f"MKL {mkl.version} through {libblas.build}")


@check(
    "openmp",
    "one OpenMP runtime in the prefix's lib: two in one process hang or compute wrongly",
)
def openmp(context: Context) -> Result:
    if not context.installed.backend.has_conda_layer:
        return skipped("wheels carry private copies of their OpenMP runtime")
    runtimes = set()
    for name in OPENMP:
        library = context.installed.prefix / "lib" / name
        if library.exists():
            runtimes.add(library.resolve().name)
    if len(runtimes) > 1:
        text = f"{len(runtimes)} OpenMP runtimes: {', '.join(sorted(runtimes))}"
        return _broken(context, text, "_openmp_mutex links them to one")
    if runtimes:
        return passed(f"{runtimes.pop()} alone")
    return passed("none")


# torchao older than 0.16: peft raises. 0.16 and newer are made for a torch of their time: on an
# older one transformers' models do not import (0.18.0 on the default environment's, tried).
@check(
    "companions",
    "no package beside the stack breaks peft and transformers (torchao) "
    "or torch.compile (setuptools)",
)
def companions(context: Context) -> Result:
    prefix = context.installed.prefix
    torchao = context.installed.version("torchao")
    wrong = []
    remedies = []
    if (
        torchao
        and not context.lock_error
        and "torchao" not in context.environment.names()
    ):
        wrong.append(
            f"torchao {torchao}: it is not of the lock, "
            "and peft and transformers may fail beside it"
        )
        remedies.append(pip_uninstall_command(prefix, ["torchao"]))
    if not context.installed.version("setuptools"):
        wrong.append("setuptools is missing: triton imports it, so torch.compile fails")
        remedies.append(repair_command(prefix))
    return verdict(wrong, " && ".join(remedies), "no torchao; setuptools is there")
