"""The libraries beside torch: where it comes from, its CUDA, one BLAS, one OpenMP. Nothing heavy is imported."""

from __future__ import annotations

import re
from typing import List

from lockedenv.verify.checks import Context, Result, check, failed, passed, skipped, verdict
from lockedenv.verify.drift import REMAKE

# What conda's packages of NVIDIA's libraries are called.
NVIDIA = re.compile(
    r"nvidia-.*|cuda-.*|nccl|(lib)?(cu(blas|dnn|dss|fft|file|rand|solver|sparse)|np[pv]|nv(jitlink|jpeg|fatbin)).*"
)


@check("torch-origin", "torch comes from the layer that the lock takes it from")
def torch_origin(context: Context) -> Result:
    dists = [d for d in context.installed.dists if d.name == "torch"]
    if not dists:
        return failed("torch is not installed", REMAKE)
    layer = context.environment.torch_layer(context.installed.backend).value
    wrong = [d for d in dists if d.manager != layer]
    if wrong:
        said = f"torch {wrong[0].version} was put there by {wrong[0].manager}, over the locked one"
        return failed(
            said,
            f"something ran `pip install torch` or a package that needs another torch; {REMAKE}",
        )
    return passed(f"torch {dists[0].version} from {layer}")


@check("cuda-libraries", "the CUDA libraries beside torch are those of the lock, and no others")
def cuda_libraries(context: Context) -> Result:
    locked = {p.name: p.version for p in context.conda_lock}
    locked.update((p.name, p.version) for p in context.pip_lock)
    wheels = [
        (d.name, d.version)
        for d in context.installed.dists
        if d.name.startswith("nvidia-") and d.manager == "pip"
    ]
    found = [
        (r.name, r.version) for r in context.installed.conda if NVIDIA.fullmatch(r.name)
    ] + wheels
    why = (
        "pip's CUDA library beside conda's"
        if context.installed.backend == "conda"
        else "not in the lock"
    )
    wrong = [
        f"{name} {version} ({f'locked is {locked[name]}' if name in locked else why})"
        for name, version in found
        if locked.get(name) != version
    ]
    if not found and context.cuda:
        return failed("no CUDA library found", REMAKE)
    return verdict(wrong, REMAKE, f"{len(found)} libraries of CUDA {context.cuda}, as locked")


@check(
    "blas",
    "conda backend: numpy computes with MKL, where the lock asks for it, and no other BLAS is beside it",
)
def blas(context: Context) -> Result:
    if context.installed.backend != "conda":
        return skipped("wheels bring their own BLAS: numpy OpenBLAS, torch MKL")
    if context.lock_error or not context.environment.mkl:
        return skipped(context.lock_error or "the lock leaves open which BLAS numpy has")
    mkl, libblas = context.installed.conda_record("mkl"), context.installed.conda_record("libblas")
    wants = context.environment.version("conda", "mkl")
    if (
        not mkl or mkl.version != wants
    ):  # another may lack what torch needs: https://github.com/pytorch/pytorch/issues/123097
        return failed(
            f"mkl is {mkl.version if mkl else 'missing'}: torch and numpy are locked with {wants}",
            REMAKE,
        )
    if not libblas or "mkl" not in libblas.build:
        return failed(
            f"libblas is {libblas.build if libblas else 'missing'}: numpy's BLAS is not MKL", REMAKE
        )
    link = context.installed.prefix / "lib" / "libblas.so.3"
    if link.exists() and "mkl" not in link.resolve().name:
        return failed(f"{link} is {link.resolve().name}: numpy's BLAS is not MKL", REMAKE)
    numpy = [d for d in context.installed.dists if d.name == "numpy" and d.manager == "pip"]
    if numpy:
        return failed(
            f"numpy {numpy[0].version} was put there by pip: its BLAS is OpenBLAS", REMAKE
        )
    return passed(f"MKL {mkl.version} through {libblas.build}")


@check(
    "openmp", "one OpenMP runtime in the prefix's lib: two in one process hang or compute wrongly"
)
def openmp(context: Context) -> Result:
    if context.installed.backend != "conda":
        return skipped("wheels carry private copies of their OpenMP runtime")
    lib = context.installed.prefix / "lib"
    real = {
        p.resolve()
        for p in (lib / n for n in ("libgomp.so.1", "libiomp5.so", "libomp.so"))
        if p.exists()
    }
    if len(real) > 1:
        said = f"{len(real)} OpenMP runtimes: {', '.join(sorted(p.name for p in real))}"
        return failed(said, f"_openmp_mutex should link them to one; {REMAKE}")
    return passed(f"{real.pop().name if real else 'none'} alone")


# torchao older than 0.16: peft raises; 0.16 and newer: made for a torch of its time, on an older one transformers' models do
# not import (0.18.0 on the default environment's, tried).
@check(
    "companions",
    "no package beside the stack breaks peft and transformers (torchao) or torch.compile (setuptools)",
)
def companions(context: Context) -> Result:
    wrong: List[str] = []
    torchao = context.installed.version("torchao")
    if torchao and not context.lock_error and "torchao" not in context.environment.names():
        wrong.append(
            f"torchao {torchao}: it is not of the lock, and peft and transformers may fail beside it"
        )
    if not context.installed.version("setuptools"):
        wrong.append("setuptools is missing: triton imports it, so torch.compile fails")
    remedy = "python -m pip uninstall -y torchao" if torchao else "scripts/post_create.sh"
    return verdict(wrong, remedy, "no torchao; setuptools is there")
