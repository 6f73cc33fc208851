"""An environment is a folder of data: the repository's root, environments/NAME, or a user's own of the same shape.

What follows from its locks is asked here: Python, torch, the CUDA that torch is built for. Each backend has its own.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

from lockedenv import ROOT
from lockedenv.errors import Stop
from lockedenv.host.machine import read_json, version_tuple
from lockedenv.spec import facts, locks
from lockedenv.spec.locks import CondaPackage, PipPackage, PrebuiltWheel

MARK = "maximalcai.json"  # in every prefix that a script has worked on: whose it is, its state, its environment (prefix.py)
GIVEN = "MAXIMALCAI_ENVIRONMENT"  # --environment of the verifier, for the checks that run in processes of their own
SPEC, VIRTUAL, CONDA_LOCK = "environment.yml", "locks/virtual-packages.yml", "conda-lock.yml"
PIP, FLASH, REQUIREMENTS, DEV = (
    "locks/pip.txt",
    "locks/flash-attn.txt",
    "requirements.txt",
    "requirements-dev.txt",
)
LOCKED = (SPEC, CONDA_LOCK, PIP, FLASH, REQUIREMENTS)


@dataclass(frozen=True)
class Environment:
    """A folder with the files named above. Its methods raise LockError for a lock that cannot be read."""

    folder: Path

    @property
    def name(self) -> str:
        return "default" if self.folder == ROOT else self.folder.name

    @property
    def given(self) -> str:
        """What names it for --environment and in a prefix's mark: the name of one of ours, otherwise the path."""
        return self.name if self in ours() else str(self.folder)

    def conda(self) -> List[CondaPackage]:
        return locks.read_conda_lock(self.folder / CONDA_LOCK).packages

    def wheels(self, backend: str) -> List[PipPackage]:
        """The pip layer over conda's, or both layers as wheels."""
        return locks.read_pip_lock(self.lock(backend))

    def lock(self, backend: str) -> Path:
        return self.folder / (PIP if backend == "conda" else REQUIREMENTS)

    def flash_attn(self) -> Optional[PipPackage]:
        """The source of flash-attn, if this environment has it."""
        return (
            locks.read_pip_lock(self.folder / FLASH)[0] if (self.folder / FLASH).exists() else None
        )

    def flash_wheel(self) -> Optional[PrebuiltWheel]:
        """The wheel of it that its own project has built, if the lock names one."""
        return locks.read_prebuilt(self.folder / FLASH) if (self.folder / FLASH).exists() else None

    def digest(self, backend: str) -> str:
        """One sha256 over what the locks of a backend ("conda" or "pip") name, whatever their comments say."""
        lines = [f"{p.name} {p.sha256}" for p in self.conda()] if backend == "conda" else []
        lines += [f"{p.name} {p.sha256}" for p in self.wheels(backend)]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def names(self) -> List[str]:
        """The distributions and conda packages of both layers."""
        return [p.name for p in self.conda()] + [p.name for p in self.wheels("pip")]

    def version(self, backend: str, names: str) -> str:
        """The locked version of the first package whose name matches an expression; empty if there is none."""
        pins = self.conda() if backend == "conda" else self.wheels("pip")
        return next((p.version for p in pins if re.fullmatch(names, p.name)), "")

    def cxx11abi(self, backend: str) -> bool:
        """Whether torch is built with the new C++ ABI."""
        if backend == "conda":
            return any(p.name == "pytorch" and p.channel != "pytorch" for p in self.conda())
        return version_tuple(self.torch("pip")) >= facts.NEW_ABI

    def _torch_build(self) -> str:
        return next((p.build for p in self.conda() if p.name == "pytorch"), "")

    @property
    def python(self) -> str:
        """The version that both layers are for, to the minor one."""
        return ".".join(self.version("conda", "python").split(".")[:2])

    def torch(self, backend: str) -> str:
        return self.version(backend, "pytorch" if backend == "conda" else "torch")

    def cuda(self, backend: str) -> str:
        """The CUDA that torch is built for, such as "12.0"; empty for a CPU build."""
        if (
            backend == "conda"
        ):  # in the build string: cuda12.0 on the pytorch channel, cuda120 on conda-forge
            return ".".join(*re.findall(r"cuda(\d\d)\.?(\d+)", self._torch_build())[:1] or [""])
        return ".".join(self.version("pip", r"nvidia-cuda-runtime(-cu\d+)?").split(".")[:2])

    def cudnn(self, backend: str) -> str:
        """The version of cuDNN; the pytorch channel's torch carries its own, and names it in its build string."""
        inside = re.findall(r"cudnn([\d.]+)", self._torch_build()) if backend == "conda" else []
        return "".join(inside[:1]) or self.version(backend, r"(lib|nvidia-)?cudnn(-cu\d+)?")

    @property
    def mkl(self) -> bool:
        """Whether numpy is to compute with MKL on the conda backend."""
        return any(p.name == "libblas" and "mkl" in p.build for p in self.conda())


def ours() -> List[Environment]:
    """The repository's own: the default one, and those in environments/."""
    return [
        Environment(folder)
        for folder in (ROOT, *sorted(path.parent for path in ROOT.glob(f"environments/*/{SPEC}")))
    ]


def find(text: str) -> Environment:
    """The environment that --environment names: one of ours, or a folder. Raises Stop."""
    for environment in ours():
        if text == environment.name:
            return environment
    folder = Path(os.path.realpath(os.path.expanduser(text)))
    if not (folder / SPEC).is_file():
        names = " and ".join(environment.name for environment in ours())
        raise Stop(
            f"--environment {text}: there are {names}, and any folder with an {SPEC}; this is none of them"
        )
    return Environment(folder)


def named(prefix: Path) -> str:
    """The environment that a prefix is of, as its mark says and --environment takes it; the default one where nothing says so."""
    return str(read_json(prefix / MARK).get("environment") or "default")


def of(prefix: Path) -> Environment:
    """The environment that a prefix is of, or the one that the verifier was told to compare it with. Raises Stop."""
    text = os.environ.get(GIVEN) or named(prefix)
    try:
        return find(text)
    except Stop:
        raise Stop(
            f"{prefix} is of the environment {text}, which is gone: bring its folder back, or rebuild the prefix "
            "with --environment NAME --force"
        ) from None
