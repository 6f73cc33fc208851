"""The kernel of the check `triton`. triton reads a kernel's source from its file."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def add_scaled(  # type: ignore[no-untyped-def]
    a, b, out, length, scale: tl.constexpr, block: tl.constexpr
):
    """out = a + scale * b, in blocks."""
    index = tl.program_id(0) * block + tl.arange(0, block)
    inside = index < length
    left = tl.load(a + index, mask=inside)
    right = tl.load(b + index, mask=inside)
    tl.store(out + index, left + scale * right, mask=inside)
