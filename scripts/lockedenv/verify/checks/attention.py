"""Attention against float32: the reference, the comparison with it, and torch's own kernels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterable

from lockedenv.verify.checks import Result, check_each_gpu, failed, within
from lockedenv.verify.remedies import verify_command

# Attention is held to flash-attn's own criterion: 2.8 compares outputs with twice, gradients with
# three times, the error of plain attention in the same precision: tests/test_flash_attn.py,
# test_flash_attn_output.
OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
# What cuDNN attention, which torch uses on demand only, raises where it finds no kernel, above all
# for want of an NVRTC (https://github.com/pytorch/pytorch/issues/138340,
# https://github.com/pytorch/pytorch/pull/145582).
NO_PLAN = (
    "No valid engine configs",
    "No execution plans support the graph",
    "No available kernel",
    "cuDNN Frontend error",
)
ANOTHER_BACKEND = (
    "use another backend (torch.nn.attention.sdpa_kernel), and take another pod; to check one: "
    + verify_command(Path(sys.prefix), "--only", "sdpa")
)


@dataclass(frozen=True)
class AttentionBackend:
    """A backend of scaled_dot_product_attention. `operator`: part of the name of what it calls.

    `operator` is empty for the backend that is made of ordinary operators. `on_cpu`: a CPU has it.
    `on_demand`: torch takes it only where it is asked for, so it may be missing.
    """

    name: str
    operator: str = ""
    on_cpu: bool = False
    on_demand: bool = False


# The operators: aten/src/ATen/native/native_functions.yaml.
BACKENDS = (
    AttentionBackend("MATH", on_cpu=True),
    AttentionBackend(
        "FLASH_ATTENTION", "scaled_dot_product_flash_attention", on_cpu=True
    ),
    AttentionBackend("EFFICIENT_ATTENTION", "scaled_dot_product_efficient_attention"),
    AttentionBackend(
        "CUDNN_ATTENTION", "scaled_dot_product_cudnn_attention", on_demand=True
    ),
)


def plain_attention(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """softmax(q k^T / sqrt(d)) v on (..., length, dim), in the tensors' own precision."""
    import torch

    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ v


def run_with_gradients(
    function: Callable[..., Any], inputs: list[Any], weight: Any
) -> list[Any]:
    """The output, and the gradient for each input of sum(output * weight)."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    (out * weight.to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def find_worst(got: list[Any], low: list[Any], exact: list[Any]) -> tuple[float, float]:
    """(error, bound) of the one of output, dq, dk, dv that comes nearest its bound.

    `low` is plain attention in the kernel's precision, `exact` in float32. NaN is nearest of all.
    """
    worst = (0.0, 1.0)
    nearest = -1.0
    factors = (OUTPUT_FACTOR, GRADIENT_FACTOR, GRADIENT_FACTOR, GRADIENT_FACTOR)
    for factor, kernel, plain, reference in zip(factors, got, low, exact):
        error = (kernel.float() - reference).abs().max().item()
        plain_error = (plain.float() - reference).abs().max().item()
        bound = factor * plain_error + 1e-5  # plain attention may happen to be exact
        nearness = error / bound
        if error != error:
            nearness = float("inf")
        if nearness > nearest:
            nearest = nearness
            worst = (error, bound)
    return worst


def compare_attention(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    shape: tuple[int, ...],
    dtype: Any,
    device: str,
) -> tuple[float, float]:
    """A kernel of q, k, v on random input of one shape against the reference, as `find_worst`."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    q, k, v, weight = make_inputs(shape, dtype, device)
    single = [q.float(), k.float(), v.float()]
    exact = run_with_gradients(reference, single, weight.float())
    low = run_with_gradients(reference, [q, k, v], weight)
    got = run_with_gradients(kernel, [q, k, v], weight)
    return find_worst(got, low, exact)


def make_inputs(shape: tuple[int, ...], dtype: Any, device: str) -> list[Any]:
    """q, k, v and the weight of the output: random, and always the same."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tensors = []
    for _ in range(4):
        tensors.append(torch.randn(shape, generator=generator).to(device, dtype))
    return tensors


def find_operators(function: Callable[..., Any], *inputs: Any) -> set[str]:
    """The names of the operators that a function calls: what ran, not what was asked for."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names = set()

    class Recorder(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, operator: Any, types: Any, arguments: Any = (), options: Any = None
        ) -> Any:
            names.add(str(operator))
            return operator(*arguments, **(options or {}))

    with Recorder():
        function(*inputs)
    return names


def _is_among(operator: str, names: Iterable[str]) -> bool:
    """Whether an operator's name is in one of the names that ran, such as aten::NAME.default."""
    for name in names:
        if operator in name:
            return True
    return False


def _has_no_plan(error: RuntimeError) -> bool:
    """Whether a backend said that it has no kernel for such inputs."""
    for text in NO_PLAN:
        if text in str(error):
            return True
    return False


def call_backend(
    backend: AttentionBackend, causal: bool, q: Any, k: Any, v: Any
) -> Any:
    """scaled_dot_product_attention with one backend alone."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([getattr(SDPBackend, backend.name)]):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal
        )


@check_each_gpu(
    "sdpa",
    "on each GPU each backend of scaled_dot_product_attention runs and agrees with float32, "
    "with gradients",
)
def sdpa(device: str) -> Result:
    import torch

    shape = (2, 4, 256, 64)
    cases = {}
    absent = ""
    for backend in BACKENDS:
        if device == "cpu" and not backend.on_cpu:
            continue
        for causal in (False, True):
            name = backend.name.lower()
            if causal:
                name += " causal"
            kernel = partial(call_backend, backend, causal)
            reference = partial(plain_attention, causal=causal)
            try:
                inputs = make_inputs(shape, torch.bfloat16, device)[:3]
                operators = find_operators(kernel, *inputs)
                cases[name] = compare_attention(
                    kernel, reference, shape, torch.bfloat16, device
                )
            except RuntimeError as error:
                if not backend.on_demand or not _has_no_plan(error):
                    raise
                reason = " ".join(str(error).split())[:120]
                absent = f"; not available, and used only on demand: {name} ({reason})"
                continue
            if not _is_among(backend.operator, operators):
                return failed(
                    f"{device}: {name} was asked for, and another ran", ANOTHER_BACKEND
                )
    result = within(cases, device, ANOTHER_BACKEND)
    result.summary += absent
    return result
