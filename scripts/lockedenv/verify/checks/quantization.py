"""What bitsandbytes computes in 4 and 8 bits, against the same in float32."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from lockedenv.spec.gpu_target import ARCHITECTURE_VARIABLE, find_target
from lockedenv.verify.checks import (
    PASS,
    Result,
    check_each_gpu,
    failed,
    relative,
    within,
)
from lockedenv.verify.machine_code import (
    find_fat_binary_architectures,
    name_architectures,
)
from lockedenv.verify.remedies import repair_command

REINSTALL = f"reinstall bitsandbytes: {repair_command(Path(sys.prefix))}"
ANOTHER_POD = "the kernels compute wrongly here: take another pod"
# On normally distributed weights nf4 is off by 9.2 % and int8 by row by 0.7 % (root mean square);
# the bounds leave a tenth and a half more. https://arxiv.org/abs/2305.14314,
# https://arxiv.org/abs/2208.07339
NF4_BOUND = 0.102
INT8_BOUND = 0.011
BF16_BOUND = 2.0**-6
ADAM_BOUND = 0.02


@check_each_gpu(
    "bitsandbytes",
    "on each GPU: its library is for torch's CUDA and this GPU; nf4, int8, a 4-bit layer, "
    "8-bit Adam are right",
    remedy=f"{REINSTALL}; if BNB_CUDA_VERSION is set, unset it",
)
def bitsandbytes(device: str) -> Result:
    import bitsandbytes as bnb
    import torch

    cuda = f"cuda{str(torch.version.cuda).replace('.', '')}"
    folder = Path(bnb.__file__).parent
    library = find_loaded_library()
    wanted = cuda if device == "cuda" else "cpu"
    # It may lack the library of this CUDA, and then takes the nearest of the same major version.
    accepted = wanted
    if not (folder / f"libbitsandbytes_{wanted}.so").exists():
        accepted = wanted[:6]
    if accepted not in library:
        return failed(
            f"loaded {library}, torch needs libbitsandbytes_{wanted}.so",
            "unset BNB_CUDA_VERSION",
        )
    gpu_library = folder / library
    if device == "cpu":
        gpu_library = folder / f"libbitsandbytes_{cuda}.so"
    lacking = find_lacking_code(gpu_library, device)
    if lacking:
        return failed(lacking, REINSTALL)
    torch.manual_seed(0)
    errors = {}
    errors.update(measure_quantization(device))
    errors.update(measure_layer(device))
    errors.update(measure_adam(device))
    result = within(errors, library, ANOTHER_POD)
    if result.verdict == PASS and device == "cpu" and gpu_library.exists():
        target = find_target(os.environ).name
        result.summary += (
            f"; {gpu_library.name} holds code for {target}, which was not run"
        )
    return result


def find_loaded_library() -> str:
    """The name of the library that bitsandbytes has loaded."""
    from bitsandbytes import cextension

    loaded = getattr(cextension.lib, "_lib", None)
    return str(getattr(loaded, "_name", "none")).rsplit("/", 1)[-1]


def find_lacking_code(library: Path, device: str) -> str:
    """Which GPU a library has no machine code for; empty if it has, or if it is not there."""
    import torch

    if not library.exists():
        return ""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        oldest_that_fits = major * 10
        newest_that_fits = major * 10 + minor
    else:
        try:
            target = find_target(os.environ)
        except ValueError as error:
            return f"{ARCHITECTURE_VARIABLE}: {error}"
        oldest_that_fits = target.major * 10
        newest_that_fits = target.architecture
    architectures = sorted(find_fat_binary_architectures(library))
    for architecture in architectures:
        if oldest_that_fits <= architecture <= newest_that_fits:
            # Code for sm_80 runs on 8.6: the same major version, and not newer.
            return ""
    names = " ".join(name_architectures(architectures)) or "no GPU"
    return (
        f"{library.name} has no code for sm_{newest_that_fits}; it has code for {names}"
    )


def measure_quantization(device: str) -> dict[str, tuple[float, float]]:
    """(error, bound) of nf4 and int8, there and back."""
    import bitsandbytes.functional as functional
    import torch

    x = torch.randn(256, 256, device=device)
    codes, state = functional.quantize_4bit(x, quant_type="nf4")
    four = functional.dequantize_4bit(codes, state)
    rows, scale, _ = functional.int8_vectorwise_quant(x.half())
    eight = functional.int8_vectorwise_dequant(rows, scale)
    return {
        "nf4": (relative(four, x), NF4_BOUND),
        "int8": (relative(eight, x), INT8_BOUND),
    }


def measure_layer(device: str) -> dict[str, tuple[float, float]]:
    """(error, bound) of the 4-bit layer and its gradient.

    They are compared with the same layer in float32, with the weights that its codes stand for.
    Raises RuntimeError if it does not compute in bfloat16.
    """
    import bitsandbytes as bnb
    import bitsandbytes.functional as functional
    import torch

    layer = bnb.nn.Linear4bit(
        128, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    ).to(device)
    codes = layer.weight
    weight = (
        functional.dequantize_4bit(codes.data, codes.quant_state)
        .float()
        .reshape(64, 128)
    )
    inputs = torch.randn(
        16, 128, device=device, dtype=torch.bfloat16, requires_grad=True
    )
    out = layer(inputs)
    if out.dtype != torch.bfloat16:
        raise RuntimeError(f"the 4-bit layer computed in {out.dtype}, not in bfloat16")
    out.float().sum().backward()
    gradient: Any = inputs.grad
    exact = inputs.detach().float() @ weight.T
    exact_gradient = weight.sum(0).expand(16, -1)
    return {
        "4-bit layer": (relative(out.float(), exact), BF16_BOUND),
        "its gradient": (relative(gradient.float(), exact_gradient), BF16_BOUND),
    }


def measure_adam(device: str) -> dict[str, tuple[float, float]]:
    """(error, bound) of 8-bit Adam's step against torch's. Raises RuntimeError if not 8-bit."""
    import bitsandbytes as bnb
    import torch

    start = torch.randn(8192, device=device)
    gradient = torch.randn(8192, device=device)
    eight_bit_parameter = torch.nn.Parameter(start.clone())
    eight_bit = bnb.optim.Adam8bit([eight_bit_parameter], lr=1e-2, min_8bit_size=0)
    eight_bit_parameter.grad = gradient.clone()
    eight_bit.step()
    if eight_bit.state[eight_bit_parameter]["state1"].dtype != torch.uint8:
        raise RuntimeError("Adam8bit keeps its state in full precision")
    parameter = torch.nn.Parameter(start.clone())
    plain = torch.optim.Adam([parameter], lr=1e-2)
    parameter.grad = gradient.clone()
    plain.step()
    error = relative(eight_bit_parameter.detach() - start, parameter.detach() - start)
    return {"8-bit Adam step": (error, ADAM_BOUND)}
