"""What flash-attn is built for: the architectures of the GPUs, and the torch of a prefix."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from flash_stand_ins import make_gpus
from lockedenv.errors import Stop
from lockedenv.host.gpus import Gpu
from lockedenv.install.flash_attention.target import choose_architectures, probe_torch


@pytest.mark.parametrize(
    "gpus, archs",
    [
        (make_gpus("9.0"), ["90"]),
        (make_gpus("8.0"), ["80"]),
        (make_gpus("9.0", "8.0"), ["80", "90"]),
        (make_gpus("9.0", mig=True), ["90"]),
        (make_gpus("8.9"), ["80"]),
        ([], []),
    ],
    ids=["H100 or H200", "A100", "mixed", "MIG", "L40S", "none"],
)
def test_architectures_from_the_gpus(gpus: list[Gpu], archs: list[str]) -> None:
    assert choose_architectures(gpus, "12.4") == archs


def test_architectures_asked_for_and_refused() -> None:
    assert choose_architectures([], "12.4", "90") == ["90"]
    assert choose_architectures([], "12.4", "9.0,80") == ["80", "90"]
    assert choose_architectures(make_gpus("10.0"), "12.9") == ["100"]
    v100 = make_gpus("7.0")
    b200 = make_gpus("10.0")
    for gpus, asked, name in (
        (v100, "", "7.0"),
        (b200, "", "10.0"),
        ([], "120", "12.0"),
    ):
        refused = f"cannot be built for compute capability {name} with CUDA 12.4"
        with pytest.raises(Stop, match=refused):
            choose_architectures(gpus, "12.4", asked)


def test_a_torch_whose_version_would_be_a_path_is_refused(tmp_path: Path) -> None:
    """It becomes a part of a folder's name in the cache."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    answer = '{"version": "../../x", "cuda": "", "cxx11abi": true, "python": "cp311", "platform": "p"}'
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    with pytest.raises(Stop, match="gives '../../x' as its version; reinstall torch"):
        probe_torch(tmp_path)


def test_a_torch_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    with pytest.raises(
        Stop, match="torch cannot be imported in .*No module named 'torch'"
    ):
        probe_torch(tmp_path)
