"""The session manifest: documented, without secrets, and a fingerprint that says when two environments are the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict

import jsonschema
import pytest
import referencing
from conftest import ROOT, CondaEnvironment, LocalChannel, clean_environ, sh
from lockedenv import VERSION
from lockedenv.prefix.records import read_prefix
from lockedenv.provenance import compare, manifest
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


def write(env: CondaEnvironment, path: Path, *options: str, **environ: str) -> Dict[str, Any]:
    done = env.verify("--level", "quick", "--manifest", str(path), *options, **environ)
    assert done.returncode == 0, done.stdout
    document: Dict[str, Any] = json.loads(path.read_text())
    return document


def validate(document: Dict[str, Any]) -> None:
    schemas = {
        name: json.loads((SCHEMAS / name).read_text())
        for name in ("verify.schema.json", "manifest.schema.json")
    }
    resources = [(name, referencing.Resource.from_contents(s)) for name, s in schemas.items()]
    registry: Any = referencing.Registry().with_resources(resources)
    jsonschema.Draft202012Validator(schemas["manifest.schema.json"], registry=registry).validate(
        document
    )


def test_the_manifest_is_as_documented_and_holds_no_secret(
    conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "manifest.json"
    document = write(
        conda_environment, path, **SECRETS, CUDA_VISIBLE_DEVICES="0", HF_HOME="/workspace/hf"
    )
    validate(document)
    with pytest.raises(jsonschema.ValidationError):
        validate({**document, "fingerprint": "x"})
    text = path.read_text()
    assert not [name for name, secret in SECRETS.items() if secret in text or name in text]
    assert (
        document["variables"]["CUDA_VISIBLE_DEVICES"] == "0"
        and document["variables"]["HF_HOME"] == "/workspace/hf"
    )
    assert {p["manager"] for p in document["packages"]} == {"conda", "pip"}
    assert all(p["hash"] for p in document["packages"])
    assert [v["id"] for v in document["vulnerabilities"]] and all(
        v["package"] == "torch" for v in document["vulnerabilities"]
    )
    assert not [
        p.name for p in path.parent.iterdir() if p != path
    ], "written beside and renamed, with nothing left"
    assert (
        json.loads((conda_environment.prefix / "maximalcai-manifest.json").read_text())["backend"]
        == "conda"
    )


def test_the_list_of_checks_as_json_and_results_on_standard_output(
    conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    path = tmp_path / "checks.json"
    assert conda_environment.verify("--list", "--json", str(path)).stdout == ""
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "list.schema.json").read_text()))
    assert [c["name"] for c in document["checks"]] == [
        line.split()[0] for line in conda_environment.verify("--list").stdout.splitlines()
    ]
    command = [
        conda_environment.prefix / "bin/python",
        conda_environment.project / "scripts/verify_environment.py",
    ]
    done = subprocess.run(
        [*command, "--level", "quick", "--json", "-"],
        stdout=-1,
        stderr=-1,
        text=True,
        env=clean_environ(),
    )
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "verify.schema.json").read_text()))
    assert (
        document["exit_status"] == 0 and "verified: every check that ran has passed" in done.stderr
    )


@pytest.mark.parametrize(
    "script", ["setup_runpod_environment.sh", "post_create.sh", "verify_environment.py", "lock.sh"]
)
def test_each_script_tells_its_version_and_has_examples(script: str) -> None:
    said = sh(ROOT / "scripts" / script, "--version").stdout
    assert re.fullmatch(rf"maximalcai {VERSION}, commit [\w.-]+\n", said)
    assert (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1].startswith(VERSION)
    text = sh(ROOT / "scripts" / script, "--help").stdout
    assert "--version" in text and text.count(f"scripts/{script}") > 2 and "exit" in text


def test_uuids_only_when_asked(conda_environment: CondaEnvironment, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin/nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 550.54.14, 81559, 9.0, GPU-abcd, Disabled'\n"
    )
    smi.chmod(0o755)
    environ = {"PATH": f"{smi.parent}:{clean_environ()['PATH']}"}
    for options, there in (([], False), (["--with-uuids"], True)):
        document = write(
            conda_environment, tmp_path / "m.json", *options, "--only", "locks", **environ
        )
        validate(document)
        assert ("GPU-abcd" in json.dumps(document)) is there
        assert (
            document["gpus"][0]["driver"] == "550.54.14"
            and document["gpus"][0]["memory_bytes"] == 81559 * 2**20
        )


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
    sh(
        micromamba / "micromamba",
        "create",
        "--yes",
        "--no-rc",
        "-p",
        other,
        "-f",
        lock,
        env=environ,
    )
    pins = read_pip_lock(conda_environment.project / "locks/pip.txt")
    for pin in reversed(pins):
        # by pip, in the other order, where the first was made by uv
        command = [
            other / "bin/python",
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            f"{pin.name}=={pin.version}",
        ]
        sh(*command, env=clean_environ())
    second = write(
        CondaEnvironment(conda_environment.project, other, conda_environment.cache, ""),
        tmp_path / "b.json",
    )
    assert first["fingerprint"] == second["fingerprint"], compare.differences(first, second)
    done = conda_environment.verify("--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert done.returncode == 0 and "the same environment" in done.stdout


def test_the_commit_is_this_clones_in_a_hook_of_another_repository_too(
    broken: CondaEnvironment, tmp_path: Path
) -> None:
    commit = ["-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "--allow-empty", "-m"]
    for folder in (tmp_path, broken.project):
        sh("git", "init", "-q", folder)
        sh("git", "-C", folder, *commit, folder)
    document = write(
        broken, tmp_path / "m.json", GIT_DIR=str(tmp_path / ".git"), GIT_INDEX_FILE="x"
    )
    head = sh("git", "-C", broken.project, "rev-parse", "HEAD").stdout.strip()
    assert document["repository"]["commit"] == head


def test_one_package_of_another_build_changes_the_fingerprint(
    broken: CondaEnvironment, tmp_path: Path
) -> None:
    before = manifest.packages(read_prefix(broken.prefix))
    for name in [r["name"] for r in before if r["manager"] == "conda"]:
        changed = [
            {**r, "build": r["build"] + "1"} if r["name"] == name and r["manager"] == "conda" else r
            for r in before
        ]
        assert manifest.fingerprint(changed) != manifest.fingerprint(before), name
    core = next((broken.prefix / "lib/python3.11/site-packages").glob("idna-*.dist-info/RECORD"))
    text = core.read_text()
    core.unlink()
    core.write_text(text.replace("idna/core.py,sha256=", "idna/core.py,sha256=x"))
    assert manifest.fingerprint(
        manifest.packages(read_prefix(broken.prefix))
    ) != manifest.fingerprint(before)


def test_comparing_says_what_differs_in_groups(broken: CondaEnvironment, tmp_path: Path) -> None:
    write(broken, tmp_path / "then.json", CUDA_VISIBLE_DEVICES="0")
    shutil.rmtree(next((broken.prefix / "lib/python3.11/site-packages").glob("idna-*.dist-info")))
    done = broken.verify("--compare", str(tmp_path / "then.json"))
    assert done.returncode == 1 and "and this machine: NOT the same environment" in done.stdout
    lines = done.stdout.splitlines()
    assert "packages:" in lines and any(
        "idna (pip)" in line and line.endswith("->  -") for line in lines
    )
    assert "variables:" in lines and any("CUDA_VISIBLE_DEVICES" in line for line in lines)
    done = broken.verify("--compare", str(tmp_path / "then.json"), "--json", "-")
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "comparison.schema.json").read_text()))
    assert done.returncode == 1 and document["same_environment"] is False
    assert {"CUDA_VISIBLE_DEVICES", "idna (pip)"} <= {
        row["name"] for row in document["differences"]
    }
    for content, said in (
        ("{", "is not a session manifest"),
        ('{"schema_version": 9}', "is of schema version 9, this reads 1"),
    ):
        (tmp_path / "bad.json").write_text(content)
        done = broken.verify("--compare", str(tmp_path / "bad.json"))
        assert done.returncode == 2 and said in done.stdout and "Traceback" not in done.stdout
    then = json.loads((tmp_path / "then.json").read_text())
    edits = [
        {"fingerprint": None},
        {"packages": [1]},
        {"packages": []},
        {"gpus": [{}]},
        {"variables": None},
    ]
    for edit in [
        *edits,
        {"packages": [{**then["packages"][0], "version": "0.0.1"}, *then["packages"][1:]]},
    ]:
        (tmp_path / "bad.json").write_text(json.dumps({**then, **edit}))
        with pytest.raises(
            compare.ManifestError,
            match=r"bad.json: is not a session manifest \(.*\); make one with",
        ):
            compare.read(tmp_path / "bad.json")
    done = broken.verify("--compare", str(tmp_path / "none.json"))
    assert done.returncode == 2 and "none.json: cannot be read" in done.stdout
