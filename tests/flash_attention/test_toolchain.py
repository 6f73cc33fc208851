"""Compilers and jobs for a build of flash-attn."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lockedenv.errors import Stop
from lockedenv.host.disks import GIB
from lockedenv.install.flash_attention import toolchain
from lockedenv.install.flash_attention.toolchain import (
    Jobs,
    build_time_text,
    choose_jobs,
    count_jobs,
    find_problem,
    find_toolchain,
    find_warning,
)


@pytest.fixture(autouse=True)
def machine_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "CUDA_FOLDERS", ())


@pytest.mark.parametrize(
    "cpus, free, threads, jobs",
    [
        (2, 24 * GIB, 1, 2),
        (16, 128 * GIB, 1, 16),
        (16, 30 * GIB, 1, 4),
        (8, 4 * GIB, 1, 1),
        (8, 128 * GIB, 4, 2),
        (0.5, 64 * GIB, 1, 1),
    ],
)
def test_jobs_by_cpus_and_memory(
    cpus: float, free: int, threads: int, jobs: int
) -> None:
    found = count_jobs(cpus, free, threads)
    assert found.count == jobs
    assert "free at" in found.reason


def test_jobs_that_were_asked_for_and_threads_that_are_no_number() -> None:
    jobs = choose_jobs(3, {})
    assert jobs.count == 3
    assert str(jobs).startswith("3 jobs at a time: as asked; ")
    with pytest.raises(
        Stop, match="NVCC_THREADS=many: give a positive number, or unset it"
    ):
        choose_jobs(None, {"NVCC_THREADS": "many"})


def test_a_build_takes_its_cpu_hours_by_the_jobs() -> None:
    assert build_time_text(["90"], Jobs(2, "")).startswith(
        "about 108 minutes; a cache that is kept"
    )
    assert build_time_text(["80", "90"], Jobs(4, "")).startswith("about 108 minutes; ")


@pytest.mark.parametrize(
    "nvcc, gcc, refused, warned",
    [
        ("12.4", "13.3.0", "", ""),
        ("12.4", "11.4.0", "", ""),
        ("12.6", "12.2.0", "", "nvcc is of CUDA 12.6, torch is built for 12.4"),
        (
            "13.0",
            "12.2.0",
            "nvcc is of CUDA 13.0, torch is built for 12.4: install nvcc 12.4",
            "",
        ),
        ("", "12.2.0", "no nvcc found: install nvcc 12.4", ""),
        (
            "12.4",
            "14.2.0",
            "g++ is 14.2.0, nvcc 12.4 takes up to 13: apt-get install g++-12",
            "",
        ),
        ("12.4", "", "no g++ found: apt-get install g++-12", ""),
    ],
)
def test_toolchains(nvcc: str, gcc: str, refused: str, warned: str) -> None:
    problem = find_problem("12.4", nvcc, gcc)
    assert problem.startswith(refused)
    assert bool(problem) == bool(refused)
    if not problem:
        warning = find_warning("12.4", nvcc)
        assert warning.startswith(warned)
        assert bool(warning) == bool(warned)


def make_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def make_cuda(home: Path, version: str, evidence: Path) -> Path:
    """A folder that looks like CUDA's; its nvcc leaves evidence that it ran."""
    make_program(home / "bin/nvcc", f"touch {evidence}\necho release {version},")
    (home / "include").mkdir()
    (home / "include/cuda_runtime.h").touch()
    return home


@pytest.mark.parametrize("path", ["/nowhere", "", ".", ":/nowhere", "bin"])
def test_nothing_in_the_current_folder_runs_where_path_has_no_nvcc(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """realpath("") is the current folder: a bin/nvcc nine characters above it was executed."""
    evidence = tmp_path / "it-ran"
    make_cuda(tmp_path / "downloads", "12.4", evidence)
    make_program(tmp_path / "downloads/bin/g++", f"touch {evidence}")
    (tmp_path / "downloads/12345678").mkdir()
    for folder in ("downloads", "downloads/bin", "downloads/12345678"):
        monkeypatch.chdir(tmp_path / folder)
        with pytest.raises(Stop, match="no nvcc found"):
            find_toolchain(tmp_path / "env", "12.4", {"PATH": path, "CUDA_HOME": "."})
    assert not evidence.exists()


def test_the_nvcc_of_torchs_own_cuda_is_taken_before_another(tmp_path: Path) -> None:
    evidence = tmp_path / "it-ran"
    older = make_cuda(tmp_path / "cuda-12.0", "12.0", evidence)
    same = make_cuda(tmp_path / "cuda-12.4", "12.4", evidence)
    make_program(tmp_path / "gcc/g++", "echo 12.2.0")
    environ = {
        "CUDA_HOME": str(older),
        "PATH": f"{same}/bin:{tmp_path}/gcc:{os.defpath}",
    }
    tools = find_toolchain(tmp_path / "env", "12.4", environ)
    assert (tools.cuda_home, tools.nvcc, tools.warning) == (same, "12.4", "")
    assert tools.headers == same / "include"
    linked = tmp_path / "links/nvcc"
    linked.parent.mkdir()
    linked.symlink_to(same / "bin/nvcc")
    environ["PATH"] = f"{linked.parent}:{tmp_path}/gcc:{os.defpath}"
    assert find_toolchain(tmp_path / "env", "12.4", environ).cuda_home == same
