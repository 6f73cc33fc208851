"""What is compiled at first use: compiled code is shown, and 'compiled' is no pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lockedenv.host.launchers import child_environment
from lockedenv.verify.checks import compilers

REPOSITORY = Path(__file__).parents[2]


def verify(name: str, **variables: str) -> str:
    """The verifier's line of one check, in processes of its own, with more variables."""
    environ = {**os.environ, **variables}
    environ.pop("PYTHONPATH", None)
    command = [
        sys.executable,
        "scripts/verify_environment.py",
        "--gpu",
        "off",
        "--only",
        name,
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout.decode()


@pytest.mark.usefixtures("own_variables")
def test_triton_compiles_for_a_gpu_that_is_not_there() -> None:
    result = compilers.triton_kernel("cpu")
    assert result.verdict == "compiled", result
    assert "compiled for sm_90, not run" in result.summary


@pytest.mark.usefixtures("own_variables")
def test_triton_compiles_for_the_gpu_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASH_ATTENTION_ARCH", "sm_80")
    assert "compiled for sm_80, not run" in compilers.triton_kernel("cpu").summary
    monkeypatch.setenv("FLASH_ATTENTION_ARCH", "an H100")
    result = compilers.triton_kernel("cpu")
    assert result.verdict == "fail"
    assert "write 90 or sm_90" in result.summary


@pytest.mark.usefixtures("own_variables")
def test_triton_check_fails_code_for_another_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilers, "read_cubin_architecture", lambda cubin: 80)
    result = compilers.triton_kernel("cpu")
    assert result.verdict == "fail"
    assert "code for sm_80, not for sm_90" in result.summary


@pytest.mark.usefixtures("own_variables")
def test_triton_check_refuses_the_assembler_of_a_system_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(tmp_path / "cuda/bin/ptxas"))
    result = compilers.triton_kernel("cpu")
    assert result.verdict == "fail"
    assert result.remedy == "unset TRITON_PTXAS_PATH"


def test_triton_check_in_the_verifier_is_compiled_and_no_pass() -> None:
    output = verify("triton")
    assert "COMPILED  triton" in output, output
    assert "0 passed, 1 compiled but not run" in output, output
    assert "verified: " not in output


def test_torch_compile_check_fails_when_compiled_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: lambda x: model(x) * 1.1)
    result = compilers.torch_compile("cpu")
    assert result.verdict == "fail"
    assert "difference from eager" in result.summary


def test_torch_compile_check_fails_where_nothing_was_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(compilers, "count_compiled_graphs", lambda: 0)
    result = compilers.torch_compile("cpu")
    assert result.verdict == "fail", result
    assert "0 of 2 graphs were compiled" in result.summary


@pytest.mark.parametrize("variable", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_torch_compile_check_fails_where_a_variable_turns_it_off(variable: str) -> None:
    output = verify("torch-compile", **{variable: "1"})
    assert "FAIL  torch-compile    0 of 2 graphs were compiled" in output, output
    assert f"> unset {variable}" in output


def test_torch_compile_check_fails_where_errors_fall_back_to_eager(
    tmp_path: Path,
) -> None:
    """TORCHDYNAMO_SUPPRESS_ERRORS runs the model as it is where the compiler fails."""
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    output = verify(
        "torch-compile",
        TORCHDYNAMO_SUPPRESS_ERRORS="1",
        CXX=str(compiler),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert "FAIL  torch-compile" in output, output
    assert "verified:" not in output, output


def test_torch_compile_check_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if not Path(sys.prefix, "bin/g++").exists():
        result = compilers.torch_compile("cpu")
        assert result.verdict == "skip"
        assert "apt-get install -y g++" in result.summary
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert f"there is no {tmp_path}/Python.h" in compilers.torch_compile("cpu").summary


SYSTEM_CUDA = Path(__file__).parent / "programs/use_the_cuda_stack.py"


def test_nothing_is_taken_from_a_system_cuda(tmp_path: Path) -> None:
    """With CUDA_HOME, CUDA_PATH and LD_LIBRARY_PATH of another CUDA, as RunPod's images set them.

    Its libraries have the names of ours and are no libraries: to load one is an error. With the
    wheels of CUDA 12 two kinds are found there first, as the check `variables` says: not here.
    """
    found_first: tuple[str, ...] = ()
    if str(torch.version.cuda).startswith("12."):
        found_first = ("libnvJitLink.so", "libcudnn_")
    cuda = tmp_path / "cuda"
    library_folder = cuda / "lib64"
    library_folder.mkdir(parents=True)
    (cuda / "bin").mkdir()
    for name in ("nvcc", "ptxas", "fatbinary", "nvdisasm", "cuobjdump"):
        tool = cuda / "bin" / name
        tool.write_text(f"#!/bin/sh\necho $0 >>{tmp_path}/started\nexit 1\n")
        tool.chmod(0o755)
    names = []
    for library in Path(sys.prefix).glob(
        "lib/python3*/site-packages/nvidia/**/lib*.so*"
    ):
        if not library.name.startswith(found_first or "-"):
            names.append(library.name)
    assert names, "there are no wheels of CUDA"
    for name in names:
        (library_folder / name).write_bytes(b"of another CUDA")
    environ: dict[str, Any] = child_environment(
        Path(sys.prefix), "cpu", dict(os.environ)
    )
    environ.update(
        CUDA_HOME=str(cuda),
        CUDA_PATH=str(cuda),
        LD_LIBRARY_PATH=str(library_folder),
        PATH=f"{environ['PATH']}:{cuda / 'bin'}",
        TRITON_CACHE_DIR=str(tmp_path / "triton"),
    )
    command = [sys.executable, str(SYSTEM_CUDA), str(cuda)]
    done = subprocess.run(
        command,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "nothing of it is loaded" in done.stdout, done.stdout
    assert not (tmp_path / "started").exists(), (tmp_path / "started").read_text()
