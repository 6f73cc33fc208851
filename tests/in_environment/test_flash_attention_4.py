"""FlashAttention 4 compiles for a GPU that is not there; its common kernels go into its cache."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from lockedenv.install.flash_attention.precompile import precompile_kernels
from lockedenv.spec import flash_attention_kernels
from lockedenv.spec.flash_attention_kernels import COMMON, PROBE, cache_variables
from lockedenv.spec.gpu_target import H100, GpuTarget
from lockedenv.verify.checks import flash_attention

pytestmark = [
    pytest.mark.usefixtures("own_variables"),
    pytest.mark.skipif(
        not importlib.util.find_spec("flash_attn"),
        reason="this environment has no flash-attn",
    ),
]
VERSION = "4.0.0b36"


def test_flash_attention_4_is_compiled_and_no_pass_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the cache, from where it is taken the second time, in another process."""
    for name, value in cache_variables(tmp_path).items():
        monkeypatch.setitem(os.environ, name, value)
    result = flash_attention.flash_attn("cpu")
    assert result.verdict == "compiled", result
    assert (
        "4 kernels (bfloat16, head dim 128, causal; forward and backward)"
        in result.summary
    )
    assert result.summary.endswith("compiled for sm_90, not run")

    done = precompile_kernels(
        Path(sys.executable), tmp_path, [H100], 1, os.environ, kernels=[PROBE]
    )
    assert not done[0].errors, "it was in the cache"
    assert done[0].compiled[0].seconds < 2, "it was in the cache"

    monkeypatch.setattr(flash_attention, "find_cubin_architectures", lambda data: [80])
    result = flash_attention.compile_version_4(VERSION, H100)
    assert result.verdict == "fail"
    assert "machine code for sm_80, not for sm_90" in result.summary


def test_flash_attention_4_that_does_not_compile_names_the_fallback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(kernel: object) -> None:
        raise RuntimeError("error: unknown target\n sm_90a")

    monkeypatch.setattr(flash_attention, "compile_kernel", fail)
    result = flash_attention.compile_version_4(VERSION, H100)
    assert result.verdict == "fail"
    assert "does not compile for sm_90" in result.summary
    assert 'attn_implementation="sdpa"' in result.remedy


def test_flash_attention_4_has_no_backward_for_an_a100() -> None:
    result = flash_attention.compile_version_4(VERSION, GpuTarget(80))
    assert result.verdict == "skip"
    assert "use sdpa there" in result.summary


def test_the_common_kernels_are_different_ones() -> None:
    assert len(set(COMMON)) == len(COMMON)
    assert PROBE in COMMON
    assert flash_attention_kernels.OLDEST_MAJOR == 9
