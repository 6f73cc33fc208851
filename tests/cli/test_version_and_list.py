"""What every script says of itself, and the list of checks."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
from fixtures.commands import ROOT, clean_environ, sh
from fixtures.conda_environment import CondaEnvironment
from lockedenv import VERSION

SCHEMAS = ROOT / "scripts/lockedenv/schemas"
SCRIPTS = (
    "setup_runpod_environment.sh",
    "post_create.sh",
    "verify_environment.py",
    "lock.sh",
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_tells_its_version_and_has_examples(script: str) -> None:
    said = sh(ROOT / "scripts" / script, "--version").stdout
    assert re.fullmatch(rf"maximalcai {VERSION}, commit [\w.-]+\n", said)
    assert (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1].startswith(VERSION)
    text = sh(ROOT / "scripts" / script, "--help").stdout
    assert "--version" in text
    assert text.count(f"scripts/{script}") > 2
    assert "exit" in text


def test_the_list_of_checks_as_json_and_results_on_standard_output(
    conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    path = tmp_path / "checks.json"
    assert conda_environment.verify("--list", "--json", str(path)).stdout == ""
    document = json.loads(path.read_text())
    jsonschema.validate(
        document, json.loads((SCHEMAS / "list.schema.json").read_text())
    )
    listed = conda_environment.verify("--list").stdout.splitlines()
    assert [check["name"] for check in document["checks"]] == [
        line.split()[0] for line in listed
    ]
    python = conda_environment.prefix / "bin/python"
    program = conda_environment.project / "scripts/verify_environment.py"
    done = subprocess.run(
        [python, program, "--level", "quick", "--json", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environ(),
    )
    document = json.loads(done.stdout)
    jsonschema.validate(
        document, json.loads((SCHEMAS / "verify.schema.json").read_text())
    )
    assert document["exit_status"] == 0
    assert "verified: no check failed" in done.stderr
