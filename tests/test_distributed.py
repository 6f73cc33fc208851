"""The check across ranks: real processes under torchrun with gloo, in the real environment."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path
from typing import Any, List

import pytest
from conftest import ROOT, clean_environ, sh

PROGRAM = ROOT / "scripts/verify_environment.py"
ENVIRON = clean_environ(OMP_NUM_THREADS="1")


def torchrun(prefix: Path, *options: Any) -> List[str]:
    return [str(x) for x in (prefix / "bin/python", "-m", "torch.distributed.run", *options)]


@pytest.fixture
def other(pip_environment: Path, tmp_path: Path) -> Path:
    """The same environment in another place, of links, but with another version of idna."""
    prefix = tmp_path / "other"
    sh("cp", "-al", pip_environment, prefix)
    metadata = next(prefix.glob("lib/python3.11/site-packages/idna-*.dist-info")) / "METADATA"
    text = metadata.read_text()
    metadata.unlink()
    metadata.write_text(re.sub("^Version: .*", "Version: 3.0", text, flags=re.M))
    return prefix


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_agree(ranks: int, pip_environment: Path) -> None:
    done = sh(*torchrun(pip_environment, "--nproc-per-node", ranks, PROGRAM, "--distributed"), check=False, env=ENVIRON)
    assert done.returncode == 0, done.stdout
    assert f"{ranks} ranks" in done.stdout and f" 0-{ranks - 1} " in done.stdout
    assert "give the right values, fp32 and bf16" in done.stdout and "the same environment on every rank" in done.stdout


def launcher(tmp_path: Path, code: str) -> Path:
    """A program for torchrun that does something to one rank, then runs the verifier."""
    path = tmp_path / "launch.py"
    path.write_text(
        f"import os, sys, runpy\nrank = int(os.environ['RANK'])\nPROGRAM = {str(PROGRAM)!r}\n"
        f"{code}\nsys.argv = [PROGRAM, '--distributed', *sys.argv[1:]]\nrunpy.run_path(PROGRAM, run_name='__main__')\n"
    )
    return path


def test_a_rank_with_another_package_is_named(pip_environment: Path, other: Path, tmp_path: Path) -> None:
    """Rank 1 runs in the other prefix, which has another version of one package."""
    python = other / "bin/python"
    code = f"if rank == 1: os.execv({str(python)!r}, [{str(python)!r}, PROGRAM, '--distributed'])"
    done = sh(*torchrun(pip_environment, "--nproc-per-node", 2, launcher(tmp_path, code)), check=False, env=ENVIRON)
    assert done.returncode == 1, done.stdout
    assert re.search(
        r"rank [01] on \S+ is not like the others:\n  packages idna \(pip\): others .*, here ", done.stdout
    ), done.stdout
    assert "NOT the same environment on every rank" in done.stdout
    # Every rank exits 1, not rank 0 alone.
    assert len(set(re.findall(r"rank\s+: (\d)", done.stdout))) >= 1 and "exitcode  : 1" in done.stdout


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_killed_during_the_check_is_named(ranks: int, pip_environment: Path, tmp_path: Path) -> None:
    code = (
        "sys.path.insert(0, os.path.dirname(PROGRAM))\n"
        "from lockedenv.provenance import distributed\n"
        "if rank == 1: distributed.collectives = lambda *a: os.kill(os.getpid(), 9)\n"
    )
    done = sh(*torchrun(pip_environment, "--nproc-per-node", ranks, launcher(tmp_path, code)), check=False, env=ENVIRON)
    assert done.returncode == 1
    assert re.search(r"rank 0: rank 1 \(\S+\) died or hangs in `collectives`", done.stdout), done.stdout


def test_a_rank_that_never_joins_is_named(pip_environment: Path, tmp_path: Path) -> None:
    code = "if rank == 1: import time; time.sleep(600)"
    command = torchrun(pip_environment, "--nproc-per-node", 2, launcher(tmp_path, code), "--timeout", "15")
    done = sh(*command, check=False, env=ENVIRON)
    assert done.returncode == 1
    assert "rank 0: rank 1 did not get to `arrived` within 15 s: dead, hanging, or not started" in done.stdout, done.stdout


def test_a_rank_that_hangs_in_the_collectives_is_named(pip_environment: Path, tmp_path: Path) -> None:
    code = (
        "sys.path.insert(0, os.path.dirname(PROGRAM))\n"
        "from lockedenv.provenance import distributed\n"
        "import signal, time\n"  # SIGTERM ends it: torchrun would wait 30 s before it kills
        "if rank == 1: distributed.in_thread = lambda *a: (signal.signal(15, signal.SIG_DFL), time.sleep(600))\n"
    )
    command = torchrun(pip_environment, "--nproc-per-node", 2, launcher(tmp_path, code), "--timeout", "15")
    done = sh(*command, check=False, env=ENVIRON)
    assert done.returncode == 1 and re.search(r"rank 0: rank 1 \(\S+\) died or hangs in `collectives`", done.stdout), done.stdout


def test_wrong_values_are_seen(pip_environment: Path, tmp_path: Path) -> None:
    code = (
        "import torch.distributed as dist\n"
        "right = dist.all_reduce\n"
        "if rank == 1: dist.all_reduce = lambda x: (right(x), x.mul_(2))\n"
    )
    done = sh(*torchrun(pip_environment, "--nproc-per-node", 2, launcher(tmp_path, code)), check=False, env=ENVIRON)
    assert done.returncode == 1
    assert "all_reduce of float32 gives wrong values on rank 1" in done.stdout and "the collectives are WRONG" in done.stdout


@pytest.mark.parametrize("same", [True, False])
def test_two_nodes_each_with_its_own_prefix(same: bool, pip_environment: Path, other: Path, tmp_path: Path) -> None:
    """Two torchrun agents with a rendezvous between them."""
    if same:
        sh("rm", "-rf", other)
        sh("cp", "-al", pip_environment, other)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = []
    for prefix in (pip_environment, other):
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "x"]
        options = ["--nnodes", 2, "--nproc-per-node", 1, *meeting]
        command = torchrun(prefix, *options, PROGRAM, "--distributed")
        nodes.append(subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == ([0, 0] if same else [1, 1]), said
    wanted = "the same environment on every rank" if same else "NOT the same environment on every rank"
    assert any(wanted in text for text in said), said
    if not same:
        assert any("packages idna (pip)" in text for text in said)


def test_outside_torchrun_it_says_what_to_do(pip_environment: Path) -> None:
    environ = {k: v for k, v in ENVIRON.items() if k not in ("RANK", "WORLD_SIZE")}
    done = sh(pip_environment / "bin/python", PROGRAM, "--distributed", check=False, env=environ)
    assert done.returncode == 1 and "the ranks cannot meet" in done.stdout and "run it under torchrun" in done.stdout
    assert "Traceback" not in done.stdout
