"""Kernels beside torch's own against float32: attention, and what bitsandbytes computes in 4 and 8 bits."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, List, Tuple

from lockedenv.host.machine import GIB
from lockedenv.verify.checks import Result, check_each_gpu, failed, relative, within

# Attention is held to flash-attn's own criterion: 2.8 compares outputs with twice, gradients with three times, the error of
# plain attention in the same precision: tests/test_flash_attn.py, test_flash_attn_output.
OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
# What cuDNN attention, which torch uses on demand only, raises where it finds no kernel, above all for want of an NVRTC
# (https://github.com/pytorch/pytorch/issues/138340, https://github.com/pytorch/pytorch/pull/145582).
NO_PLAN = (
    "No valid engine configs",
    "No execution plans support the graph",
    "No available kernel",
    "cuDNN Frontend error",
)


def plain(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """softmax(q k^T / sqrt(d)) v on (..., length, dim), in the tensors' own precision."""
    import torch

    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(
            torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf")
        )
    return scores.softmax(-1) @ v


def with_gradients(function: Any, inputs: List[Any], weight: Any) -> List[Any]:
    """The output and the gradients for each input of sum(output * weight)."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    (out * weight.to(out.dtype)).sum().backward()
    return [out.detach(), *(x.grad for x in inputs)]


def worst(got: List[Any], low: List[Any], exact: List[Any]) -> Tuple[float, float]:
    """(error, bound) of the one of output, dq, dk, dv that comes nearest its bound."""
    cases = []
    for factor, a, b, reference in zip((OUTPUT_FACTOR, *[GRADIENT_FACTOR] * 3), got, low, exact):
        error, plain_error = ((x.float() - reference).abs().max().item() for x in (a, b))
        cases.append((error, factor * plain_error + 1e-5))  # plain attention may happen to be exact
    return max(cases, key=lambda case: case[0] / case[1] if case[0] == case[0] else float("inf"))


def compare(
    kernel: Any, reference: Any, shape: Tuple[int, ...], dtype: Any, device: str
) -> Tuple[float, float]:
    """A kernel of q, k, v on random input of one shape against the reference in float32, as `worst` gives it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4))
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = with_gradients(reference, [x.float() for x in (q, k, v)], weight.float())
    low = with_gradients(reference, [q, k, v], weight)
    return worst(with_gradients(kernel, [q, k, v], weight), low, exact)


@check_each_gpu(
    "sdpa",
    "on each GPU each backend of scaled_dot_product_attention agrees with float32, with gradients",
)
def sdpa(device: str) -> Result:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = "MATH FLASH_ATTENTION" + " EFFICIENT_ATTENTION CUDNN_ATTENTION" * (device == "cuda")
    cases, absent = {}, ""
    for backend, causal in product(backends.split(), (False, True)):

        def kernel(q: Any, k: Any, v: Any) -> Any:
            with sdpa_kernel([getattr(SDPBackend, backend)]):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

        try:
            name = f"{backend.lower()}{' causal' * causal}"
            cases[name] = compare(
                kernel, partial(plain, causal=causal), (2, 4, 256, 64), torch.bfloat16, device
            )
        except RuntimeError as error:
            if backend != "CUDNN_ATTENTION" or not any(words in str(error) for words in NO_PLAN):
                raise
            absent = f"; not available, and used only on demand: {name} ({' '.join(str(error).split())[:120]})"
    result = within(
        cases, device, "use another backend (torch.nn.attention.sdpa_kernel), and take another pod"
    )
    result.summary += absent
    return result


@check_each_gpu(
    "flash-attn",
    "on each GPU flash-attn is right, forward and backward, head dims 64 and 128, bf16 and fp16",
    gpu=True,
    remedy="build it for this GPU: scripts/post_create.sh",
    memory=4 * GIB,
)
def flash_attn(device: str) -> Result:
    import torch
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    cases = {}
    for dtype in (torch.bfloat16, torch.float16):
        for dim, causal in product((64, 128), (False, True)):
            kernel, reference = partial(heads_last, flash_attn_func, causal), partial(
                plain, causal=causal
            )
            name = f"{str(dtype)[6:]} d{dim}{' causal' * causal}"
            cases[name] = compare(kernel, reference, (2, 4, 512, dim), dtype, device)
        cases[f"{str(dtype)[6:]} variable length"] = variable_length(
            flash_attn_varlen_func, dtype, device
        )
    return within(
        cases,
        device,
        "the build is wrong for this GPU: delete its wheel from the cache, scripts/post_create.sh",
    )


