"""FlashAttention 4's kernels are compiled for the GPUs asked for; a failure stops nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from lockedenv.install.flash_attention.precompile import kernel_folder, precompile_kernels
from lockedenv.spec.flash_attention_kernels import COMMON, Kernel
from lockedenv.spec.gpu_target import H100, GpuTarget

A100 = GpuTarget(80)
ANSWERS = """#!/bin/sh
echo "$FLASH_ATTENTION_ARCH $CUTE_DSL_ARCH $FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED" >>"$0.log"
echo "$FLASH_ATTENTION_CUTE_DSL_CACHE_DIR [$CUDA_VISIBLE_DEVICES] $3" >>"$0.log"
echo 'a line of a library'
echo '{"kernel": "first", "seconds": 1.5, "error": ""}'
echo '{"kernel": "second", "seconds": 0.5, "error": "RuntimeError: no"}'
exit 1
"""


def make_python(folder: Path, text: str) -> Path:
    python = folder / "python"
    python.write_text(text)
    python.chmod(0o755)
    return python


def test_each_target_has_its_kernels_and_their_errors(tmp_path: Path) -> None:
    python = make_python(tmp_path, ANSWERS)
    folder = kernel_folder(tmp_path / "cache")
    one, two = precompile_kernels(python, folder, [H100, GpuTarget(120)], 8, os.environ)
    assert one.target == H100 and two.target.name == "sm_120"
    assert [kernel.name for kernel in one.compiled] == ["first"]
    assert one.errors == ["second: RuntimeError: no"]
    log = (tmp_path / "python.log").read_text().splitlines()
    assert log[0] == "sm_90 sm_90a 1" and log[2] == "sm_120 sm_120a 1"
    assert log[1] == f"{folder} [] {len(COMMON)}", "no more processes than kernels, and no GPU held"
    assert folder.is_dir()


def test_an_a100_has_no_kernels_of_version_4(tmp_path: Path) -> None:
    python = make_python(tmp_path, ANSWERS)
    (done,) = precompile_kernels(python, tmp_path, [A100], 2, os.environ)
    assert done.errors == ["FlashAttention 4 has no backward for sm_80; use sdpa there"]
    assert not (tmp_path / "python.log").exists()


@pytest.mark.parametrize(
    "program, problem",
    [
        ("echo 'No module named cutlass' >&2; exit 1", "exit 1): No module named cutlass"),
        ("kill -9 $$", "nothing was compiled (exit -9): "),
    ],
)
def test_a_compiler_that_ends_without_an_answer(program: str, problem: str, tmp_path: Path) -> None:
    python = make_python(tmp_path, f"#!/bin/sh\n{program}\n")
    (done,) = precompile_kernels(python, tmp_path / "cache", [H100], 2, os.environ)
    assert len(done.errors) == 1 and done.errors[0].endswith(problem)


def test_a_compiler_that_hangs_is_stopped_with_its_processes(tmp_path: Path) -> None:
    python = make_python(tmp_path, "#!/bin/sh\nsleep 60 &\necho $! >$0.pid\nwait\n")
    began = time.monotonic()
    (done,) = precompile_kernels(
        python, tmp_path / "cache", [H100], 1, os.environ, limit=1.0, kernels=[Kernel(64)]
    )
    assert done.errors == ["not done within 1 s; stopped"] and time.monotonic() - began < 20
    child = int((tmp_path / "python.pid").read_text())
    status = Path(f"/proc/{child}/stat")
    assert not status.exists() or status.read_text().split()[2] in "ZX"
