"""Attention kernels against a float32 reference, by flash-attn's own criterion: at most twice plain attention's error."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from lockedenv.verify.checks import FULL, check
from lockedenv.verify.results import Result, failed, passed

# flash-attn 2.8 compares outputs with twice, gradients with three times, the error of plain attention in the same
# precision: tests/test_flash_attn.py, test_flash_attn_output.
OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 3.0


def plain(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """softmax(q k^T / sqrt(d)) v on (batch, heads, length, dim), in the tensors' own precision."""
    import torch

    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ v


def with_gradients(function: Any, inputs: List[Any], weight: Any) -> List[Any]:
    """The output and the gradients for each input of sum(output * weight)."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    (out * weight.to(out.dtype)).sum().backward()
    return [out.detach(), *(x.grad for x in inputs)]


def worst(got: List[Any], low: List[Any], exact: List[Any]) -> Tuple[float, str]:
    """How near the criterion the worst of output, dq, dk, dv comes (1 is the bound), and the figures in words."""
    ratios = []
    for name, a, b, reference in zip(("out", "dq", "dk", "dv"), got, low, exact):
        error, plain_error = ((x.float() - reference).abs().max().item() for x in (a, b))
        factor = OUTPUT_FACTOR if name == "out" else GRADIENT_FACTOR
        bound = factor * plain_error + 1e-5  # where plain attention happens to be exact
        ratio = error / bound if error == error else float("inf")
        ratios.append((ratio, f"{name} error {error:.1e}, bound {bound:.1e}"))
    return max(ratios)


def compare(kernel: Any, shape: Tuple[int, int, int, int], dtype: Any, device: str, causal: bool) -> Tuple[float, str]:
    """A kernel on random (batch, heads, length, dim) input against float32, as `worst` gives it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4))

    def reference(q: Any, k: Any, v: Any) -> Any:
        return plain(q, k, v, causal)

    torch.backends.cuda.matmul.allow_tf32 = False
    exact = with_gradients(reference, [x.float() for x in (q, k, v)], weight.float())
    low = with_gradients(reference, [q, k, v], weight)
    return worst(with_gradients(kernel, [q, k, v], weight), low, exact)


def judge(cases: Dict[str, Tuple[float, str]], where: str, remedy: str) -> Result:
    name, (ratio, said) = max(cases.items(), key=lambda item: item[1][0])
    measured = {f"{case}, error over bound": round(value[0], 3) for case, value in cases.items()}
    details = [f"{case}: {figures}" for case, (value, figures) in cases.items() if value > 1]
    if details:
        return failed(f"{where}: {details[0]}", remedy, details[1:], **measured)
    return passed(f"{where}: {len(cases)} cases; nearest the bound: {name}: {said}", **measured)


@check(
    "sdpa",
    "each backend of scaled_dot_product_attention agrees with a float32 reference, causal and not, with gradients",
    FULL,
    child=True,
)
def sdpa(device: str) -> Result:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
    if device == "cuda":
        backends += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    cases, absent = {}, []
    for backend in backends:
        for causal in (False, True):

            def kernel(q: Any, k: Any, v: Any) -> Any:
                with sdpa_kernel([backend]):
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

            name = f"{backend.name.lower()}{' causal' if causal else ''}"
            try:
                cases[name] = compare(kernel, (2, 4, 256, 64), torch.bfloat16, device, causal)
            except RuntimeError as error:
                if "No available kernel" not in str(error) or backend in backends[:2]:
                    raise
                absent.append(name)
    result = judge(cases, device, "use another backend (torch.nn.attention.sdpa_kernel), and take another pod")
    result.summary += f"; not on this GPU: {', '.join(absent)}" if absent else ""
    return result


@check(
    "flash-attn",
    "flash-attn's kernels run on this GPU, forward and backward, head dims 64 and 128, bf16 and fp16, and are right",
    FULL,
    remedy="build it for this GPU: scripts/post_create.sh",
    child=True,
    gpu=True,
    memory=4 * 1024**3,
)
def flash_attn(device: str) -> Result:
    import torch
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    cases = {}
    for dtype in (torch.bfloat16, torch.float16):
        for dim in (64, 128):
            for causal in (False, True):

                def kernel(q: Any, k: Any, v: Any) -> Any:
                    return _heads_last(flash_attn_func, q, k, v, causal=causal)

                name = f"{str(dtype)[6:]} d{dim}{' causal' if causal else ''}"
                cases[name] = compare(kernel, (2, 4, 512, dim), dtype, device, causal)
        cases[f"{str(dtype)[6:]} variable length"] = variable_length(flash_attn_varlen_func, dtype, device)
    return judge(cases, device, "the build is wrong for this GPU: delete its wheel from the cache, scripts/post_create.sh")


def _heads_last(function: Any, *tensors: Any, **options: Any) -> Any:
    """flash-attn wants (batch, length, heads, dim)."""
    return function(*(x.transpose(1, 2) for x in tensors), **options).transpose(1, 2)


def variable_length(function: Any, dtype: Any, device: str, dim: int = 64) -> Tuple[float, str]:
    """Sequences of three lengths packed into one, each against its own float32 reference; causal."""
    import torch

    lengths = [17, 256, 99]
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)
    generator = torch.Generator().manual_seed(1)
    q, k, v, weight = (torch.randn(sum(lengths), 4, dim, generator=generator).to(device, dtype) for _ in range(4))

    def by_sequence(q: Any, k: Any, v: Any) -> Any:
        parts = zip(*(x.split(lengths) for x in (q, k, v)))
        return torch.cat([plain(*(x.transpose(0, 1) for x in part), True).transpose(0, 1) for part in parts])  # type: ignore

    def packed(q: Any, k: Any, v: Any) -> Any:
        return function(q, k, v, ends, ends, max(lengths), max(lengths), causal=True)

    exact = with_gradients(by_sequence, [x.float() for x in (q, k, v)], weight.float())
    low = with_gradients(by_sequence, [q, k, v], weight)
    return worst(with_gradients(packed, [q, k, v], weight), low, exact)
