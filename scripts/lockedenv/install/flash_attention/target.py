"""What a flash-attn wheel must fit: the torch of the environment, the GPUs, and
the glibc of this machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from lockedenv import ROOT
from lockedenv.errors import Stop, UsageError
from lockedenv.host.gpus import Gpu
from lockedenv.host.process import ask
from lockedenv.spec.cuda import find_cuda
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.variables import clean

GLIBC = platform.libc_ver()[1]

_ASK_TORCH = """
import json, sys, sysconfig, torch
print(json.dumps({
    "version": torch.__version__.split("+")[0],
    "cuda": torch.version.cuda or "",
    "cxx11abi": bool(torch._C._GLIBCXX_USE_CXX11_ABI),
    "python": "cp%d%d" % sys.version_info[:2],
    "platform": sysconfig.get_platform().replace("-", "_"),
}))
"""
# These become part of file names.
_PLAIN = re.compile(r"[A-Za-z0-9_.]*", re.ASCII)


@dataclass(frozen=True)
class Torch:
    """The torch that flash-attn is built against.

    `python` such as "cp311"; `cuda` is empty for a CPU build.
    """

    version: str
    cuda: str
    cxx11abi: bool
    python: str
    platform: str


def locked_torch(environment: Environment, backend: BackendName) -> Torch:
    """The torch of the lock, for a plan before there is a prefix."""
    return Torch(
        version=environment.torch(backend),
        cuda=environment.cuda(backend),
        cxx11abi=environment.cxx11abi(backend),
        python=f"cp{environment.python.replace('.', '')}",
        platform="linux_x86_64",
    )


def probe_torch(prefix: Path) -> Torch:
    """The torch of a prefix, as its own interpreter reports it.

    Raises Stop if it cannot be imported there.
    """
    python = prefix / "bin/python"
    answer = ask([python, "-c", _ASK_TORCH], 120, env=clean(dict(os.environ)))
    if answer.status != 0:
        last_line = "".join(answer.error.strip().splitlines()[-1:])
        raise Stop(
            f"torch cannot be imported in {prefix} ({last_line}); "
            f"to see what is wrong: {python} {ROOT}/scripts/verify_environment.py"
        )
    fields = json.loads(answer.output.strip().splitlines()[-1])
    for name in ("version", "cuda", "python", "platform"):
        if not _PLAIN.fullmatch(fields[name]):
            raise Stop(
                f"torch in {prefix} gives {fields[name]!r} as its {name}; reinstall torch"
            )
    return Torch(**fields)


def choose_architectures(gpus: Sequence[Gpu], cuda: str, asked: str = "") -> list[str]:
    """What to compile for, such as ["80", "90"]: `asked` ("90" or "80,90"),
    otherwise what the GPUs are.

    Raises Stop for what this CUDA or flash-attn cannot compile for.
    """
    wanted = set()
    if asked:
        for name in re.split(r"[,;]", asked):
            if not re.fullmatch(r"[0-9]{1,2}\.?[0-9]", name.strip()):
                raise UsageError(
                    f"--arch {asked}: give compute capabilities, such as 90 or 80,90"
                )
            wanted.add(name.strip().replace(".", ""))
    else:
        for gpu in gpus:
            wanted.add(gpu.arch[:-1] + "0")  # code for 8.0 runs on 8.6 and 8.9
    if wanted and not cuda:
        raise Stop(
            "flash-attn needs a torch that is built for CUDA, and this environment's is not; "
            "use --flash-attn none"
        )
    possible = find_cuda(cuda).archs
    for name in sorted(wanted):
        if name not in possible:
            raise Stop(
                f"flash-attn cannot be built for compute capability {name[:-1]}.{name[-1:]} with "
                f"CUDA {cuda} (it can for {', '.join(possible)}); use --flash-attn none"
            )
    return sorted(wanted)
