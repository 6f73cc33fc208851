"""Runs programs of the tests under torchrun."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path
from typing import Any

from conftest import ROOT, clean_environ, sh

VERIFIER = ROOT / "scripts/verify_environment.py"
ENVIRON = clean_environ(OMP_NUM_THREADS="1")


def torchrun(prefix: Path, *options: Any) -> "list[str]":
    """The command that starts torchrun with a prefix's Python."""
    words = (prefix / "bin/python", "-m", "torch.distributed.run", *options)
    return [str(word) for word in words]


def run_ranks(
    prefix: Path, ranks: int, *command: Any, **environ: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a program on so many ranks of one node."""
    words = torchrun(prefix, "--nproc-per-node", ranks, *command)
    return sh(*words, check=False, env={**ENVIRON, **environ})


def run_nodes(
    prefixes: "list[Path]", ranks: int, *command: Any
) -> "subprocess.CompletedProcess[str]":
    """Runs a program with a torchrun agent for each prefix; what all said, and their one exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "x"]
    options = ["--nnodes", len(prefixes), "--nproc-per-node", ranks, *meeting, *command]
    agents = []
    for prefix in prefixes:
        agent = subprocess.Popen(
            torchrun(prefix, *options),
            env=ENVIRON,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        agents.append(agent)
    said = "".join(agent.communicate()[0] for agent in agents)
    statuses = {agent.returncode for agent in agents}
    assert len(statuses) == 1, said
    return subprocess.CompletedProcess(options, statuses.pop(), said)


def copy_with_another_package(prefix: Path, target: Path) -> Path:
    """The same environment in another place, of links, but with another version of idna."""
    sh("cp", "-al", prefix.resolve(), target)
    [site] = target.glob("lib/python3.*/site-packages")
    [metadata] = site.glob("idna-*.dist-info/METADATA")
    text = metadata.read_text()
    metadata.unlink()
    metadata.write_text(re.sub("^Version: .*", "Version: 3.0", text, flags=re.M))
    return target
