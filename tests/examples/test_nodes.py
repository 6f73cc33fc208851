"""--long: the check of ranks between two nodes, under torchrun and under Slurm itself.

They need root. Slurm's own programs are Debian's: apt-get install slurm-wlm munge
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures.commands import ROOT
from fixtures.torchrun import copy_with_another_package
from two_nodes import ADDRESSES, Nodes, wait

pytestmark = pytest.mark.long
HERE = Path(__file__).parent
VERIFIER = ROOT / "scripts/verify_environment.py"
HALTING = HERE / "programs/halting_verifier.py"
SLURM_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
BLOCK = "iptables --append INPUT --protocol tcp --dport 29500 --in-interface eth0 --jump DROP"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    if os.getuid():
        pytest.skip("nodes of their own need root")
    both = Nodes(tmp_path)
    try:
        both.begin()
        yield both
    finally:
        both.close()


def halting_variables(folder: Path) -> dict[str, str]:
    """What the halting verifier reads."""
    return {"HALT_FOLDER": str(folder), "HALT_SCRIPTS": str(ROOT / "scripts")}


def go_on_without(ranks: int, folder: Path, cut: Callable[[], Any]) -> None:
    """Once all ranks are there."""

    def all_are_there() -> bool:
        return len(list(folder.glob("rank*"))) == ranks

    wait(all_are_there, "the ranks do not get to the collectives")
    cut()
    (folder / "go").touch()


def test_two_networks_and_a_link_between_them(
    nodes: Nodes, pip_environment: Path
) -> None:
    assert nodes.compare(pip_environment, VERIFIER) == [0, 0], nodes.said("node1")
    said = nodes.said("node1") + nodes.said("node2")
    assert "the same environment on every rank" in said
    assert "give the right values, fp32 and bf16" in said
    assert re.search(r"^node1 +\d ", said, re.M)
    assert re.search(r"^node2 +\d ", said, re.M)
    assert re.search(r"^  node2 +between nodes [\d.]+ GB/s", said, re.M), said


def test_a_link_cut_in_the_middle_of_the_collectives(
    nodes: Nodes, pip_environment: Path
) -> None:
    def cut() -> None:
        go_on_without(2, nodes.folder, lambda: nodes.cut_off("node1"))

    statuses = nodes.compare(
        pip_environment, HALTING, cut, **halting_variables(nodes.folder)
    )
    assert 0 not in statuses
    # torchrun gives the numbers of the ranks.
    first, other = ADDRESSES
    if "rank 0:" not in nodes.said(first):
        first, other = other, first
    death = f"rank 0: rank 1 ({other}) died or hangs in `collectives`"
    assert death in nodes.said(first), nodes.said(first)
    loss = "rank 1: the store does not answer: its node, rank 0's, died or lost the network"
    assert loss in nodes.said(other), nodes.said(other)


def test_a_blocked_port(nodes: Nodes, pip_environment: Path) -> None:
    nodes.run("node1", *BLOCK.split())
    assert 0 not in nodes.compare(pip_environment, VERIFIER)
    assert "29500" in nodes.said("node2"), nodes.said("node2")


@pytest.fixture
def slurm(nodes: Nodes) -> Nodes:
    missing = [program for program in SLURM_PROGRAMS if not shutil.which(program)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    folder = nodes.folder
    for name in ("state", *ADDRESSES):
        (folder / name).mkdir()
    template = (HERE / "slurm.conf.template").read_text()
    (folder / "slurm.conf").write_text(template.format(folder=folder))
    for number in range(8):
        (folder / f"gpu{number}").touch()
    # Nothing that CUDA could use.
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")]
    munge = [
        "munged",
        "--force",
        f"--key-file={folder}/key",
        f"--socket={folder}/munge",
        *files,
    ]
    nodes.run("node1", *munge)
    nodes.start("node1", "slurmctld", "-D", SLURM_CONF=f"{folder}/slurm.conf")
    for node in ADDRESSES:
        nodes.start(node, "slurmd", "-D", SLURM_CONF=f"{folder}/slurm.conf")
    return nodes


@dataclass(frozen=True)
class Job:
    """How examples/slurm.sbatch ended, and its output."""

    status: int
    said: str


def submit(
    slurm: Nodes,
    prefix: Path,
    repository: Path = ROOT,
    during: Callable[[], Any] = int,
    **environ: str,
) -> Job:
    """Runs examples/slurm.sbatch from a repository's folder. `during` is called meanwhile."""
    out = slurm.folder / "job.log"
    submission = ["sbatch", "--wait", f"--output={out}", "examples/slurm.sbatch"]
    variables = {
        "SLURM_CONF": f"{slurm.folder}/slurm.conf",
        "PREFIX": str(prefix),
        **environ,
    }
    job = slurm.start("node1", "env", "-C", repository, *submission, **variables)
    during()
    status = job.wait(timeout=400)
    return Job(status, out.read_text() if out.exists() else slurm.said("node1"))


def test_slurm_runs_the_example(slurm: Nodes, pip_environment: Path) -> None:
    job = submit(slurm, pip_environment)
    assert job.status == 0, job.said
    assert "the same environment on every rank" in job.said, job.said
    assert "16 ranks" in job.said
    assert re.search(r"^node1 .*\n(.*\n)*?node2 ", job.said, re.M), job.said


def test_slurm_and_another_package_in_one_nodes_prefix(
    slurm: Nodes, pip_environment: Path, folder: Path
) -> None:
    other = copy_with_another_package(pip_environment, folder / "other")
    slurm.run("node2", "mount", "--bind", other, pip_environment)
    job = submit(slurm, pip_environment)
    assert job.status != 0, job.said
    assert "NOT the same environment on every rank" in job.said, job.said
    difference = (
        r"on node2 is not like the others:\n  packages idna \(pip\): others .*, here "
    )
    assert re.search(difference, job.said), job.said


@pytest.fixture
def halting_repository(tmp_path: Path) -> Path:
    """A folder whose verifier halts before the collectives, and the example of the repository."""
    copy = tmp_path / "halting"
    for name in ("scripts", "examples"):
        (copy / name).mkdir(parents=True)
    shutil.copy2(HALTING, copy / "scripts/verify_environment.py")
    shutil.copy2(ROOT / "examples/slurm.sbatch", copy / "examples")
    return copy


def test_slurm_and_a_node_that_dies_in_the_middle(
    slurm: Nodes, pip_environment: Path, halting_repository: Path
) -> None:
    def end_node2() -> None:
        go_on_without(16, slurm.folder, lambda: slurm.end("node2"))

    job = submit(
        slurm,
        pip_environment,
        halting_repository,
        end_node2,
        **halting_variables(slurm.folder),
    )
    assert job.status != 0
    death = r"rank \d+ \(node2\).* died or hangs in `collectives`"
    assert re.search(death, job.said), job.said
