"""The checks of attention pass right kernels, and fail wrong ones and those that did not run."""

from __future__ import annotations

import sys
import types
from functools import partial
from typing import Any, Callable

import pytest
import torch
from lockedenv.verify.checks import Result, attention, flash_attention, passed, warned

COMPARE = attention.compare_attention
MAKE_INPUTS = attention.make_inputs
RIGHT_SDPA = torch.nn.functional.scaled_dot_product_attention


def shorten(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sequences of 128 in place of 256 and 512: half precision is slow on a CPU."""
    return tuple(128 if length in (256, 512) else length for length in shape)


def compare_shorter(
    kernel: Any, reference: Any, shape: Any, *more: Any
) -> tuple[float, float]:
    return COMPARE(kernel, reference, shorten(shape), *more)


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attention, flash_attention):
        monkeypatch.setattr(module, "compare_attention", compare_shorter)
        monkeypatch.setattr(
            module,
            "make_inputs",
            lambda shape, *more: MAKE_INPUTS(shorten(shape), *more),
        )


def make_functions(
    wrong: float = 0.0, ignore_causal: bool = False, lse: bool = False
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """flash-attn's two functions in plain torch, right or wrong; `lse`: they give two values."""

    def dense(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = attention.plain_attention(q, k, v, causal and not ignore_causal)
        out = out.transpose(1, 2) * (1 + wrong)
        if lse:
            return out, None
        return out

    def packed(
        q: Any, k: Any, v: Any, *, cu_seqlens_q: Any, causal: bool, **more: Any
    ) -> Any:
        lengths = (cu_seqlens_q[1:] - cu_seqlens_q[:-1]).tolist()
        outputs = []
        for row in zip(q.split(lengths), k.split(lengths), v.split(lengths)):
            out = dense(*(x[None] for x in row), causal=causal)
            if lse:
                out = out[0]
            outputs.append(out[0])
        joined = torch.cat(outputs)
        if lse:
            return joined, None
        return joined

    return dense, packed


def use_version_2(monkeypatch: pytest.MonkeyPatch, **fault: Any) -> Result:
    """The check's result where flash-attn 2 is the stand-in."""
    module: Any = types.ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_varlen_func = make_functions(**fault)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return flash_attention.check_version_2("2.8.3", "cpu")


def use_version_4(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), **fault: Any
) -> Result:
    """The check's result where FlashAttention 4 is the stand-in, on a GPU of that capability."""
    parent: Any = types.ModuleType("flash_attn")
    module: Any = types.ModuleType("flash_attn.cute")
    module.flash_attn_func, module.flash_attn_varlen_func = make_functions(
        lse=True, **fault
    )
    parent.cute = module
    monkeypatch.setitem(sys.modules, "flash_attn", parent)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    return flash_attention.check_version_4("4.0.0b36", "cpu")


VERSIONS = pytest.mark.parametrize("check", [use_version_2, use_version_4])


@pytest.mark.usefixtures("shorter")
@VERSIONS
def test_flash_attn_check_passes_right_kernels(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = check(monkeypatch)
    assert result.verdict == "pass", result
    assert "12 cases" in result.summary, result
    assert result.measured["compute_s"] > 0
    assert "float16 d128 causal error" in result.measured
    assert "bfloat16 d128 variable length error" in result.measured


@pytest.mark.usefixtures("shorter")
@VERSIONS
@pytest.mark.parametrize(
    "fault", [{"wrong": 0.05}, {"ignore_causal": True}, {"wrong": float("nan")}]
)
def test_flash_attn_check_fails_wrong_kernels(
    check: Any, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = check(monkeypatch, **fault)
    assert result.verdict == "fail"
    assert "bound" in result.summary
    assert 'attn_implementation="sdpa"' in result.remedy
    assert "--skip flash-attn" in result.remedy
    if check is use_version_2:
        assert "delete its wheel" in result.remedy


def test_flash_attn_check_names_the_fallback_where_version_4_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        flash_attention,
        "compare_attention",
        raise_error("cudaErrorNoKernelImageForDevice"),
    )
    result = use_version_4(monkeypatch)
    assert result.verdict == "fail"
    assert "does not run on this GPU (sm_90)" in result.summary
    assert "cudaErrorNoKernelImage" in result.summary
    assert '"sdpa"' in result.remedy


def test_flash_attn_check_warns_where_version_4_has_no_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = use_version_4(monkeypatch, capability=(8, 0))
    assert result.verdict == "warn"
    assert "sm_80" in result.summary
    assert '"sdpa"' in result.remedy


def test_flash_attn_check_fails_where_it_is_told_to_compile_for_another_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_100a")
    result = use_version_4(monkeypatch)
    assert result.verdict == "fail"
    assert result.remedy == "unset CUTE_DSL_ARCH"


@pytest.mark.parametrize(
    "installed, device, verdict, text",
    [
        ({}, "cuda", "fail", "flash-attn is not installed"),
        ({}, "cpu", "skip", "flash-attn is not installed"),
    ],
)
def test_flash_attn_check_says_which_version_is_there(
    installed: dict[str, str],
    device: str,
    verdict: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        flash_attention, "read_version", lambda name: installed.get(name, "")
    )
    result = flash_attention.flash_attn(device)
    assert result.verdict == verdict
    assert text in result.summary


def test_flash_attn_check_fails_two_versions_with_a_file_in_common(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They share the folder flash_attn; with a file of each its own, both are checked."""
    files = {
        "flash-attn": ["flash_attn/__init__.py", "flash_attn/cute/interface.py"],
        "flash-attn-4": ["flash_attn/cute/interface.py"],
    }
    monkeypatch.setattr(flash_attention, "read_version", lambda name: "1.0")
    monkeypatch.setattr(flash_attention.metadata, "files", files.get)
    result = flash_attention.flash_attn("cuda")
    assert result.verdict == "fail"
    assert "both have flash_attn/cute/interface.py" in result.summary
    files["flash-attn"].pop()
    monkeypatch.setattr(
        flash_attention, "check_version_2", lambda *about: passed("2 is right")
    )
    monkeypatch.setattr(
        flash_attention, "check_version_4", lambda *about: warned("4", "sdpa")
    )
    result = flash_attention.flash_attn("cuda")
    assert (result.verdict, result.summary) == ("warn", "4; 2 is right")


def test_sdpa_check_fails_a_wrong_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *inputs, **options: RIGHT_SDPA(*inputs, **options) * 1.05,
    )
    result = attention.sdpa("cpu")
    assert result.verdict == "fail"
    assert "bound" in result.summary


@pytest.mark.usefixtures("shorter")
def test_sdpa_check_fails_a_backend_that_fell_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The values are right, and another kernel computed them than the one that was asked for."""

    def fall_back(q: Any, k: Any, v: Any, is_causal: bool) -> Any:
        return attention.plain_attention(q, k, v, is_causal)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fall_back)
    result = attention.sdpa("cpu")
    assert result.verdict == "fail"
    assert "flash_attention was asked for, and another ran" in result.summary


def make_gpu_check(
    monkeypatch: pytest.MonkeyPatch, cudnn: Any, others: Any = attention.plain_attention
) -> Callable[[], Result]:
    """The check with all four backends on the CPU; `cudnn` stands for cuDNN's kernel."""
    operators = {backend.operator for backend in attention.BACKENDS}

    def find_operators(kernel: Any, *inputs: Any) -> set[str]:
        kernel(*inputs)
        return operators

    def kernel(q: Any, k: Any, v: Any, is_causal: bool) -> Any:
        if torch.backends.cuda.cudnn_sdp_enabled():
            return cudnn(q, k, v, is_causal)
        return others(q, k, v, is_causal)

    monkeypatch.setattr(attention, "find_operators", find_operators)
    monkeypatch.setattr(
        attention,
        "compare_attention",
        lambda *about: compare_shorter(*about[:4], "cpu"),
    )
    monkeypatch.setattr(
        attention,
        "make_inputs",
        lambda shape, dtype, _: MAKE_INPUTS(shorten(shape), dtype, "cpu"),
    )
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    return partial(attention.sdpa, "cuda")


def raise_error(text: str) -> Callable[..., Any]:
    def kernel(*tensors: Any) -> Any:
        raise RuntimeError(text)

    return kernel


@pytest.mark.parametrize(
    "text",
    [
        f"cuDNN Frontend error: [cudnn_frontend] Error: {attention.NO_PLAN[0]}",
        f"cuDNN Frontend error: [cudnn_frontend] Error: {attention.NO_PLAN[1]}",
        "No available kernel. Aborting execution.",
        "No valid engine configs for Matmul_MUL_",
    ],
)
def test_cudnn_attention_without_a_plan_is_told_and_no_failure(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make_gpu_check(monkeypatch, raise_error(text))()
    assert result.verdict == "pass", result.summary
    assert (
        "; not available, and used only on demand: cudnn_attention causal"
        in result.summary
    )
    assert text[:60] in result.summary


def test_cudnn_attention_that_is_wrong_or_breaks_off_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        wrong = make_gpu_check(
            patch, lambda *inputs: attention.plain_attention(*inputs) * 1.05
        )
        result = wrong()
        assert result.verdict == "fail"
        assert "cudnn_attention" in result.summary
    with (
        monkeypatch.context() as patch,
        pytest.raises(RuntimeError, match="illegal memory access"),
    ):
        make_gpu_check(patch, raise_error("CUDA error: an illegal memory access"))()
    with (
        monkeypatch.context() as patch,
        pytest.raises(RuntimeError, match="No available kernel"),
    ):
        make_gpu_check(
            patch, attention.plain_attention, others=raise_error("No available kernel")
        )()
