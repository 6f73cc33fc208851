"""A child does not get what launchers and clusters set, and the report says what was cleared."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.host.launchers import child_environment, cleared_variables

VERIFY = ROOT / "scripts/verify_environment.py"
# Each failed `accelerate` on a healthy machine, or belongs to a family of which a member did.
OF_LAUNCHERS = (
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_FP8",
    "ACCELERATE_MIXED_PRECISION",
    "MV2_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PMI_SIZE",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "TORCHELASTIC_RUN_ID",
    "PET_NNODES",
    "DS_ACCELERATOR",
    "DEEPSPEED_USE_HPU",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
# What changes how a program computes, or where it finds things, stays the user's.
OF_THE_USER = (
    "NCCL_DEBUG",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "CUDA_HOME",
    "RUNPOD_GPU_COUNT",
    "LANG",
)


@pytest.mark.parametrize("name", OF_LAUNCHERS)
def test_a_launchers_variable_is_cleared(name: str) -> None:
    child = child_environment(Path("/prefix"), "cuda", {name: "1", "PATH": "/usr/bin"})
    assert name not in child
    assert cleared_variables({name: "1", "HOME": "/root"}) == [name]


@pytest.mark.parametrize("name", OF_THE_USER)
def test_the_users_own_variables_stay(name: str) -> None:
    child = child_environment(Path("/prefix"), "cuda", {name: "1", "PATH": "/usr/bin"})
    assert child[name] == "1"
    assert cleared_variables({name: "1"}) == []


def test_a_child_finds_the_prefix_first_and_fetches_nothing() -> None:
    child = child_environment(
        Path("/prefix"), "cpu", {"PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": "1"}
    )
    assert child["PATH"] == "/prefix/bin:/usr/bin"
    assert child["CUDA_VISIBLE_DEVICES"] == ""
    assert child["HF_HUB_OFFLINE"] == "1"
    assert child["PYTHONDONTWRITEBYTECODE"] == "1"
    assert child["PYTHONPATH"] == str(ROOT / "scripts")
    child = child_environment(Path("/prefix"), "cuda", {})
    assert child["PATH"] == f"/prefix/bin:{os.defpath}"
    assert "CUDA_VISIBLE_DEVICES" not in child


def test_the_report_names_what_was_cleared() -> None:
    environ = clean_environ(MV2_COMM_WORLD_SIZE="4", ACCELERATE_USE_FP8="true")
    done = sh(sys.executable, VERIFY, "--only", "locks", check=False, env=environ)
    assert (
        "cleared for the checks: ACCELERATE_USE_FP8, MV2_COMM_WORLD_SIZE" in done.stdout
    )
