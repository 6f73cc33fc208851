"""The session manifest: documented, without secrets, and a fingerprint that says when two environments are the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from fixtures.channel import LocalChannel
from fixtures.commands import ROOT, clean_environ, sh
from fixtures.conda_environment import CondaEnvironment
from lockedenv.prefix.records import read_prefix
from lockedenv.provenance import gather
from lockedenv.provenance.difference import find_differences
from lockedenv.provenance.documents import DocumentError
from lockedenv.provenance.manifest import read_manifest
from lockedenv.provenance.packages import fingerprint_of, list_packages
from lockedenv.spec.locks import read_pip_lock

SCHEMAS = ROOT / "scripts/lockedenv/schemas"
SECRETS = {
    "HF_TOKEN": "hf_s3cr3t",
    "WANDB_API_KEY": "w4ndb",
    "AWS_SECRET_ACCESS_KEY": "4ws",
    "RUNPOD_API_KEY": "rp4",
    "DB_PASSWORD": "passw0rd",
    "MAXIMALCAI_MIRROR": "https://user:m1rr0r@example.com",
    "UV_DEFAULT_INDEX": "https://user:1nd3x@example.com",
}


def write(
    env: CondaEnvironment, path: Path, *options: str, **environ: str
) -> "dict[str, Any]":
    done = env.verify("--level", "quick", "--manifest", str(path), *options, **environ)
    assert done.returncode == 0, done.stdout
    document: "dict[str, Any]" = json.loads(path.read_text())
    return document


def validate(document: "dict[str, Any]") -> None:
    resources = []
    for name in ("verify.schema.json", "manifest.schema.json"):
        schema = json.loads((SCHEMAS / name).read_text())
        resources.append((name, referencing.Resource.from_contents(schema)))
    registry: Any = referencing.Registry().with_resources(resources)
    jsonschema.Draft202012Validator(schema, registry=registry).validate(document)


def test_the_manifest_is_as_documented_and_holds_no_secret(
    conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "manifest.json"
    document = write(
        conda_environment,
        path,
        **SECRETS,
        CUDA_VISIBLE_DEVICES="0",
        HF_HOME="/workspace/hf",
    )
    validate(document)
    with pytest.raises(jsonschema.ValidationError):
        validate({**document, "fingerprint": "x"})
    text = path.read_text()
    assert not [
        name for name, secret in SECRETS.items() if secret in text or name in text
    ]
    assert document["variables"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert document["variables"]["HF_HOME"] == "/workspace/hf"
    assert {p["manager"] for p in document["packages"]} == {"conda", "pip"}
    assert all(p["hash"] for p in document["packages"])
    assert {v["package"] for v in document["vulnerabilities"]} == {"torch"}
    assert all(v["id"] for v in document["vulnerabilities"])
    beside = [p.name for p in path.parent.iterdir() if p != path]
    assert not beside, "written beside and renamed, with nothing left"
    kept = json.loads(
        (conda_environment.prefix / "maximalcai-manifest.json").read_text()
    )
    assert kept["backend"] == "conda"
    assert document["interpreter"] is None, "Python is a package here"
    again = read_manifest(path)
    assert json.loads(json.dumps(again.document()))["packages"] == document["packages"]


def test_uuids_only_when_asked(
    conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin/nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 550.54.14, 81559, 9.0, GPU-abcd, Disabled'\n"
    )
    smi.chmod(0o755)
    environ = {"PATH": f"{smi.parent}:{clean_environ()['PATH']}"}
    path = tmp_path / "m.json"
    for options, there in (([], False), (["--with-uuids"], True)):
        document = write(
            conda_environment, path, *options, "--only", "locks", **environ
        )
        validate(document)
        assert ("GPU-abcd" in json.dumps(document)) is there
        assert document["gpus"][0]["driver"] == "550.54.14"
        assert document["gpus"][0]["memory_bytes"] == 81559 * 2**20
        assert read_manifest(path).gpus[0].capability == "9.0"


def test_the_same_lock_in_another_place_and_order_has_the_same_fingerprint(
    conda_environment: CondaEnvironment,
    channel: LocalChannel,
    micromamba: Path,
    folder: Path,
    tmp_path: Path,
) -> None:
    first = write(conda_environment, tmp_path / "a.json")
    other = folder / "quite" / "another" / "place"
    lock = conda_environment.project / "conda-lock.yml"
    environ = clean_environ(CONDA_PKGS_DIRS=str(conda_environment.cache / "pkgs"))
    program = micromamba / "micromamba"
    sh(program, "create", "--yes", "--no-rc", "-p", other, "-f", lock, env=environ)
    pins = read_pip_lock(conda_environment.project / "locks/pip.txt")
    for pin in reversed(pins):
        # by pip, in the other order, where the first was made by uv
        wanted = f"{pin.name}=={pin.version}"
        command = [
            other / "bin/python",
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            wanted,
        ]
        sh(*command, env=clean_environ())
    project = conda_environment.project
    cache = conda_environment.cache
    second = write(CondaEnvironment(project, other, cache, ""), tmp_path / "b.json")
    differences = find_differences(
        read_manifest(tmp_path / "a.json"), read_manifest(tmp_path / "b.json")
    )
    assert first["fingerprint"] == second["fingerprint"], differences
    done = conda_environment.verify(
        "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")
    )
    assert done.returncode == 0
    assert "the same environment" in done.stdout


def test_the_commit_is_this_clones_in_a_hook_of_another_repository_too(
    broken: CondaEnvironment, tmp_path: Path
) -> None:
    commit = [
        "-c",
        "user.name=x",
        "-c",
        "user.email=x",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
    ]
    for folder in (tmp_path, broken.project):
        sh("git", "init", "-q", folder)
        sh("git", "-C", folder, *commit, folder)
    document = write(
        broken, tmp_path / "m.json", GIT_DIR=str(tmp_path / ".git"), GIT_INDEX_FILE="x"
    )
    head = sh("git", "-C", broken.project, "rev-parse", "HEAD").stdout.strip()
    assert document["repository"]["commit"] == head


def test_one_package_of_another_build_changes_the_fingerprint(
    broken: CondaEnvironment,
) -> None:
    before = list_packages(read_prefix(broken.prefix))
    for index, package in enumerate(before):
        if package.manager == "conda":
            changed = list(before)
            changed[index] = replace(package, build=f"{package.build}1")
            assert fingerprint_of(changed) != fingerprint_of(before), package.name
    record = next(
        (broken.prefix / "lib/python3.11/site-packages").glob("idna-*.dist-info/RECORD")
    )
    text = record.read_text()
    record.unlink()
    record.write_text(text.replace("idna/core.py,sha256=", "idna/core.py,sha256=x"))
    after = list_packages(read_prefix(broken.prefix))
    assert fingerprint_of(after) != fingerprint_of(before)


def test_comparing_says_what_differs_in_groups(
    broken: CondaEnvironment, tmp_path: Path
) -> None:
    then = tmp_path / "then.json"
    write(broken, then, CUDA_VISIBLE_DEVICES="0")
    shutil.rmtree(
        next((broken.prefix / "lib/python3.11/site-packages").glob("idna-*.dist-info"))
    )
    done = broken.verify("--compare", str(then))
    assert done.returncode == 1
    assert "and this machine: NOT the same environment" in done.stdout
    lines = done.stdout.splitlines()
    assert "packages:" in lines
    assert "variables:" in lines
    assert any("idna (pip)" in line and line.endswith("->  -") for line in lines)
    assert any("CUDA_VISIBLE_DEVICES" in line for line in lines)
    done = broken.verify("--compare", str(then), "--json", "-")
    document = json.loads(done.stdout)
    jsonschema.validate(
        document, json.loads((SCHEMAS / "comparison.schema.json").read_text())
    )
    assert done.returncode == 1
    assert document["same_environment"] is False
    names = {row["name"] for row in document["differences"]}
    assert {"CUDA_VISIBLE_DEVICES", "idna (pip)"} <= names


def test_a_manifest_that_was_edited_is_refused(
    broken: CondaEnvironment, tmp_path: Path
) -> None:
    document = write(broken, tmp_path / "then.json")
    bad = tmp_path / "bad.json"
    first = {**document["packages"][0], "version": "0.0.1"}
    edits: "list[dict[str, Any]]" = [
        {"fingerprint": None},
        {"packages": [1]},
        {"packages": []},
        {"gpus": [{}]},
        {"variables": None},
        {"packages": [first, *document["packages"][1:]]},
        {"backend": "pip"},
    ]
    for edit in edits:
        bad.write_text(json.dumps({**document, **edit}))
        with pytest.raises(
            DocumentError, match=r"bad.json: is not a session manifest \(.*\); make"
        ):
            read_manifest(bad)
    done = broken.verify("--compare", str(tmp_path / "none.json"))
    assert done.returncode == 2
    assert "none.json: cannot be read" in done.stdout


def test_a_damaged_mark_is_named_and_no_manifest_is_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "maximalcai.json").write_text('{"verdicts": []}')
    with pytest.raises(
        Exception, match="maximalcai.json is damaged: .*verdicts.*"
    ) as error:
        gather.read_pod_findings(tmp_path)
    assert type(error.value).__name__ == "MarkError"
