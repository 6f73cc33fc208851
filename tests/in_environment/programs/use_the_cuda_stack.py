"""Loads and uses what is made for CUDA without a GPU, and names what of a folder was loaded.

use_the_cuda_stack.py FOLDER: the folder of another CUDA. Exit status 1 if anything comes from it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from pathlib import Path

import torch
from lockedenv.verify.checks import compilers, flash_attention

other_cuda = os.path.realpath(sys.argv[1])
verdicts = [compilers.triton_kernel("cpu").verdict]
if importlib.util.find_spec("flash_attn") is not None:
    verdicts.append(flash_attention.flash_attn("cpu").verdict)
import bitsandbytes  # noqa: E402  (after FlashAttention, as a training script has it)

version = str(torch.version.cuda).replace(".", "")
library = Path(bitsandbytes.__file__).with_name(f"libbitsandbytes_cuda{version}.so")
if library.exists():
    ctypes.CDLL(str(library))
for module in ("cuda.bindings.nvrtc", "cuda.bindings.runtime"):
    try:
        importlib.import_module(module)
    except ImportError:
        continue  # not every environment has it
loaded = []
for line in Path("/proc/self/maps").read_text().splitlines():
    if other_cuda in line:
        loaded.append(line.split()[-1])
print(*map(str, verdicts))
if loaded or set(map(str, verdicts)) != {"compiled"}:
    sys.exit(f"loaded from another CUDA: {sorted(set(loaded))}")
print("nothing of it is loaded")
