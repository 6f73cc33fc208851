"""Places and environments that the tests of this folder begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from lockedenv.prefix.lifecycle import settle
from lockedenv.prefix.place import Prefix, find_prefix
from small_environment import install, verified


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where an environment is wanted; nothing is there."""
    return tmp_path / "env"


@pytest.fixture
def prefix(place: Path) -> Prefix:
    """An installed environment that was not verified yet."""
    return install(find_prefix(place))


@pytest.fixture
def used(prefix: Prefix) -> Prefix:
    """A verified environment, with the link to it."""
    return settle(verified(prefix), True, True, print)
