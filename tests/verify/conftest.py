"""The small prefix that the tests of this folder begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_prefix import RUNPATH, SmallPrefix, elf


@pytest.fixture
def small(tmp_path: Path) -> SmallPrefix:
    """A whole prefix, with a library that looks for another one in a folder that is not there."""
    loader = elf("libother.so.2", "$ORIGIN/../nowhere/lib", RUNPATH)
    return SmallPrefix(tmp_path, {"demo/loader.so": loader})
