"""Fixtures of the tests that the environment's own Python runs: each has a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test; nothing is fetched from a hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a check sets for its own process is gone after the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
