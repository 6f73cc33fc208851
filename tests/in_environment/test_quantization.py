"""The check of bitsandbytes sees a wrong library, one without the GPU, and wrong arithmetic."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from lockedenv.spec import environment
from lockedenv.spec.layers import BackendName
from lockedenv.verify.checks import quantization

CUDA = environment.find_by_prefix(Path(sys.prefix)).cuda(BackendName.PIP)


def test_bitsandbytes_check_names_the_wrong_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bitsandbytes import cextension

    library = f"libbitsandbytes_cuda{CUDA.replace('.', '')}.so"
    result = quantization.bitsandbytes("cuda")
    assert result.verdict == "fail"
    assert f"torch needs {library}" in result.summary
    # No library of this CUDA is packed: the nearest is taken.
    nearest = types.SimpleNamespace(_name="libbitsandbytes_cuda128.so")
    monkeypatch.setattr(cextension, "lib", types.SimpleNamespace(_lib=nearest))
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    with pytest.raises((RuntimeError, AssertionError), match="NVIDIA|CUDA"):
        quantization.bitsandbytes("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.9")
    summary = quantization.bitsandbytes("cuda").summary
    assert "loaded libbitsandbytes_cuda128.so, torch needs" in summary


def test_bitsandbytes_check_fails_wrong_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import bitsandbytes.functional as functional

    right = functional.int8_vectorwise_dequant
    monkeypatch.setattr(
        functional, "int8_vectorwise_dequant", lambda *a: right(*a) * 1.05
    )
    result = quantization.bitsandbytes("cpu")
    assert result.verdict == "fail"
    assert "int8" in result.summary


def test_bitsandbytes_check_says_what_its_library_holds_code_for() -> None:
    result = quantization.bitsandbytes("cpu")
    assert result.verdict == "pass", result
    name = f"libbitsandbytes_cuda{CUDA.replace('.', '')}.so"
    assert result.summary.endswith(f"; {name} holds code for sm_90, which was not run")


def test_bitsandbytes_check_fails_a_library_without_code_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        quantization, "find_fat_binary_architectures", lambda library: {75, 80}
    )
    result = quantization.bitsandbytes("cpu")
    assert result.verdict == "fail"
    assert "has no code for sm_90; it has code for sm_75 sm_80" in result.summary


def test_bitsandbytes_check_fails_a_layer_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import bitsandbytes as bnb

    forward = bnb.nn.Linear4bit.forward
    monkeypatch.setattr(
        bnb.nn.Linear4bit, "forward", lambda self, x: forward(self, x).float()
    )
    with pytest.raises(
        RuntimeError, match="computed in torch.float32, not in bfloat16"
    ):
        quantization.bitsandbytes("cpu")
