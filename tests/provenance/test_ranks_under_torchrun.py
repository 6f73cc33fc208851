"""The check across ranks: real processes under torchrun with gloo, in the real environment."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fixtures.commands import sh
from fixtures.torchrun import (
    ENVIRON,
    VERIFIER,
    copy_with_another_package,
    run_nodes,
    run_ranks,
)
from lockedenv.provenance.ranks.bandwidth import Way

SPOILED = Path(__file__).parent / "programs/spoiled_rank.py"


@pytest.fixture
def other(pip_environment: Path, tmp_path: Path) -> Path:
    return copy_with_another_package(pip_environment, tmp_path / "other")


def test_ranks_that_agree(pip_environment: Path) -> None:
    options = [VERIFIER, "--distributed", "--gpu", "off"]
    done = run_ranks(pip_environment, 2, *options, RUNPOD_GPU_COUNT="8")
    assert done.returncode == 0, done.stdout
    assert "2 ranks" in done.stdout
    assert " 0-1 " in done.stdout
    assert "give the right values, fp32 and bf16" in done.stdout
    assert "the same environment on every rank" in done.stdout
    assert (
        len(re.findall(r"^  all_reduce +[\d.]+ MiB +[\d.]+ GB/s$", done.stdout, re.M))
        == 3
    )
    assert re.search(r"^  \S+ +inside the node [\d.]+ GB/s$", done.stdout, re.M)
    assert "slower" not in done.stdout


@pytest.mark.parametrize(
    "options, rented, said",
    [
        ([], "8", "no nvidia-smi (RUNPOD_GPU_COUNT=8)"),
        (["--gpu", "require"], "", "no GPU found, and --gpu require was given"),
    ],
)
def test_ranks_without_the_gpus_that_they_should_have_do_not_pass(
    options: "list[str]", rented: str, said: str, pip_environment: Path
) -> None:
    """Nodes that had all lost their driver agreed over the CPU."""
    command = [VERIFIER, "--distributed", *options]
    done = run_ranks(pip_environment, 1, *command, RUNPOD_GPU_COUNT=rented)
    assert done.returncode == 1, done.stdout
    assert said in done.stdout, done.stdout
    assert (
        "NOT on every GPU: a node that should have GPUs has none that works"
        in done.stdout
    )


def test_a_rank_with_another_package_is_named(
    pip_environment: Path, other: Path
) -> None:
    """Rank 1 runs in the other prefix, which has another version of one package."""
    python = str(other / "bin/python")
    done = run_ranks(pip_environment, 2, SPOILED, "other_prefix", OTHER_PYTHON=python)
    assert done.returncode == 1, done.stdout
    named = r"rank [01] on \S+ is not like the others:\n  packages idna \(pip\): others .*, here "
    assert re.search(named, done.stdout), done.stdout
    assert "NOT the same environment on every rank" in done.stdout
    # Every rank exits 1, not rank 0 alone.
    assert re.search(r"rank\s+: \d", done.stdout)
    assert "exitcode  : 1" in done.stdout


def test_a_rank_killed_during_the_check_is_named(pip_environment: Path) -> None:
    done = run_ranks(pip_environment, 3, SPOILED, "killed")
    assert done.returncode == 1
    named = r"rank 0: rank 1 \(\S+\) died or hangs in `collectives`"
    assert re.search(named, done.stdout), done.stdout


def test_a_rank_that_never_joins_is_named(pip_environment: Path) -> None:
    done = run_ranks(pip_environment, 2, SPOILED, "never_joins", "--timeout", "15")
    assert done.returncode == 1
    named = "rank 0: rank 1 did not get to `arrived` within 15 s: dead, hanging, or not started"
    assert named in done.stdout, done.stdout


def test_a_rank_that_hangs_in_the_collectives_is_named(pip_environment: Path) -> None:
    done = run_ranks(
        pip_environment, 2, SPOILED, "hangs_in_collectives", "--timeout", "15"
    )
    named = r"rank 0: rank 1 \(\S+\) died or hangs in `collectives`"
    assert done.returncode == 1, done.stdout
    assert re.search(named, done.stdout), done.stdout


def test_wrong_values_are_seen(pip_environment: Path) -> None:
    done = run_ranks(pip_environment, 2, SPOILED, "wrong_values")
    assert done.returncode == 1
    assert "all_reduce of float32 gives wrong values on rank 1" in done.stdout
    assert "the collectives are WRONG" in done.stdout


def test_two_nodes_each_with_its_own_prefix(pip_environment: Path, other: Path) -> None:
    """Two torchrun agents with a rendezvous between them."""
    done = run_nodes([pip_environment, other], 1, VERIFIER, "--distributed")
    assert done.returncode == 1, done.stdout
    assert re.search(
        "^NOT the same environment on every rank$", done.stdout, re.M
    ), done.stdout
    assert (
        "slower" not in done.stdout
    )  # two nodes and one link: whose fault it is, nobody knows
    assert "packages idna (pip)" in done.stdout


def test_a_slow_node_is_named(pip_environment: Path, tmp_path: Path) -> None:
    """One of three, the last of which has the same environment in a prefix of its own."""
    sh("cp", "-al", pip_environment.resolve(), tmp_path / "same")
    prefixes = [pip_environment, pip_environment, tmp_path / "same"]
    done = run_nodes(prefixes, 2, SPOILED, "slow_node")
    assert done.returncode == 0, done.stdout  # it is told, and no more
    assert "the same environment on every rank" in done.stdout
    row = (
        r"^  \S+ \(group \d\) +inside the node [\d.]+ GB/s  between nodes [\d.]+ GB/s$"
    )
    assert len(re.findall(row, done.stdout, re.M)) == 3
    line = r"^\S+ \(group (\d)\) is slower (.*): [\d.]+ GB/s, the median is [\d.]+ GB/s; look at "
    slower = re.findall(line, done.stdout, re.M)
    assert slower == [("1", Way.INSIDE.value), ("1", Way.BETWEEN.value)], done.stdout


def test_a_rank_that_hangs_in_the_bandwidth_is_named_after_the_verdict(
    pip_environment: Path,
) -> None:
    done = run_ranks(
        pip_environment, 2, SPOILED, "hangs_in_bandwidth", "--timeout", "15"
    )
    assert done.returncode == 1
    named = r"give the right values(.|\n)*rank 0: rank 1 \(\S+\) died or hangs in `bandwidth`"
    assert re.search(named, done.stdout), done.stdout


def test_a_link_that_hangs_is_named_within_its_own_limit(pip_environment: Path) -> None:
    """Three ranks as three nodes; the link between the first two hangs."""
    done = run_ranks(pip_environment, 3, SPOILED, "hanging_link")
    assert done.returncode == 1
    late = (
        r"rank 2: rank 0 \(\S+\), rank 1 \(\S+\) did not get to `bandwidth step 2, between nodes` "
        r"within [5-8] s: dead, hanging"
    )
    assert re.search(late, done.stdout), done.stdout


@pytest.mark.long
def test_ranks_that_compute_certificates_under_torchrun(
    pip_environment: Path, tmp_path: Path
) -> None:
    target = tmp_path / "all.json"
    options = ["--certificate", target, "--timeout", "300"]
    done = run_ranks(pip_environment, 3, SPOILED, "other_kernels", *options)
    assert done.returncode == 0, done.stdout
    assert "every rank computes the same" in done.stdout, done.stdout
    assert json.loads(target.read_text())["task"]["steps"] == 2


def test_outside_torchrun_it_says_what_to_do(pip_environment: Path) -> None:
    command = [pip_environment / "bin/python", VERIFIER, "--distributed"]
    environ = {
        name: value
        for name, value in ENVIRON.items()
        if name not in ("RANK", "WORLD_SIZE")
    }
    done = sh(*command, check=False, env=environ)
    assert done.returncode == 1
    assert "the ranks cannot meet" in done.stdout
    assert "run it under torchrun" in done.stdout
    assert "Traceback" not in done.stdout
    none = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "x",
    }
    done = sh(*command, check=False, env={**environ, **none})
    assert done.returncode == 1, done.stdout
    assert "the ranks cannot meet: " in done.stdout, done.stdout
    assert "Traceback" not in done.stdout
