"""The backends and the layers of an environment, by the names that options, locks and records have
for them.
"""

from __future__ import annotations

from enum import Enum


class BackendName(str, Enum):
    """How an environment is made. The values stand in --backend, in a mark and in JSON."""

    CONDA = "conda"  # archives of conda channels, and the pip layer over them
    PIP = "pip"  # wheels alone, in a virtual environment

    def __str__(self) -> str:
        return str(self.value)

    @property
    def has_conda_layer(self) -> bool:
        """Whether archives of conda channels lie under its wheels: compilers, and mostly CUDA.

        It has conda's records and hooks then, and its wheels are those of the lock over conda.
        """
        return self is BackendName.CONDA

    @property
    def is_venv(self) -> bool:
        """Whether it is a virtual environment: Python and its standard library lie elsewhere."""
        return self is BackendName.PIP


class Layer(str, Enum):
    """What a package comes from. The values stand in the inventory and in JSON."""

    CONDA = "conda"  # an archive of a conda channel
    PIP = "pip"  # a wheel

    def __str__(self) -> str:
        return str(self.value)
