"""FlashAttention 4's kernels: which are common, and how one is compiled without being run.

FlashAttention 4 compiles each kernel when it is first used, a few seconds each. On tensors of
torch's FakeTensorMode it compiles and runs nothing, so no GPU is needed
(flash_attn/cute/interface.py documents it). torch and flash_attn are imported only when a kernel is
compiled, in the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

CACHE_ENABLED_VARIABLE = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"
CACHE_FOLDER_VARIABLE = "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"
# In the cache of downloads, so on the volume of a pod. `activate` names it to FlashAttention 4.
KERNEL_FOLDER = "flash-attention-kernels"
COMPILED_NOTE = "compiled-"  # a file there: TARGET-HASH of what the set-up has compiled
# The oldest GPUs with a backward: "Unsupported compute capability" on an A100, sm_80.
OLDEST_MAJOR = 9
KEY_HEADS = 4
LENGTH = 256


@dataclass(frozen=True)
class Kernel:
    """A forward and its backward. What is here decides which machine code is made.

    `group`: heads of queries that share one head of keys and values.
    """

    head_dim: int
    group: int = 1
    causal: bool = True
    variable_length: bool = False
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        parts = [self.dtype, f"head dim {self.head_dim}"]
        if self.group > 1:
            parts.append(f"{self.group} query heads a key head")
        if self.causal:
            parts.append("causal")
        if self.variable_length:
            parts.append("variable length")
        return ", ".join(parts)


# The kernel that a check compiles where there is no GPU to run it.
PROBE = Kernel(128)
# What language models train with: Llama 3.1 8B and Mistral 7B have head dim 128 and a group of 4,
# Llama 3.2 1B has head dim 64 and a group of 4. Padded batches use variable lengths.
COMMON = (
    Kernel(128, group=4),
    Kernel(128, group=4, variable_length=True),
    Kernel(128),
    Kernel(64, group=4),
)


def cache_variables(folder: Path) -> dict[str, str]:
    """What makes FlashAttention 4 keep compiled kernels in a folder and take them from there."""
    return {CACHE_ENABLED_VARIABLE: "1", CACHE_FOLDER_VARIABLE: str(folder)}


def compile_kernel(kernel: Kernel) -> None:
    """Compiles a forward and its backward for the GPU of `target_variables`, which must be set.

    Calls the functions below autograd's, whose own backward needs a device.
    """
    import torch
    from flash_attn.cute import interface
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.no_grad():
        q = _fake_tensor(kernel, KEY_HEADS * kernel.group)
        k = _fake_tensor(kernel, KEY_HEADS)
        v = _fake_tensor(kernel, KEY_HEADS)
        options: dict[str, Any] = {"causal": kernel.causal}
        if kernel.variable_length:
            ends = torch.empty(3, dtype=torch.int32, device="cuda")
            options["cu_seqlens_q"] = ends
            options["cu_seqlens_k"] = ends
            options["max_seqlen_q"] = LENGTH
            options["max_seqlen_k"] = LENGTH
        out, lse = interface._flash_attn_fwd(q, k, v, return_lse=True, **options)[:2]
        gradient = torch.empty_like(out)
        interface._flash_attn_bwd(q, k, v, out, gradient, lse, **options)


def find_compiled_files() -> list[Path]:
    """The files in the cache with the machine code of what this process has compiled or loaded.

    Empty where FlashAttention 4 keeps no cache. It names a file by a hash of what was compiled.
    """
    from flash_attn.cute import interface

    files = []
    for function in (
        interface._flash_attn_fwd,
        interface._bwd_preprocess,
        interface._flash_attn_bwd,
        interface._bwd_postprocess_convert,
    ):
        cache = function.compile_cache
        if not hasattr(cache, "cache_path"):
            continue  # it was made without the variables of the cache
        for key in cache.cache:
            files.append(Path(cache.cache_path, f"{cache._key_to_hash(key)}.o"))
    return files


def _fake_tensor(kernel: Kernel, heads: int) -> Any:
    import torch

    shape = (2, LENGTH, heads, kernel.head_dim)
    if kernel.variable_length:
        shape = (2 * LENGTH, heads, kernel.head_dim)  # type: ignore[assignment]
    return torch.empty(shape, dtype=getattr(torch, kernel.dtype), device="cuda")
