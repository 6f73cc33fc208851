"""The programs that install and are in no environment's lock, pinned by hash."""

from __future__ import annotations

import json
from pathlib import Path

from lockedenv.spec.locks import CondaPackage

# conda-forge's archive of micromamba; 2.5.0 is the version whose installing of a lock was studied.
MICROMAMBA = CondaPackage(
    **json.loads(Path(__file__).with_name("micromamba.json").read_text())
)
