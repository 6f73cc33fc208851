"""An environment is a folder of data: the repository's root, environments/NAME, or a user's own.

What follows from its locks is asked here: Python, torch, the CUDA that torch is built for. Each
backend has its own. torch comes from one of two layers: conda's archives, or PyPI's wheels, on the
conda backend too.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lockedenv import ROOT
from lockedenv.errors import Stop, UsageError
from lockedenv.host.files import read_json
from lockedenv.host.versions import version_tuple
from lockedenv.spec import locks
from lockedenv.spec.layers import BackendName, Layer
from lockedenv.spec.locks import CondaPackage, PipPackage, PrebuiltWheel
from lockedenv.spec.specification import SPEC, specification_digest
from lockedenv.spec.suggest import did_you_mean

# In every prefix that a script has worked on: whose it is, its state (prefix/mark.py).
MARK = "maximalcai.json"
CONDA_LOCK = "conda-lock.yml"
WHEELS_OVER_CONDA = "locks/pip.txt"  # the pip layer of the conda backend
FLASH = "locks/flash-attn.txt"
REQUIREMENTS = "requirements.txt"  # both layers as wheels
DEV = "requirements-dev.txt"
LOCKED = (SPEC, CONDA_LOCK, WHEELS_OVER_CONDA, FLASH, REQUIREMENTS)

# PyPI's torch has the new C++ ABI from this version on; conda-forge's builds always have it, the
# pytorch channel's never.
FIRST_WHEEL_WITH_NEW_ABI = (2, 7)  # https://github.com/pytorch/pytorch/issues/149044


@dataclass(frozen=True)
class Environment:
    """A folder with the files named above.

    Its methods raise LockError for a lock that cannot be read.

    A backend with a conda layer has archives and the pip layer over them; on one without, both
    layers are wheels.
    """

    folder: Path

    @property
    def name(self) -> str:
        return "default" if self.folder == ROOT else self.folder.name

    @property
    def argument(self) -> str:
        """What names it for --environment and in a mark: the name of one of ours, else the path."""
        return self.name if self in list_environments() else str(self.folder)

    def conda(self) -> list[CondaPackage]:
        return locks.read_conda_lock(self.folder / CONDA_LOCK).packages

    def wheels(self, backend: BackendName) -> list[PipPackage]:
        """The pip layer over conda's, or both layers as wheels."""
        return locks.read_pip_lock(self.lock(backend))

    def lock(self, backend: BackendName) -> Path:
        """The lock of the wheels that a backend installs."""
        if backend.has_conda_layer:
            return self.folder / WHEELS_OVER_CONDA
        return self.folder / REQUIREMENTS

    def flash_attn(self) -> PipPackage | None:
        """The source of flash-attn 2, if this environment has it."""
        path = self.folder / FLASH
        return locks.read_pip_lock(path)[0] if path.exists() else None

    def flash_wheel(self) -> PrebuiltWheel | None:
        """The wheel of flash-attn 2 that its own project has built, if the lock names one."""
        path = self.folder / FLASH
        return locks.read_prebuilt(path) if path.exists() else None

    def digest(self, backend: BackendName) -> str:
        """One sha256 over what the locks of a backend name, whatever their comments say."""
        packages: list[CondaPackage | PipPackage] = [*self.wheels(backend)]
        if backend.has_conda_layer:
            packages += self.conda()
        lines = sorted(f"{package.name} {package.sha256}" for package in packages)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def names(self) -> list[str]:
        """The distributions and conda packages of both layers."""
        return [p.name for p in self.conda()] + [
            p.name for p in self.wheels(BackendName.PIP)
        ]

    def version(self, backend: BackendName, names: str) -> str:
        """The locked version of the first package whose name matches an expression.

        Empty if there is none.
        """
        packages: list[CondaPackage | PipPackage] = []
        if backend.has_conda_layer:
            packages += self.conda()
        packages += self.wheels(backend)
        for package in packages:
            if re.fullmatch(names, package.name):
                return package.version
        return ""

    def edited_since_locked(self) -> bool:
        """Whether environment.yml, or what goes with it, was edited after its locks were written.

        False for locks that do not say what they are of, and where the locks were copied
        without environment.yml. Raises LockError.
        """
        locked = locks.read_seal(self.folder / CONDA_LOCK).specification
        try:
            return locked != "" and locked != specification_digest(self.folder)
        except FileNotFoundError:
            return False

    @property
    def python(self) -> str:
        """The version that both layers are for, to the minor one."""
        return ".".join(self.version(BackendName.CONDA, "python").split(".")[:2])

    def torch_archive(self) -> CondaPackage | None:
        """torch as conda's archive; None where PyPI's wheel is torch on the conda backend too."""
        for package in self.conda():
            if package.name == "pytorch":
                return package
        return None

    def _find_torch_archive(self, backend: BackendName) -> CondaPackage | None:
        """torch as conda's archive; None where a backend takes torch from PyPI's wheel."""
        if backend.has_conda_layer:
            return self.torch_archive()
        return None

    def torch_layer(self, backend: BackendName) -> Layer:
        """The layer that torch comes from on a backend."""
        if self._find_torch_archive(backend):
            return Layer.CONDA
        return Layer.PIP

    def torch(self, backend: BackendName) -> str:
        archive = self._find_torch_archive(backend)
        return archive.version if archive else self.version(BackendName.PIP, "torch")

    def cxx11abi(self, backend: BackendName) -> bool:
        """Whether torch is built with the new C++ ABI."""
        archive = self._find_torch_archive(backend)
        if archive:
            return archive.channel != "pytorch"
        return version_tuple(self.torch(BackendName.PIP)) >= FIRST_WHEEL_WITH_NEW_ABI

    def cuda(self, backend: BackendName) -> str:
        """The CUDA that torch is built for, such as "12.0"; empty for a CPU build."""
        archive = self._find_torch_archive(backend)
        if (
            archive
        ):  # in the build string: cuda12.0 on the pytorch channel, cuda120 on conda-forge
            match = re.search(r"cuda(\d\d)\.?(\d+)", archive.build)
            return f"{match[1]}.{match[2]}" if match else ""
        return ".".join(
            self.version(BackendName.PIP, r"nvidia-cuda-runtime(-cu\d+)?").split(".")[
                :2
            ]
        )

    def cudnn(self, backend: BackendName) -> str:
        """The version of cuDNN.

        The pytorch channel's torch has cuDNN inside, and names its version in the build string.
        """
        archive = self._find_torch_archive(backend)
        if not archive:
            return self.version(BackendName.PIP, r"nvidia-cudnn(-cu\d+)?")
        match = re.search(r"cudnn([\d.]+)", archive.build)
        return match[1] if match else self.version(BackendName.CONDA, r"(lib)?cudnn")

    @property
    def mkl(self) -> bool:
        """Whether numpy is to compute with MKL on the conda backend."""
        return any(p.name == "libblas" and "mkl" in p.build for p in self.conda())


