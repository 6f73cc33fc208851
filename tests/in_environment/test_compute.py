"""The checks of torch's build and arithmetic see a wrong build and wrong arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lockedenv.spec import environment
from lockedenv.spec.layers import BackendName
from lockedenv.verify.checks import compute

CUDA = environment.find_by_prefix(Path(sys.prefix)).cuda(BackendName.PIP)


def test_torch_check_fails_a_wrong_product_and_a_wrong_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert compute.torch_arithmetic("cpu").verdict == "pass"
    multiply = torch.Tensor.__matmul__
    add = torch.Tensor.sum

    def multiply_wrongly(a: Any, b: Any) -> Any:
        product = multiply(a, b)
        if a.dtype == torch.float64:
            return product
        return product * 1.01

    def add_wrongly(tensor: Any, *more: Any) -> Any:
        total = add(tensor, *more)
        if tensor.dtype == torch.float64:
            return total
        return total * 1.001

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", multiply_wrongly)
        result = compute.torch_arithmetic("cpu")
        assert result.verdict == "fail"
        assert "bfloat16 product" in result.summary
        assert "another pod" in result.remedy
    monkeypatch.setattr(torch.Tensor, "sum", add_wrongly)
    assert "sum" in compute.torch_arithmetic("cpu").summary


def test_torch_check_fails_bfloat16_that_is_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its values would be too good: within every bound."""
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: multiply(a.double(), b.double()).float(),
    )
    result = compute.torch_arithmetic("cpu")
    assert result.verdict == "fail", result
    assert "the bfloat16 product is in torch.float32" in result.summary


def test_async_error_check_sees_a_lost_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__getitem__", lambda self, index: self)
    assert compute.async_error("cpu").verdict == "fail"
    # No GPU to raise it: that is not the error which was asked for.
    with pytest.raises(RuntimeError, match="NVIDIA"):
        compute.async_error("cuda")


def test_torch_build_check_names_a_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    result = compute.torch_build("cpu")
    assert result.verdict == "fail"
    assert f"is built for CUDA none, not {CUDA}" in result.summary


def test_torch_build_check_without_a_usable_gpu_fails() -> None:
    result = compute.torch_build("cuda")
    assert result.verdict == "fail"
    assert "torch finds no usable GPU" in result.summary


@pytest.mark.parametrize(
    "capability, runs",
    [((9, 0), True), ((8, 0), True), ((8, 9), True), ((10, 0), True), ((7, 0), False)],
)
def test_which_gpus_the_locked_build_has_code_for(capability: Any, runs: bool) -> None:
    architectures = ["sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]
    assert compute.runs_on(architectures, *capability) is runs
