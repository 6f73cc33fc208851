"""torch: the build, and its arithmetic against higher precision."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lockedenv.prefix.place import find_backend
from lockedenv.spec import environment
from lockedenv.spec.locks import canonical
from lockedenv.verify.checks import (
    PASS,
    Result,
    check_each_gpu,
    child_check,
    damaged,
    failed,
    passed,
    relative,
    verdict,
    within,
)
from lockedenv.verify.remedies import RemedyKind, repair_command

MODULES = (
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "peft",
    "hf_transfer",
    "hf_xet",
    "datasets",
    "numpy",
    "scipy",
    "statsmodels.api",
    "tqdm",
    "pytest",
    "einops",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
)
ANOTHER_POD = "the GPU computes wrongly: take another pod"
GIBIBYTE = 2**30
KEPT_AT_MOST = 2**26  # bytes that torch's allocator may keep of what was given back
# bf16 keeps 8 bits: its unit roundoff is 2^-9, and the bound is twice that. fp32 keeps 24: 2^-24
# times the 1024 summands. Sums are in fp32.
BF16_BOUND = 2.0**-8
FP32_BOUND = 2.0**-14
SUM_BOUND = 1e-5


@child_check(
    "imports",
    "every package that the specification names can be imported, all in one process",
)
def imports(device: str) -> Result:
    locked = environment.find_compared(Path(sys.prefix)).names()
    imported = []
    wrong = []
    for module in MODULES:
        package = module.split(".")[0]
        if canonical(package) not in locked:
            continue
        imported.append(package)
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: B902 (any failure to import is the finding)
            wrong.append(f"import {module}: {type(error).__name__}: {error}")
    return verdict(
        wrong,
        f"install them again: {repair_command(Path(sys.prefix))}",
        f"{len(imported)} modules: {', '.join(imported)}",
    )


@child_check(
    "torch-build",
    "torch is built for the locked CUDA, has code for this GPU, and finds the GPU",
    speaks=True,
)
def torch_build(device: str) -> Result:
    import torch

    backend = find_backend(Path(sys.prefix))
    built = torch.version.cuda or ""
    locked = environment.find_compared(Path(sys.prefix)).cuda(backend)
    name = f"torch {torch.__version__}"
    if built != locked:
        text = f"{name} is built for CUDA {built or 'none'}, not {locked or 'none'}"
        return damaged(Path(sys.prefix), RemedyKind.REBUILD, [text])
    if device == "cpu":
        return passed(f"{name}, CUDA {built}; no GPU to match its kernels with")
    if not torch.cuda.is_available():
        return failed(
            "torch finds no usable GPU (torch.cuda.is_available() is False)",
            "restart the pod, or take another",
        )
    architectures = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if not runs_on(architectures, major, minor):
            gpu = f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"
            return failed(
                f"torch has no code for {gpu}; it has {' '.join(architectures)}",
                "take an H100",
            )
    return passed(f"{name}, CUDA {built}, kernels for {' '.join(architectures)}")


def runs_on(architectures: Sequence[str], major: int, minor: int) -> bool:
    """Whether code for one of the architectures runs on a compute capability.

    sm_80 runs within its major version, compute_90 on any later GPU
    (https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capability).
    """
    for architecture in architectures:
        match = re.fullmatch(r"(\w+)_(\d+)(\d)[af]?", architecture)
        if not match:
            continue
        built_for = (int(match[2]), int(match[3]))
        if match[1] != "compute" and built_for[0] != major:
            continue
        if built_for <= (major, minor):
            return True
    return False


@check_each_gpu(
    "torch",
    "on each GPU matrix products (bf16, fp32) and a sum agree with float64, "
    "and memory is given back",
)
def torch_arithmetic(device: str) -> Result:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 1024, generator=generator, dtype=torch.float64)
    b = torch.randn(512, 1024, generator=generator, dtype=torch.float64)
    errors = {}
    for dtype, bound in ((torch.bfloat16, BF16_BOUND), (torch.float32, FP32_BOUND)):
        name = str(dtype).removeprefix("torch.")
        low_a = a.to(dtype)
        low_b = b.to(dtype)
        product = low_a.to(device) @ low_b.to(device).T
        if product.dtype != dtype:
            return failed(
                f"{device}: the {name} product is in {product.dtype}",
                "something replaces torch's types: unset TORCH_* variables, and see --only startup",
            )
        exact = low_a.double() @ low_b.double().T
        errors[f"{name} product"] = (relative(product.double().cpu(), exact), bound)
    values = torch.rand(10_000_000, generator=generator)
    total = values.to(device).sum().double().item()
    errors["sum"] = (abs(total / values.double().sum().item() - 1), SUM_BOUND)
    result = within(errors, device, ANOTHER_POD)
    if device == "cuda" and result.verdict == PASS:
        return check_memory(result)
    return result


def check_memory(result: Result) -> Result:
    """`result`, or a failure if a gibibyte of the GPU is not taken, or not given back."""
    import torch

    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()  # this process's: other checks run beside it
    block = torch.ones(GIBIBYTE, dtype=torch.uint8, device="cuda")
    taken = 0
    if int(block[-1]) == 1:
        taken = torch.cuda.memory_reserved() - before
    del block
    torch.cuda.empty_cache()
    kept = torch.cuda.memory_reserved() - before
    if taken < GIBIBYTE or kept > KEPT_AT_MOST:
        return failed(
            f"of 1 GiB taken, {kept} bytes were not given back",
            "see nvidia-smi for who holds it",
        )
    result.summary += "; 1 GiB taken and given back"
    return result


# Such an error ends CUDA for its whole process, on every GPU (CUDA's documentation of
# cudaErrorAssert).
@child_check(
    "async-error",
    "an error inside a kernel of the first GPU is raised in Python, not lost",
    gpu=True,
)
def async_error(device: str) -> Result:
    import torch

    values = torch.zeros(4, device=device)  # a GPU that is dead raises here
    outside = torch.tensor([10], device=device)
    try:
        values[outside].sum().item()
    except RuntimeError as error:
        return passed(
            f"raised as {type(error).__name__}: {str(error).splitlines()[0][:80]}"
        )
    return failed(
        "an out-of-range index in a kernel raised nothing",
        "the driver loses errors: take another pod",
    )