def heads_last(function: Any, causal: bool, *tensors: Any) -> Any:
    """flash-attn wants (batch, length, heads, dim)."""
    return function(*(x.transpose(1, 2) for x in tensors), causal=causal).transpose(1, 2)


def variable_length(function: Any, dtype: Any, device: str) -> Tuple[float, float]:
    """Sequences of three lengths packed into one, each against its own float32 reference; causal."""
    import torch

    lengths = [17, 256, 99]
    ends = torch.tensor(
        [0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device
    )

    def by_sequence(q: Any, k: Any, v: Any) -> Any:
        parts = zip(*(x.split(lengths) for x in (q, k, v)))
        return torch.cat([plain(*(x.transpose(0, 1) for x in part), True).transpose(0, 1) for part in parts])  # type: ignore

    def packed(q: Any, k: Any, v: Any) -> Any:
        return function(q, k, v, ends, ends, max(lengths), max(lengths), causal=True)

    return compare(packed, by_sequence, (sum(lengths), 4, 64), dtype, device)


@check_each_gpu(
    "bitsandbytes",
    "on each GPU: its library is for torch's CUDA; nf4, int8, a 4-bit layer, 8-bit Adam are right",
    remedy="reinstall it: scripts/post_create.sh; if BNB_CUDA_VERSION is set, unset it",
)
def bitsandbytes(device: str) -> Result:
    import bitsandbytes as bnb
    import bitsandbytes.functional as functional
    import torch
    from bitsandbytes import cextension

    library = getattr(getattr(cextension.lib, "_lib", None), "_name", "none").rsplit("/", 1)[-1]
    wanted = f"cuda{str(torch.version.cuda).replace('.', '')}" if device == "cuda" else "cpu"
    # It may lack the library of this CUDA, and then takes the nearest of the same major version.
    there = Path(bnb.__file__).with_name(f"libbitsandbytes_{wanted}.so").exists()
    if (wanted if there else wanted[:6]) not in library:
        return failed(
            f"loaded {library}, torch needs libbitsandbytes_{wanted}.so", "unset BNB_CUDA_VERSION"
        )
    torch.manual_seed(0)
    errors = {}
    # On normally distributed weights nf4 is off by 9.2 % and int8 by row by 0.7 % (root mean square); the bounds leave
    # a tenth and a half more. https://arxiv.org/abs/2305.14314, https://arxiv.org/abs/2208.07339
    x = torch.randn(256, 256, device=device)
    four = functional.dequantize_4bit(*functional.quantize_4bit(x, quant_type="nf4"))
    errors["nf4"] = (relative(four, x), 0.102)
    rows, scale, _ = functional.int8_vectorwise_quant(x.half())
    errors["int8"] = (relative(functional.int8_vectorwise_dequant(rows, scale), x), 0.011)
    # The 4-bit layer against the same layer with the weights that its codes stand for, in float32.
    layer = bnb.nn.Linear4bit(
        128, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    ).to(device)
    weight = (
        functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        .float()
        .reshape(64, 128)
    )
    inputs = torch.randn(16, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
    out = layer(inputs)
    out.float().sum().backward()
    assert inputs.grad is not None
    errors["4-bit layer"] = (relative(out.float(), inputs.detach().float() @ weight.T), 2.0**-6)
    errors["its gradient"] = (relative(inputs.grad.float(), weight.sum(0).expand(16, -1)), 2.0**-6)
    start, gradient = torch.randn(8192, device=device), torch.randn(8192, device=device)
    ends = []
    for optimizer, options in ((bnb.optim.Adam8bit, {"min_8bit_size": 0}), (torch.optim.Adam, {})):
        parameter = torch.nn.Parameter(start.clone())
        steps = optimizer([parameter], lr=1e-2, **options)
        parameter.grad = gradient.clone()
        steps.step()
        ends.append(parameter.detach() - start)
        if options and steps.state[parameter]["state1"].dtype != torch.uint8:
            return failed(
                "Adam8bit keeps its state in full precision",
                "reinstall bitsandbytes: scripts/post_create.sh",
            )
    errors["8-bit Adam step"] = (relative(ends[0], ends[1]), 0.02)
    return within(errors, library, "the kernels compute wrongly here: take another pod")
