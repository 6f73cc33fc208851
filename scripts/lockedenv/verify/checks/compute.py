"""torch: the build, and its arithmetic against higher precision."""

from __future__ import annotations

import importlib
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

from lockedenv.spec import environment
from lockedenv.spec.locks import canonical
from lockedenv.verify.checks import (
    FULL,
    PASS,
    Result,
    check,
    check_each_gpu,
    failed,
    passed,
    relative,
    skipped,
    verdict,
    within,
)
from lockedenv.verify.checks.surroundings import compile_problem
from lockedenv.verify.drift import REMAKE

MODULES = """torch transformers accelerate bitsandbytes peft hf_transfer hf_xet datasets numpy scipy statsmodels.api tqdm pytest
einops tokenizers safetensors huggingface_hub"""


@check(
    "imports",
    "every package that the specification names can be imported, all in one process",
    FULL,
    child=True,
)
def imports(device: str) -> Result:
    locked, wrong = environment.of(Path(sys.prefix)).names(), []
    names = [name for name in MODULES.split() if canonical(name.split(".")[0]) in locked]
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: B902 (any failure to import is the finding)
            wrong.append(f"import {name}: {type(error).__name__}: {error}")
    good = f"{len(names)} modules: {', '.join(n.split('.')[0] for n in names)}"
    return verdict(
        wrong, "reinstall the packages named: scripts/setup_runpod_environment.sh --force", good
    )


@check(
    "torch-build",
    "torch is built for the locked CUDA, has code for this GPU, and finds the GPU",
    FULL,
    child=True,
)
def torch_build(device: str) -> Result:
    import torch

    built, here = torch.version.cuda or "", environment.of(Path(sys.prefix))
    wants = here.cuda("conda" if (Path(sys.prefix) / "conda-meta").is_dir() else "pip")
    if built != wants:
        return failed(
            f"torch {torch.__version__} is built for CUDA {built or 'none'}, not {wants or 'none'}",
            REMAKE,
        )
    if device == "cpu":
        return passed(f"torch {torch.__version__}, CUDA {built}; no GPU to match its kernels with")
    if not torch.cuda.is_available():
        return failed(
            "torch finds no usable GPU (torch.cuda.is_available() is False)",
            "restart the pod, or take another",
        )
    archs = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        name, (major, minor) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(
            index
        )
        if not runs_on(archs, major, minor):
            return failed(
                f"torch has no code for {name} (sm_{major}{minor}); it has {' '.join(archs)}",
                "take an H100",
            )
    return passed(f"torch {torch.__version__}, CUDA {built}, kernels for {' '.join(archs)}")


def runs_on(archs: "list[str]", major: int, minor: int) -> bool:
    """Whether code for one of `archs` runs on a compute capability: sm_80 within its major version, compute_90 on any later."""
    # https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capability
    known = [
        (kind, int(a), int(b)) for kind, a, b in re.findall(r"(\w+)_(\d+)(\d)", " ".join(archs))
    ]
    return any(
        (a, b) <= (major, minor) and (kind == "compute" or a == major) for kind, a, b in known
    )


@check_each_gpu(
    "torch",
    "on each GPU matrix products (bf16, fp32) and a sum agree with float64, and memory is given back",
)
def torch_arithmetic(device: str) -> Result:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 1024, generator=generator, dtype=torch.float64) for _ in range(2))
    errors = {}
    # bf16 keeps 8 bits (unit roundoff 2^-9: the bound is twice that), fp32 24 (2^-24 * 1024 summands); sums are in fp32.
    for dtype, bound in ((torch.bfloat16, 2.0**-8), (torch.float32, 2.0**-14)):
        low_a, low_b = a.to(dtype), b.to(dtype)
        got = (low_a.to(device) @ low_b.to(device).T).double().cpu()
        errors[f"{str(dtype)[6:]} product"] = (
            relative(got, low_a.double() @ low_b.double().T),
            bound,
        )
    values = torch.rand(10_000_000, generator=generator)
    errors["sum"] = (
        abs(values.to(device).sum().double().item() / values.double().sum().item() - 1),
        1e-5,
    )
    result = within(errors, device, "the GPU computes wrongly: take another pod")
    if device == "cuda" and result.verdict == PASS:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()  # this process's: other checks run beside it
        block = torch.ones(2**30, dtype=torch.uint8, device=device)
        taken = (torch.cuda.memory_reserved() - before) * int(block[-1])
        del block
        torch.cuda.empty_cache()
        kept = torch.cuda.memory_reserved() - before
        if taken < 2**30 or kept > 2**26:
            return failed(
                f"of 1 GiB taken, {kept} bytes were not given back",
                "see nvidia-smi for who holds it",
            )
        result.summary += "; 1 GiB taken and given back"
    return result


# Such an error ends CUDA for its whole process, on every GPU (CUDA's documentation of cudaErrorAssert).
@check(
    "async-error",
    "an error inside a kernel of the first GPU is raised in Python, not lost",
    FULL,
    child=True,
    gpu=True,
)
def async_error(device: str) -> Result:
    import torch

    values, outside = torch.zeros(4, device=device), torch.tensor(
        [10], device=device
    )  # a GPU that is dead raises here
    try:
        values[outside].sum().item()
    except RuntimeError as error:
        return passed(f"raised as {type(error).__name__}: {str(error).splitlines()[0][:80]}")
    return failed(
        "an out-of-range index in a kernel raised nothing",
        "the driver loses errors: take another pod",
    )


@check(
    "torch-compile",
    "torch.compile of a small model gives eager's values, forward and backward",
    FULL,
    child=True,
    timeout=240,
    remedy="torch.compile needs g++, the Python headers and setuptools; the conda backend has them",
)
def torch_compile(device: str) -> Result:
    import torch
    from torch._inductor import config, cpu_vec_isa

    header = Path(sysconfig.get_paths()["include"], "Python.h")
    lacking = compile_problem(Path(sys.prefix), "", os.environ) or (
        "" if header.exists() else f"there is no {header}"
    )
    if lacking:
        return skipped(f"torch.compile will not work here: {lacking}")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 8)
    ).to(device)
    x = torch.randn(32, 64, device=device)
    outputs = []

    def trained(run: Any) -> Any:
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        return torch.cat([y.detach().flatten(), model[0].weight.grad.flatten()]).double()

    for run in (model, torch.compile(model)):
        try:  # the kernels prove the CPU's vector instructions: inductor's probes of each kind import torch in new processes
            with config.patch("cpp.vec_isa_ok", True):
                outputs.append(trained(run))
        except Exception:  # a compiler that lacks them: inductor goes without, once it has probed
            torch._dynamo.reset()
            kinds = [cpu_vec_isa.VecISA, *cpu_vec_isa.VecISA.__subclasses__()]
            for known in (cpu_vec_isa.valid_vec_isa_list, *(kind.__bool__ for kind in kinds)):
                getattr(known, "cache_clear", bool)()
            outputs.append(trained(run))
    # TF32 may be used by one of them; a wrong kernel is off by its whole value.
    error = relative(outputs[1], outputs[0])
    return within(
        {"difference from eager": (error, 1e-3)}, device, "clear TORCHINDUCTOR_CACHE_DIR; try again"
    )
