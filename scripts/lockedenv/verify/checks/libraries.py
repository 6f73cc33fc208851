"""The libraries beside torch: where it comes from, its CUDA, one BLAS, one OpenMP. Nothing heavy is imported."""

from __future__ import annotations

import re
from typing import List

from lockedenv.machine import version_tuple
from lockedenv.verify.checks import Context, Result, check, failed, passed, skipped, verdict
from lockedenv.verify.drift import REMAKE

CUDA = "12.4"
# The CUDA 12.4 libraries' own versions where they are not numbered 12.4.
# https://docs.nvidia.com/cuda/archive/12.4.1/cuda-toolkit-release-notes/#cuda-toolkit-major-component-versions
OWN = "cufft 11.2.1 curand 10.3.5 cusolver 11.6.1 cusparse 12.3.1 cufile 1.9.1 npp 12.2.5 nvjpeg 12.3.1".split()
CUDA_VERSIONS = dict(zip(OWN[::2], OWN[1::2]))


@check("torch-origin", "torch comes from the layer that the lock takes it from")
def torch_origin(context: Context) -> Result:
    dists = [d for d in context.installed.dists if d.name == "torch"]
    if not dists:
        return failed("torch is not installed", REMAKE)
    wrong = [d for d in dists if d.manager != context.installed.backend]
    if wrong:
        said = f"torch {wrong[0].version} was put there by {wrong[0].manager}, over the locked one"
        return failed(said, f"something ran `pip install torch` or a package that needs another torch; {REMAKE}")
    return passed(f"torch {dists[0].version} from {context.installed.backend}")


@check("cuda-libraries", "every CUDA library beside torch is CUDA 12.4's")
def cuda_libraries(context: Context) -> Result:
    conda = context.installed.backend == "conda"
    wheels = [d for d in context.installed.dists if re.match(r"nvidia-.*-cu\d+$", d.name)]
    archives = [r for r in context.installed.conda if r.channel == "nvidia"]
    found = {p.name: p.version for p in archives} if conda else {p.name: p.version for p in wheels}
    locked = {p.name for p in context.pip_lock if not conda}
    why = "pip's CUDA library beside conda's" if conda else "not in the lock"
    wrong = [f"{d.name} {d.version} ({why})" for d in wheels if d.manager == "pip" and d.name not in locked]
    for name, version in sorted(found.items()):
        part = re.sub(r"^(nvidia-|lib|cuda-)|(-cu\d+|-dev)$", "", name)
        wants = CUDA_VERSIONS.get(part, CUDA)
        apart = part in ("cccl", "cudnn", "cusparselt", "nccl")  # versioned apart from CUDA; the lock says which
        if not apart and version_tuple(version)[: len(version_tuple(wants))] != version_tuple(wants):
            wrong.append(f"{name} {version} (CUDA {CUDA} has {wants})")
    if not found and not wrong:
        return failed("no CUDA library found", REMAKE)
    return verdict(wrong, REMAKE, f"{len(found)} libraries, all of CUDA {CUDA}")


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
        said = f"{len(real)} OpenMP runtimes: {', '.join(sorted(p.name for p in real))}"
        return failed(said, f"_openmp_mutex should link them to one; {REMAKE}")
    return passed(f"{real.pop().name if real else 'none'} alone")


# torchao older than 0.16: peft raises; newer: made for a newer torch, and transformers' models do not import (0.18.0, tried).
@check("companions", "no package beside the stack breaks peft and transformers (torchao) or torch.compile (setuptools)")
def companions(context: Context) -> Result:
    wrong: List[str] = []
    torchao = context.installed.version("torchao")
    if torchao:
        wrong.append(f"torchao {torchao}: none works with torch 2.5.1, and peft and transformers fail beside it")
    if not context.installed.version("setuptools"):
        wrong.append("setuptools is missing: triton imports it, so torch.compile fails")
    remedy = "python -m pip uninstall -y torchao" if torchao else "scripts/post_create.sh"
    return verdict(wrong, remedy, "no torchao; setuptools is there")
