"""Two nodes on this machine, each with a network, a host name, processes and mounts of its own. They need root."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fixtures.commands import clean_environ, sh
from fixtures.torchrun import torchrun

ADDRESSES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
ENVIRON = clean_environ(OMP_NUM_THREADS="1")
PATIENCE = 120  # seconds
NAMESPACES = "unshare --net --uts --mount --pid --fork --kill-child --mount-proc sh -c"
# $1 is the node's name, $2 the file that becomes /etc/hosts. It says an empty line when it is ready.
BECOME_A_NODE = """
hostname "$1" && mount --bind "$2" /etc/hosts && ip link set lo up && echo && exec sleep infinity
"""
# In up to 20 s a stage; torchrun's own time for the nodes to join is 600 s.
RENDEZVOUS = (
    "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint node1:29500 --rdzv-id x "
    "--rdzv-conf join_timeout=40"
)


def wait(is_so: Callable[[], Any], complaint: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.1)


class Nodes:
    """Two nodes with a link between them. `folder` gets what their programs print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.holders: dict[str, subprocess.Popen[str]] = {}
        self.pids: dict[str, int] = {}
        self.started: list[subprocess.Popen[str]] = []
        # Keeps a dead node's network, or the other would lose its end of the link.
        self.networks = contextlib.ExitStack()
        lines = ["127.0.0.1 localhost"]
        for node, address in ADDRESSES.items():
            lines.append(f"{address} {node}")
        (folder / "hosts").write_text("\n".join(lines) + "\n")

    def begin(self) -> None:
        for node in ADDRESSES:
            self._make(node)
        one, two = self.pids.values()
        sh(
            *f"ip link add eth0 netns {one} type veth peer name eth0 netns {two}".split()
        )
        for node, address in ADDRESSES.items():
            self.run(node, *f"ip address add {address}/24 dev eth0".split())
            self.run(node, *"ip link set eth0 up".split())

    def _make(self, node: str) -> None:
        arguments = ["sh", node, self.folder / "hosts"]
        command = [*NAMESPACES.split(), BECOME_A_NODE, *map(str, arguments)]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.holders[node] = holder
        assert holder.stdout, "no namespaces here"
        assert holder.stdout.readline(), "no namespaces here"
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text()
        self.pids[node] = int(children)
        self.networks.enter_context(open(f"/proc/{self.pids[node]}/ns/net"))

    def start(self, node: str, *command: Any, **environ: str) -> subprocess.Popen[str]:
        """A program on a node; what it prints is NODE.log."""
        enter = f"nsenter --target {self.pids[node]} --net --uts --mount --pid".split()
        words = [*enter, *map(str, command)]
        with open(self.folder / f"{node}.log", "a") as log:
            process = subprocess.Popen(
                words, stdout=log, stderr=log, text=True, env={**ENVIRON, **environ}
            )
        self.started.append(process)
        return process

    def run(self, node: str, *command: Any, **environ: str) -> None:
        assert self.start(node, *command, **environ).wait() == 0, (
            command,
            self.said(node),
        )

    def said(self, node: str) -> str:
        return (self.folder / f"{node}.log").read_text()

    def cut_off(self, node: str) -> None:
        self.run(node, *"ip link set eth0 down".split())

    def end(self, node: str) -> None:
        """As without power: what it has sent last is its last word."""
        self.cut_off(node)
        with self.holders.pop(node) as holder:
            holder.kill()

    def compare(
        self,
        prefix: Path,
        program: Path,
        during: Callable[[], Any] = int,
        **environ: str,
    ) -> list[int]:
        """The check under torchrun on both; the exit statuses. `during` is called meanwhile."""
        command = torchrun(
            prefix, *RENDEZVOUS.split(), program, "--distributed", "--timeout", 20
        )
        running = [self.start(node, *command, **environ) for node in ADDRESSES]
        during()
        # torchrun waits 300 s for an agent that is gone.
        return [process.wait(timeout=600) for process in running]

    def close(self) -> None:
        for node in list(self.holders):
            self.end(node)
        self.networks.close()
        for process in self.started:
            process.wait()
