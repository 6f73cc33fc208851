"""Texts of others that `isdigit` takes for a number, and `int` does not, are no crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.gpu_stand_ins import make_smi
from lockedenv.errors import Stop
from lockedenv.host.gpus import GpuError, find_count_problem, find_gpus
from lockedenv.host.numbers import parse_whole
from lockedenv.host.versions import version_tuple
from lockedenv.install.flash_attention.toolchain import choose_jobs

LONG = "9" * 5000  # more digits than `int` reads


@pytest.mark.parametrize("text", ["", "²", "-1", "1.5", "1e3", " 1", "0x1", LONG, "٣"])
def test_what_is_no_whole_number(text: str) -> None:
    assert parse_whole(text) is None


def test_whole_numbers() -> None:
    assert [parse_whole(text) for text in ("0", "007", "9" * 18)] == [0, 7, 10**18 - 1]


@pytest.mark.parametrize("count", ["²", "x", "-1", "1e1", "0" * 5000])
def test_a_count_of_gpus_that_is_none(count: str, tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path), "RUNPOD_GPU_COUNT": count}
    assert find_gpus(tmp_path, environ) == []
    assert find_count_problem(environ).endswith("it counts as none")


@pytest.mark.parametrize("count", [LONG, "9" * 26, "9" * 18, "12345", "0012345"])
def test_a_count_of_gpus_that_is_too_large_counts_as_one(
    count: str, tmp_path: Path
) -> None:
    """It counted as none: a pod without its GPU was verified."""
    environ = {"PATH": str(tmp_path), "RUNPOD_GPU_COUNT": count}
    with pytest.raises(GpuError, match="there is an NVIDIA GPU but no nvidia-smi"):
        find_gpus(tmp_path, environ)
    environ.update(make_smi(tmp_path / "bin", GPUS="1"))
    assert len(find_gpus(tmp_path, environ)) == 1
    assert find_count_problem(environ).endswith("it counts as one")


@pytest.mark.parametrize("threads", ["²", "0", LONG, "four"])
def test_threads_of_nvcc_that_are_no_number(threads: str) -> None:
    with pytest.raises(Stop, match="give a positive number"):
        choose_jobs(None, {"NVCC_THREADS": threads})


def test_a_version_of_many_digits() -> None:
    assert version_tuple(f"1.{LONG}") == (1, 10**18 - 1)
