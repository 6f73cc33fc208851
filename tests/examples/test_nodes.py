"""--long: two nodes on this machine, each with a network, a host name, processes and mounts of its own; torchrun, and Slurm itself.

They need root. Slurm's own programs are Debian's: apt-get install slurm-wlm munge
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from conftest import ROOT, clean_environ, sh
from torchrun import copy_with_another_package, torchrun

pytestmark = pytest.mark.long
ADDRESSES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
HOSTS = "".join(
    f"{address} {node}\n" for node, address in [("localhost", "127.0.0.1"), *ADDRESSES.items()]
)
ENVIRON = clean_environ(OMP_NUM_THREADS="1")
# Before the collectives, each rank says that it is there, and waits until it may go on.
HALT = """

right = check_collectives


def check_collectives(rank, world, device):
    import time
    from pathlib import Path

    Path(FOLDER, f"rank{rank}").touch()
    while not Path(FOLDER, "go").exists():
        time.sleep(0.05)
    return right(rank, world, device)
"""
SLURM_CONF = """
ClusterName=tests
SlurmctldHost=node1
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdTimeout=160
JobRequeue=0
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
MailProg=/bin/true
GresTypes=gpu
NodeName=node1 NodeAddr=10.77.0.1 CPUs=1 Gres=gpu:8
NodeName=node2 NodeAddr=10.77.0.2 CPUs=1 Gres=gpu:8
PartitionName=all Nodes=node1,node2 Default=YES
"""


def wait(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class Nodes:
    """Two nodes with a link between them. `folder` gets what their programs print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.holders: Dict[str, subprocess.Popen[str]] = {}
        self.pids: Dict[str, int] = {}
        self.started: List[subprocess.Popen[str]] = []
        self.networks = (
            contextlib.ExitStack()
        )  # keeps a dead node's, or the other would lose its end of the link
        (folder / "hosts").write_text(HOSTS)

    def begin(self) -> None:
        for node in ADDRESSES:
            inside = f"hostname {node} && mount --bind '{self.folder}/hosts' /etc/hosts && ip link set lo up && echo && exec sleep infinity"
            apart = (
                "unshare --net --uts --mount --pid --fork --kill-child --mount-proc sh -c".split()
            )
            self.holders[node] = holder = subprocess.Popen(
                [*apart, inside], stdout=subprocess.PIPE, text=True
            )
            assert holder.stdout and holder.stdout.readline(), "no namespaces here"
            self.pids[node] = int(
                Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text()
            )
            self.networks.enter_context(open(f"/proc/{self.pids[node]}/ns/net"))
        one, two = self.pids.values()
        sh(*f"ip link add eth0 netns {one} type veth peer name eth0 netns {two}".split())
        for node, address in ADDRESSES.items():
            self.run(node, *f"ip address add {address}/24 dev eth0".split())
            self.run(node, *"ip link set eth0 up".split())

    def start(self, node: str, *command: Any, **environ: str) -> "subprocess.Popen[str]":
        """A program on a node; what it prints is NODE.log."""
        enter = ["nsenter", "--target", str(self.pids[node]), "--net", "--uts", "--mount", "--pid"]
        with open(self.folder / f"{node}.log", "a") as log:
            command = [*enter, *map(str, command)]  # type: ignore[assignment]
            self.started.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, text=True, env={**ENVIRON, **environ}
                )
            )
        return self.started[-1]

    def run(self, node: str, *command: Any, **environ: str) -> None:
        assert self.start(node, *command, **environ).wait() == 0, (command, self.said(node))

    def said(self, node: str) -> str:
        return (self.folder / f"{node}.log").read_text()

    def end(self, node: str) -> None:
        """As without power: what it has sent last is its last word."""
        self.run(node, *"ip link set eth0 down".split())
        with self.holders.pop(node) as holder:
            holder.kill()

    def compare(self, prefix: Path, program: Path, during: Callable[[], Any] = int) -> List[int]:
        """The check under torchrun on both, in up to 20 s a stage; the exit statuses."""
        meet = "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint node1:29500 --rdzv-id x".split()
        meet += ["--rdzv-conf", "join_timeout=40"]  # seconds; torchrun's own are 600
        command = torchrun(prefix, *meet, program, "--distributed", "--timeout", 20)
        running = [self.start(node, *command) for node in ADDRESSES]
        during()
        return [
            process.wait(timeout=600) for process in running
        ]  # torchrun waits 300 s for an agent that is gone


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    if os.getuid():
        pytest.skip("nodes of their own need root")
    both = Nodes(tmp_path)
    try:
        both.begin()
        yield both
    finally:
        for node in list(both.holders):
            both.end(node)
        both.networks.close()
        for process in both.started:
            process.wait()


@pytest.fixture
def other(pip_environment: Path, tmp_path: Path) -> Path:
    return copy_with_another_package(pip_environment, tmp_path / "other")


@pytest.fixture
def halting(tmp_path: Path) -> Path:
    """A copy of the repository whose ranks halt before the collectives."""
    copy = tmp_path / "halting"
    for folder in ("scripts", "examples"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / "scripts/lockedenv/provenance/ranks/collectives.py", "a") as module:
        module.write(HALT.replace("FOLDER", repr(str(tmp_path))))
    return copy


