"""Locks, libraries, variables, places and children: each fault is seen and named."""

from __future__ import annotations

import pytest
from breaking import (
    CHILD,
    Fault,
    assert_seen,
    both,
    dist,
    link,
    lock,
    module,
    record,
    undist,
    uv,
    write,
)
from fixtures.conda_environment import CondaEnvironment, remark

FAULTS = [
    Fault(
        "mkl 2024.1",
        "blas",
        "mkl is 2024.1.0: torch and numpy are locked with 2022.1.0",
        record("mkl", version="2024.1.0"),
    ),
    Fault(
        "OpenBLAS instead of MKL",
        "blas",
        "numpy's BLAS is not MKL",
        record("libblas", build="16_linux64_openblas"),
    ),
    Fault(
        "libblas links elsewhere",
        "blas",
        "libblas.so.3 is libopenblas.so.0",
        both(
            write("lib/libopenblas.so.0", lambda _: b"blas"),
            link("lib/libblas.so.3", "libopenblas.so.0"),
        ),
    ),
    Fault(
        "numpy from pip",
        "blas",
        "numpy 2.4.6 was put there by pip: its BLAS is OpenBLAS",
        uv("install", "--reinstall", "--no-deps", "numpy==2.4.6"),
    ),
    Fault(
        "a second OpenMP runtime",
        "openmp",
        "2 OpenMP runtimes: libgomp.so.1, libomp.so",
        write("lib/libgomp.so.1", lambda _: b"another"),
    ),
    Fault(
        "another CUDA on LD_LIBRARY_PATH",
        "variables",
        "LD_LIBRARY_PATH has",
        write("../elsewhere/libnvJitLink.so.12", lambda _: b""),
        {"LD_LIBRARY_PATH": "{prefix}/../elsewhere"},
    ),
    Fault(
        "BNB_CUDA_VERSION",
        "variables",
        "BNB_CUDA_VERSION=118",
        lambda env: None,
        {"BNB_CUDA_VERSION": "118"},
    ),
    Fault(
        "PYTHONPATH",
        "variables",
        "elsewhere is searched before",
        write("../elsewhere/module.py", lambda _: b""),
        {"PYTHONPATH": "{prefix}/../elsewhere"},
    ),
    Fault(
        "LD_AUDIT",
        "variables",
        "LD_AUDIT=/nowhere/audit.so runs in every program",
        lambda env: None,
        {"LD_AUDIT": "/nowhere/audit.so"},
    ),
    Fault(
        "hf-transfer enabled and missing",
        "hf-transfer",
        "is set and hf_transfer is not installed",
        uv("uninstall", "hf-transfer"),
        {"HF_HUB_ENABLE_HF_TRANSFER": "1"},
    ),
    Fault(
        "torchao that breaks peft",
        "companions",
        "torchao 0.10: it is not of the lock",
        dist("torchao", "0.10"),
    ),
    Fault(
        "setuptools missing",
        "companions",
        "setuptools is missing: triton imports it",
        undist("setuptools"),
    ),
    Fault(
        "pip's CUDA libraries beside conda's",
        "cuda-libraries",
        "nvidia-cublas-cu12 12.8.3 (pip's CUDA library beside",
        dist(
            "nvidia_cublas_cu12",
            "12.8.3",
            "Metadata-Version: 2.1\nName: nvidia-cublas-cu12\nVersion: 12.8.3\n",
        ),
    ),
    Fault(
        "a CUDA library of 12.8",
        "cuda-libraries",
        "libcufft 11.3.3.83 (locked is 11.2.1.3)",
        record("libcufft", version="11.3.3.83"),
    ),
    Fault("no torch", "torch-origin", "torch is not installed", undist("torch")),
    Fault(
        "pip's torch over conda's",
        "torch-origin",
        "torch 2.6.0 was put there by pip",
        dist("torch", "2.6.0"),
    ),
    Fault(
        "lock missing",
        "locks",
        "conda-lock.yml: is not there",
        lambda env: (env.project / "conda-lock.yml").unlink(),
    ),
    Fault(
        "lock malformed",
        "locks",
        "not as scripts/lock.sh writes it",
        lock("conda-lock.yml", lambda t: t.replace('"hash":', '"hash"')),
    ),
    Fault(
        "lock of another version",
        "locks",
        "not a conda-lock file of version 1",
        lock("conda-lock.yml", lambda t: t.replace("version: 1\n", "version: 9\n", 1)),
    ),
    Fault(
        "pip lock cut short",
        "locks",
        "pip.txt:4: not as scripts/lock.sh writes it",
        lock("locks/pip.txt", lambda t: t[:-60]),
    ),
    Fault(
        "pip lock cut at a line",
        "locks",
        "pip.txt: is cut short: it ends after 3 packages",
        lock("locks/pip.txt", lambda t: "".join(t.splitlines(True)[:3])),
    ),
    Fault(
        "nothing to enter it with",
        "place",
        "/activate is missing",
        lambda env: (env.prefix / "activate").unlink(),
    ),
    Fault(
        "moved",
        "place",
        "and moved to",
        lambda env: remark(env.prefix, path="/elsewhere"),
    ),
    Fault(
        "child segfaults",
        "tokenizers",
        "killed by SIGSEGV: it crashed",
        module("import ctypes; ctypes.string_at(0)"),
        {},
        CHILD,
    ),
    Fault(
        "child aborts",
        "tokenizers",
        "killed by SIGABRT",
        module("import os; os.abort()"),
        {},
        CHILD,
    ),
    Fault(
        "child hangs",
        "tokenizers",
        "no answer within 2 s; stopped",
        module("import time; time.sleep(600)"),
        {},
        [*CHILD, "--timeout", "2"],
    ),
    Fault(
        "child killed",
        "tokenizers",
        "killed by SIGKILL: out of memory, or someone stopped it",
        module("import os; os.kill(os.getpid(), 9)"),
        {},
        CHILD,
    ),
    Fault(
        "child ends without an answer",
        "tokenizers",
        "ended without an answer (exit 3): gone",
        module("import os; os.write(2, b'gone\\n'); os._exit(3)"),
        {},
        CHILD,
    ),
    Fault(
        "child raises",
        "tokenizers",
        "ImportError: undefined symbol: __nvJitLinkComplete_12_4",
        module("raise ImportError('undefined symbol: __nvJitLinkComplete_12_4')"),
        {},
        CHILD,
    ),
    Fault(
        "no GPU where one is required",
        "driver",
        "no GPU found, and --gpu require was given",
        lambda env: None,
        {},
        ["--gpu", "require", "--level", "quick"],
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_seen_and_named_by_its_check_alone(
    fault: Fault, broken: CondaEnvironment
) -> None:
    assert_seen(fault, broken)
