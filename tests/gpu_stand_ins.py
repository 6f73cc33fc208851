"""Stand-ins of the driver: an nvidia-smi and a libcuda that answer as they are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from conftest import ROOT, sh

SMI = ROOT / "tests/stand_ins/nvidia-smi"
LIBCUDA = ROOT / "tests/stand_ins/libcuda.c"
HEALTHY = {"INIT": 0, "COUNT": 1, "CONTEXT": 0, "USED": 600 << 20, "PEER": 1}


def make_smi(folder: Path, **answers: str) -> dict[str, str]:
    """An environment whose PATH begins with a folder that has the stand-in of nvidia-smi.

    `answers`: its variables, which tests/stand_ins/nvidia-smi lists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    if not program.exists():
        program.symlink_to(SMI)
    return {"PATH": f"{folder}:{os.environ['PATH']}", **answers}


def make_driver(folder: Path, **values: Any) -> dict[str, str]:
    """An environment in which a libcuda that is compiled with these values is found, and an nvidia-smi.

    Values that are not of libcuda are answers of nvidia-smi.
    """
    defined = dict(HEALTHY)
    answers = {}
    for name, value in values.items():
        if name in defined:
            defined[name] = value
        else:
            answers[name] = value
    answers.setdefault("GPUS", str(defined["COUNT"]))
    environ = make_smi(folder, **answers)
    flags = [f"-D{name}={value}" for name, value in defined.items()]
    sh("gcc", "-shared", "-fPIC", *flags, "-o", folder / "libcuda.so.1", LIBCUDA)
    return {**environ, "LD_LIBRARY_PATH": str(folder)}
