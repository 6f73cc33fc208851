"""On the PyPI backend Python is the machine's: it is a part of the manifest and of the fingerprint."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.prefix.records import read_prefix
from lockedenv.provenance.difference import (
    Agreement,
    DifferenceGroup,
    find_differences,
    judge,
)
from lockedenv.provenance.documents import DocumentError
from lockedenv.provenance.gather import make_manifest as gather_manifest
from lockedenv.provenance.manifest import read_manifest
from lockedenv.spec.layers import BackendName
from sample_documents import (
    OF_DEBIAN,
    OF_PYENV,
    make_manifest,
    make_package,
    version_1,
    write_manifest,
)

VERIFY = ROOT / "scripts/verify_environment.py"


def test_another_python_is_another_environment(tmp_path: Path) -> None:
    """The same wheels on Python 3.11.2 and 3.11.7."""
    then = write_manifest(tmp_path / "then.json", make_manifest(interpreter=OF_DEBIAN))
    now = write_manifest(tmp_path / "now.json", make_manifest(interpreter=OF_PYENV))
    done = sh(
        sys.executable, VERIFY, "--compare", then, now, check=False, env=clean_environ()
    )
    assert done.returncode == 1
    assert "NOT the same environment" in done.stdout
    assert "Python:\n" in done.stdout
    assert "  version                      3.11.2  ->  3.11.7\n" in done.stdout


@pytest.mark.parametrize("name", ["version", "build", "sha256"])
def test_each_fact_of_python_counts_and_its_place_does_not(name: str) -> None:
    first = make_manifest()
    changed = replace(OF_PYENV, **{name: "another"})
    assert judge(first, make_manifest(interpreter=changed)) is Agreement.DIFFERENT
    moved = replace(OF_PYENV, folder="/somewhere/else")
    assert judge(first, make_manifest(interpreter=moved)) is Agreement.SAME
    assert find_differences(first, make_manifest(interpreter=moved)) == []


def test_a_real_prefix_has_the_python_that_it_runs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        sh(sys.executable, "-m", "venv", "--without-pip", tmp_path / name)
    first = gather_manifest(read_prefix(tmp_path / "one"), ())
    second = gather_manifest(read_prefix(tmp_path / "two"), ())
    assert first.interpreter is not None
    assert first.interpreter.version == ".".join(map(str, sys.version_info[:3]))
    assert len(first.interpreter.sha256) == 64
    assert first.fingerprint == second.fingerprint
    path = write_manifest(tmp_path / "m.json", first)
    assert judge(read_manifest(path), second) is Agreement.SAME


def test_a_manifest_of_version_1_is_read_and_its_python_is_said_to_be_not_compared(
    tmp_path: Path,
) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps(version_1(make_manifest())))
    new = write_manifest(tmp_path / "new.json", make_manifest())
    command = [sys.executable, VERIFY, "--compare", old, new]
    done = sh(*command, check=False, env=clean_environ())
    assert done.returncode == 1, done.stdout
    assert "the same packages; Python was not compared" in done.stdout
    assert (
        f"{old} is of schema version 1, which does not record the machine's Python"
        in done.stdout
    )
    assert "make it again with --manifest FILE" in done.stdout
    document = json.loads(
        sh(*command, "--json", "-", check=False, env=clean_environ()).stdout
    )
    assert document["not_compared"] == ["Python"]
    assert document["same_environment"] is False


def test_of_version_1_other_packages_are_still_found(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps(version_1(make_manifest((make_package("idna", "3.0"),)))))
    first = read_manifest(old)
    assert judge(first, make_manifest()) is Agreement.DIFFERENT
    groups = {
        difference.group for difference in find_differences(first, make_manifest())
    }
    assert groups == {DifferenceGroup.PACKAGES}


def test_a_manifest_of_a_conda_prefix_needs_no_python_beside_its_packages(
    tmp_path: Path,
) -> None:
    """Version 1 had all of it: Python is one of the packages."""
    made = make_manifest(interpreter=None, backend=BackendName.CONDA)
    old = tmp_path / "old.json"
    old.write_text(json.dumps(version_1(made)))
    assert judge(read_manifest(old), made) is Agreement.SAME


def test_a_manifest_of_version_2_without_python_is_refused(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.json", make_manifest(interpreter=None))
    with pytest.raises(DocumentError, match="`interpreter` is not an object"):
        read_manifest(path)
