"""Imports modules as if there were a GPU: whatever asks for it ends the program.

import_as_with_a_gpu.py MODULE...: prints the processes that were started, whether bitsandbytes is
imported, and whether CUDA was used; then imports bitsandbytes, which does ask for the GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any, Callable

import psutil
import torch


def make_touch() -> Callable[..., None]:
    """One for each name: torch._dynamo keeps a rule for each function, and refuses one of two rules."""

    def touch(*inputs: Any, **options: Any) -> None:
        raise SystemExit("CUDA was touched")

    return touch


# NVML says so, for which PYTORCH_NVML_BASED_CUDA_CHECK is set: it is no use of CUDA.
torch.cuda.is_available = lambda: True
for name in (
    "device_count",
    "get_device_properties",
    "get_device_capability",
    "current_device",
    "init",
    "_lazy_init",
):
    setattr(torch.cuda, name, make_touch())
torch._C._cuda_getDeviceCount = make_touch()
for module in sys.argv[1:]:
    if importlib.util.find_spec(module.split(".")[0]):
        importlib.import_module(module)
started = psutil.Process().children()
print(started, "bitsandbytes" in sys.modules, torch.cuda._is_in_bad_fork(), flush=True)
importlib.import_module("bitsandbytes")