def go_on_without(ranks: int, folder: Path, cut: Callable[[], Any]) -> None:
    """Once all ranks are there."""
    wait(lambda: len([*folder.glob("rank*")]) == ranks, "the ranks do not get to the collectives")
    cut()
    (folder / "go").touch()


def test_two_networks_and_a_link_between_them(nodes: Nodes, pip_environment: Path) -> None:
    assert nodes.compare(pip_environment, ROOT / "scripts/verify_environment.py") == [
        0,
        0,
    ], nodes.said("node1")
    said = nodes.said("node1") + nodes.said("node2")
    assert (
        "the same environment on every rank" in said
        and "give the right values, fp32 and bf16" in said
    )
    assert re.search(r"^node1 +\d ", said, re.M) and re.search(r"^node2 +\d ", said, re.M)
    assert re.search(r"^  node2 +between nodes [\d.]+ GB/s", said, re.M), said


def test_a_link_cut_in_the_middle_of_the_collectives(
    nodes: Nodes, pip_environment: Path, halting: Path
) -> None:
    def cut() -> None:
        go_on_without(2, nodes.folder, lambda: nodes.run("node1", *"ip link set eth0 down".split()))

    statuses = nodes.compare(pip_environment, halting / "scripts/verify_environment.py", cut)
    assert 0 not in statuses
    said = {node: nodes.said(node) for node in ADDRESSES}
    first = next(
        node for node in ADDRESSES if "rank 0:" in said.pop(node)
    )  # torchrun gives the numbers
    other_node, other_said = said.popitem()
    assert f"rank 0: rank 1 ({other_node}) died or hangs in `collectives`" in nodes.said(
        first
    ), nodes.said(first)
    assert (
        "rank 1: the store does not answer: its node, rank 0's, died or lost the network"
        in other_said
    ), other_said


def test_a_blocked_port(nodes: Nodes, pip_environment: Path) -> None:
    nodes.run(
        "node1",
        *"iptables --append INPUT --protocol tcp --dport 29500 --in-interface eth0 --jump DROP".split(),
    )
    assert 0 not in nodes.compare(pip_environment, ROOT / "scripts/verify_environment.py")
    assert "29500" in nodes.said("node2"), nodes.said("node2")


@pytest.fixture
def slurm(nodes: Nodes) -> Nodes:
    missing = [
        program
        for program in ("munged", "slurmctld", "slurmd", "sbatch")
        if not shutil.which(program)
    ]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    folder = nodes.folder
    for name in ("state", *ADDRESSES):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder))
    for number in range(8):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(
        f"Name=gpu File={folder}/gpu[0-7]\n"
    )  # nothing that CUDA could use
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")]
    nodes.run(
        "node1", "munged", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge", *files
    )
    nodes.start("node1", "slurmctld", "-D", SLURM_CONF=f"{folder}/slurm.conf")
    for node in ADDRESSES:
        nodes.start(node, "slurmd", "-D", SLURM_CONF=f"{folder}/slurm.conf")
    return nodes


def batch(slurm: Nodes, prefix: Path, repository: Path, during: Callable[[], Any] = int) -> Any:
    """The exit status of examples/slurm.sbatch, and its output."""
    out = slurm.folder / "job.log"
    command = [
        "env",
        "-C",
        repository,
        "sbatch",
        "--wait",
        f"--output={out}",
        "examples/slurm.sbatch",
    ]
    job = slurm.start(
        "node1", *command, SLURM_CONF=f"{slurm.folder}/slurm.conf", PREFIX=str(prefix)
    )
    during()
    status = job.wait(timeout=400)
    return status, out.read_text() if out.exists() else slurm.said("node1")


def test_slurm_runs_the_example(slurm: Nodes, pip_environment: Path) -> None:
    status, said = batch(slurm, pip_environment, ROOT)
    assert status == 0 and "the same environment on every rank" in said, said
    assert "16 ranks" in said and re.search(r"^node1 .*\n(.*\n)*?node2 ", said, re.M), said


def test_slurm_and_another_package_in_one_nodes_prefix(
    slurm: Nodes, pip_environment: Path, other: Path
) -> None:
    slurm.run("node2", "mount", "--bind", other, pip_environment)
    status, said = batch(slurm, pip_environment, ROOT)
    assert status != 0 and "NOT the same environment on every rank" in said, said
    assert re.search(
        r"on node2 is not like the others:\n  packages idna \(pip\): others .*, here ", said
    ), said


def test_slurm_and_a_node_that_dies_in_the_middle(
    slurm: Nodes, pip_environment: Path, halting: Path
) -> None:
    status, said = batch(
        slurm,
        pip_environment,
        halting,
        lambda: go_on_without(16, slurm.folder, lambda: slurm.end("node2")),
    )
    assert status != 0 and re.search(
        r"rank \d+ \(node2\).* died or hangs in `collectives`", said
    ), said
