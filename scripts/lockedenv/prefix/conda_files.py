"""The names of the files that conda keeps in an environment, relative to it.

This module reads none of them; `prefix/records.py` reads the records.
"""

from __future__ import annotations

CONDA_META = "conda-meta"  # the folder that holds one record a package
HISTORY = f"{CONDA_META}/history"  # the commands that conda carried out, with times
STATE = f"{CONDA_META}/state"  # the variables that `conda env config vars set` sets


def record_path(name: str, version: str, build: str) -> str:
    """The path of a package's record."""
    return f"{CONDA_META}/{name}-{version}-{build}.json"


def is_in_conda_meta(path: str) -> bool:
    """Whether a path is a record of a package, or lies beside the records."""
    return path.startswith(f"{CONDA_META}/")
