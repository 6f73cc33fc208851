"""Prints as JSON the versions of torch, its CUDA, cuDNN and NCCL; run by the prefix's interpreter.

`python -m lockedenv.provenance.torch_versions cuda` imports torch and asks it. With `cpu` torch is
not imported, which takes as long as the quick level: its files are read, and there is no NCCL to
ask for.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

# Where the cuDNN that torch loads may lie, from torch's own folder: its wheel's, PyPI's, conda's.
CUDNN_FOLDERS = ("lib", "../nvidia/cudnn/lib", "../../..")


def ask_torch() -> dict[str, str | None]:
    """The versions, as torch says them."""
    import torch

    cudnn = torch.backends.cudnn.version()
    nccl = None
    if torch.cuda.is_available():
        nccl = ".".join(str(part) for part in torch.cuda.nccl.version())
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(cudnn) if cudnn else None,
        "nccl": nccl,
    }


def read_torch() -> dict[str, str | None]:
    """The versions, as torch's files say them."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torch'")
    folder = Path(spec.origin).parent
    text = (folder / "version.py").read_text(encoding="utf-8")
    assigned = dict(re.findall(r"^(__version__|cuda)\b[^=]*= '([^']+)'", text, re.M))
    return {
        "torch": assigned["__version__"],
        "cuda": assigned.get("cuda"),
        "cudnn": read_cudnn(folder),
        "nccl": None,
    }


def read_cudnn(torch_folder: Path) -> str | None:
    """The version of the cuDNN beside torch, by its own function; None if there is none."""
    for place in CUDNN_FOLDERS:
        for path in sorted((torch_folder / place).glob("libcudnn.so.*")):
            library: Any = ctypes.CDLL(str(path))
            return str(library.cudnnGetVersion())
    return None


if __name__ == "__main__":
    if sys.argv[1] == "cuda":
        print(json.dumps(ask_torch()))
    else:
        print(json.dumps(read_torch()))
