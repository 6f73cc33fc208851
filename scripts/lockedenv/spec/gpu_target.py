"""The GPU that kernels are compiled for where there is none: an H100, or what is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

# FlashAttention 4's own variables (flash_attn/cute/interface.py, _get_device_arch) and CuTe DSL's.
ARCHITECTURE_VARIABLE = "FLASH_ATTENTION_ARCH"
DSL_ARCHITECTURE_VARIABLE = "CUTE_DSL_ARCH"
MULTIPROCESSORS_VARIABLE = "FLASH_ATTENTION_NUM_SMS"
# Streaming multiprocessors of an A100, an H100 and H200 (SXM), a B200 and an RTX PRO 6000. What is
# compiled does not depend on the number; FlashAttention 4 asks for one.
MULTIPROCESSORS = {8: 108, 9: 132, 10: 148, 11: 20, 12: 188}
# Each names an assembler in place of the one in the wheel: triton/knobs.py (3.9),
# triton/backends/nvidia/compiler.py (3.1), flash_attn/cute/cute_dsl_ptxas.py.
ASSEMBLER_VARIABLES = (
    "TRITON_PTXAS_PATH",
    "TRITON_PTXAS_BLACKWELL_PATH",
    "CUTE_DSL_PTXAS_PATH",
)
FIRST_WITH_OWN_FEATURES = (
    90  # sm_90a: code with a GPU's own instructions, from Hopper on
)


@dataclass(frozen=True)
class GpuTarget:
    """A compute capability as one number: 90 is 9.0."""

    architecture: int

    @property
    def name(self) -> str:
        return f"sm_{self.architecture}"

    @property
    def major(self) -> int:
        return self.architecture // 10


H100 = GpuTarget(90)


def parse_target(text: str) -> GpuTarget:
    """A target from "90", "sm_90" or "sm_90a". Raises ValueError for anything else."""
    match = re.fullmatch(r"(?:sm_?)?(\d{2,3})[af]?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(
            f"{text!r} is no compute capability; write 90 or sm_90 for an H100"
        )
    return GpuTarget(int(match[1]))


def find_target(environ: Mapping[str, str]) -> GpuTarget:
    """What to compile for without a GPU: FLASH_ATTENTION_ARCH, or an H100. Raises ValueError."""
    asked = environ.get(ARCHITECTURE_VARIABLE, "")
    if asked:
        return parse_target(asked)
    return H100


def target_variables(target: GpuTarget) -> dict[str, str]:
    """What makes FlashAttention 4 and CuTe DSL compile for a GPU that need not be there."""
    suffix = "a" if target.architecture >= FIRST_WITH_OWN_FEATURES else ""
    return {
        ARCHITECTURE_VARIABLE: target.name,
        DSL_ARCHITECTURE_VARIABLE: f"{target.name}{suffix}",
        MULTIPROCESSORS_VARIABLE: str(MULTIPROCESSORS.get(target.major, 132)),
    }


def find_foreign_assembler(prefix: Path, environ: Mapping[str, str]) -> str | None:
    """The variable that names an assembler from outside the prefix, as of a system CUDA, if any."""
    for name in ASSEMBLER_VARIABLES:
        path = environ.get(name, "")
        if path and prefix.resolve() not in Path(path).resolve().parents:
            return name
    return None
