"""The fetcher waits for no server's return in these tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAXIMALCAI_RETRY_SECONDS", "0.01")
    monkeypatch.setenv("MAXIMALCAI_STALL_SECONDS", "1")
