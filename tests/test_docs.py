"""The documents are true: versions are the locks', files exist, options exist, nothing is left out of the registry."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Dict, Set

import pytest
from conftest import ROOT
from lockedenv import locks, post_create, setup, verify
from lockedenv.checks import load

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text() for path in DOCS}


def tracked() -> Set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_readmes_versions_are_the_locks() -> None:
    versions: Dict[str, str] = {"python": "3.11"}
    for name in ("requirements.txt", "locks/flash-attn.txt"):
        versions.update({p.name: p.version for p in locks.read_pip_lock(ROOT / name)})
    rows = re.findall(r"^\| ([a-z-]+)[^|]*\| ([\d.a-z]+) \|", TEXTS["README.md"], re.M)
    rows = rows[1:]
    assert len(rows) == 12
    assert [(n, v) for n, v in rows if versions[n] != v] == []
    counts = (
        len(locks.read_conda_lock().packages),
        len(locks.read_pip_lock(locks.PIP_LOCK)),
        len(locks.read_pip_lock(locks.REQUIREMENTS)),
    )
    assert "{} conda archives and {} wheels, or {} wheels".format(*counts) in TEXTS["README.md"]


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_and_option_that_a_document_names_exists(name: str) -> None:
    text = TEXTS[name]
    for path in re.findall(
        r"(?<![\w/~-])((?:scripts|tests|locks|docs|benchmarks)/[\w./-]+\.(?:sh|py|txt|yml|md|json))", text
    ):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\(([^)#:]+\.md)[^)]*\)", text):
        assert ((ROOT if name == "README.md" else ROOT / "docs") / target).exists(), target
    options = {
        "setup_runpod_environment.sh": setup.parser().format_help(),
        "verify_environment.py": verify.parser().format_help(),
        "lock.sh": (ROOT / "scripts/lock.sh").read_text(),
        "post_create.sh": setup.parser().format_help(),
        "run.sh": (ROOT / "tests/run.sh").read_text(),
    }
    for script, rest in re.findall(r"(?:scripts|tests)/(\w+\.(?:sh|py))((?: +(?:--[\w-]+|[\w./,:]+))*)", text):
        for option in re.findall(r"--[\w-]+", rest):
            assert option in options.get(script, option), f"{script} has no {option}"
    for names in re.findall(r"--(?:only|skip) ([\w,-]+)", text):
        assert set(names.split(",")) <= set(load()), names


def test_the_registry_names_every_file_and_no_other() -> None:
    text = TEXTS["IMPLEMENTATION_REGISTRY.md"]
    named = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    assert len(named) == len(set(named))
    assert [name for name in named if name not in tracked()] == []
    wanted = {name for name in tracked() if name.startswith(("scripts/", "locks/"))}
    assert sorted(wanted - set(named)) == []
    for tests in re.findall(r"`(tests/[^`]+)`", text):
        assert (ROOT / tests).exists(), tests


def test_every_check_has_a_name_a_proof_and_a_remedy() -> None:
    for check in load().values():
        assert check.proves and check.remedy and re.fullmatch("[a-z0-9-]+", check.name)


def test_the_help_names_every_option_that_both_scripts_share() -> None:
    assert post_create.STEPS + 3 == setup.STEPS
    for option in ("--mirror", "--download-only", "--offline", "--force", "--dry-run", "--quiet", "--arch", "--jobs"):
        assert option in setup.parser().format_help()


def test_no_path_of_a_machine_is_committed() -> None:
    for name in tracked():
        path = Path(ROOT, name)
        if path.suffix in (".py", ".sh", ".md", ".yml", ".txt", ".json", ".toml"):
            assert not re.search(r"(^|[^\w.])/(work|farm)/", path.read_text()), name
