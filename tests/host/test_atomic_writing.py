"""A file is written whole or not at all, whoever else writes it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lockedenv.host.files import write_atomically


def test_two_containers_with_equal_process_ids_write_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One took the other's half-written file, or found none."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    file = tmp_path / "hashes.json"
    text = "x" * 10_000
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write_atomically, file, text) for _ in range(400)]
        for written in writing:
            written.result()
    assert file.read_text() == text
    assert len(list(tmp_path.iterdir())) == 1