def list_environments() -> list[Environment]:
    """The repository's own: the default one, and those in environments/."""
    folders = sorted(path.parent for path in ROOT.glob(f"environments/*/{SPEC}"))
    return [Environment(folder) for folder in (ROOT, *folders)]


def find(text: str) -> Environment:
    """The environment that --environment names: one of ours, or a folder. Raises Stop."""
    for environment in list_environments():
        if text == environment.name:
            return environment
    folder = Path(os.path.realpath(os.path.expanduser(text)))
    if folder.is_file():
        raise UsageError(
            f"--environment {text}: is a file; give its folder, in which it has the name {SPEC}"
        )
    if not (folder / SPEC).is_file():
        names = [environment.name for environment in list_environments()]
        raise UsageError(
            f"--environment {text}: there are {' and '.join(names)}, and any folder with an "
            f"{SPEC}; this is none of them{did_you_mean(text, names)}"
        )
    return Environment(folder)


def name_in_mark(prefix: Path) -> str:
    """The environment that a prefix is of, as its mark says; the default one if it says nothing.

    The text is what --environment takes.
    """
    return str(read_json(prefix / MARK).get("environment") or "default")


@dataclass
class ComparedEnvironment:
    """The environment that --environment names: the verifier compares a prefix with it.

    It is set once, before a prefix is read: by the verifier, and in each child that runs a check,
    which is told what the verifier was told. `argument` is what --environment takes; where it is
    empty, a prefix is compared with the environment that its mark names. `find_compared` alone
    reads it.
    """

    argument: str = ""


COMPARISON = ComparedEnvironment()


def compare_with(text: str) -> None:
    """From now on `find_compared` gives this environment in this process: --environment.

    Raises Stop.
    """
    COMPARISON.argument = find(text).argument


def find_compared(prefix: Path) -> Environment:
    """The environment that the verifier compares a prefix with: that of --environment, or else the
    one that the prefix is of. Raises Stop.
    """
    if COMPARISON.argument:
        return _find_named(COMPARISON.argument, prefix)
    return find_by_prefix(prefix)


def find_by_prefix(prefix: Path) -> Environment:
    """The environment that a prefix is of, as its mark says. Raises Stop."""
    return _find_named(name_in_mark(prefix), prefix)


def _find_named(text: str, prefix: Path) -> Environment:
    try:
        return find(text)
    except Stop:
        raise Stop(
            f"{prefix} is of the environment {text}, which is gone: bring its folder back, or "
            "rebuild the prefix with --environment NAME --force"
        ) from None
