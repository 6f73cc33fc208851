"""The examples are what the document shows, and what Slurm and SkyPilot take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.commands import ROOT, sh

EXAMPLES = sorted((ROOT / "examples").iterdir())
SLURM = ROOT / "examples/slurm.sbatch"
SKYPILOT = ROOT / "examples/skypilot.yaml"
# SkyPilot itself needs 50 packages and an older click than the tests' tools. What its schema takes,
# of the keys that a task like ours could have (sky/utils/schemas.py of 0.14.1, get_task_schema and
# the resources' schema):
TASK = {
    "name": str,
    "workdir": str,
    "num_nodes": int,
    "resources": dict,
    "envs": dict,
    "setup": str,
    "run": str,
}
RESOURCES = {
    "accelerators": str,
    "disk_size": int,
    "image_id": str,
    "infra": str,
    "use_spot": bool,
    "network_tier": str,
}
# What it sets in each node's `run`:
# https://docs.skypilot.co/en/latest/running-jobs/environment-variables.html
SETS = {
    "SKYPILOT_NODE_IPS",
    "SKYPILOT_NUM_NODES",
    "SKYPILOT_NODE_RANK",
    "SKYPILOT_NUM_GPUS_PER_NODE",
    "SKYPILOT_TASK_ID",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_document_links_each_example(path: Path) -> None:
    texts = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    assert any(f"](../examples/{path.name})" in text for text in texts)


def find_wrong_keys(data: dict[str, Any], types: dict[str, type]) -> list[str]:
    """The keys that are not in a schema, or not of its type."""
    wrong = []
    for key, value in data.items():
        if key not in types or not isinstance(value, types[key]):
            wrong.append(key)
    return wrong


def test_skypilot_takes_its_example() -> None:
    task = yaml.safe_load(SKYPILOT.read_text())
    assert find_wrong_keys(task, TASK) == []
    assert find_wrong_keys(task["resources"], RESOURCES) == []
    assert task["num_nodes"] > 1
    assert re.fullmatch(r"[A-Z]+\d+:\d+", task["resources"]["accelerators"])
    assert set(re.findall(r"\$\{?(SKYPILOT_\w+)", task["run"])) <= SETS
    for script in (task["setup"], task["run"]):
        sh("bash", "-n", "-c", script)


def test_slurm_reads_its_options_and_runs_one_torchrun_a_node(tmp_path: Path) -> None:
    sh("bash", "-n", SLURM)
    head = SLURM.read_text().split("\nset -euo pipefail\n")[0].splitlines()
    assert head[0].startswith("#!"), "Slurm reads options up to the first command"
    assert all(
        line.startswith("#") for line in head
    ), "Slurm reads options up to the first command"
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", "\n".join(head), re.M))
    assert len(options) == SLURM.read_text().count("#SBATCH")
    assert options["ntasks-per-node"] == "1"
    for name, text in (
        ("scontrol", "printf '%s\\n' node{1..9999}"),
        ("srun", 'printf "%s\\n" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_JOB_NODELIST": "node[1-9999]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": "/repository",
    }
    words = sh(
        "bash", SLURM, env={"PATH": f"{tmp_path}:/usr/bin:/bin", **job}
    ).stdout.split()
    assert words[words.index("--nproc-per-node") + 1] == options["gpus-per-node"]
    assert words[words.index("--rdzv-endpoint") + 1] == "node1:29500"
    assert words[-2:] == ["/repository/scripts/verify_environment.py", "--distributed"]
