"""The certificate as a file: as documented, made of what is locked, and refused where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fixtures.commands import ROOT
from lockedenv.provenance.certificate import make
from lockedenv.provenance.certificate.document import certificate_from, certificate_text
from lockedenv.provenance.certificate.judge import compare_certificates
from lockedenv.provenance.certificate.task import STEPS, TASK
from lockedenv.provenance.certificate.words import describe_judgement
from lockedenv.provenance.documents import DocumentError, read_document
from lockedenv.spec.environment import Environment, list_environments
from lockedenv.spec.layers import BackendName
from sample_documents import RELEASED, make_manifest, write_manifest
from test_documents import refused

OURS = sorted((ROOT / "certificates").glob("*-cpu.json"))
SCHEMA = json.loads(
    (ROOT / "scripts/lockedenv/schemas/certificate.schema.json").read_text()
)


@pytest.fixture
def document() -> "dict[str, Any]":
    """The JSON of a released certificate."""
    found: "dict[str, Any]" = json.loads(RELEASED.read_text())
    return found


def test_the_released_environments_have_certificates_of_their_locks() -> None:
    assert [path.name for path in OURS] == ["current-cpu.json", "default-cpu.json"]
    for path, wanted in zip(
        OURS, sorted(list_environments(), key=lambda env: env.name)
    ):
        jsonschema.validate(json.loads(path.read_text()), SCHEMA)
        made = certificate_from(str(path), read_document(path))
        assert made.environment == wanted.name
        assert (made.task.version, made.task.steps) == (TASK, STEPS)
        pins = {
            pin.name: pin.version
            for pin in Environment(wanted.folder).wheels(BackendName.PIP)
        }
        versions = {
            name: made.made_with[name]
            for name in make.VERSIONS
            if name in made.made_with
        }
        assert versions == {name: pins[name] for name in make.VERSIONS if name in pins}
        assert len(versions) == {"default": 5, "current": 6}[wanted.name]
        assert len(made.rows) == 6
        assert {row.spread for row in made.rows.values()} == {0.0}
        assert certificate_text(made) == path.read_text(), "a line for each row"


def test_the_released_environments_compute_the_same_within_the_tolerance() -> None:
    current, default = [
        certificate_from(str(path), read_document(path)) for path in OURS
    ]
    equal = compare_certificates(default, default, ("a", "b"))
    assert "bit for bit" in describe_judgement(equal)[0]
    judgement = compare_certificates(default, current, ("a", "b"))
    lines = describe_judgement(judgement)
    assert judgement.computes_the_same
    assert "within the tolerance" in lines[0]
    assert any("transformers" in line for line in lines)


def test_what_cannot_be_compared_is_refused_with_both_names(
    document: "dict[str, Any]", tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**document, "task": {"version": 0, "steps": 50}}))
    unlike = f"{RELEASED} is of task 1 with 50 steps, {other} of task 0 with 50 steps: make both again"
    assert unlike in refused("--compare", RELEASED, other)
    old = f"{other}: is of task version 0, this machine's is 1; make it again"
    assert old in refused("--compare", other)
    other.write_text(json.dumps({**document, "device": "cuda"}))
    on_gpu = f"{other}: is a GPU's certificate, and this machine has none"
    assert on_gpu in refused("--compare", other)
    row = document["rows"]["full sdpa fp32"]
    other.write_text(json.dumps({**document, "rows": {"full new fp32": row}}))
    rows = f"{RELEASED} is of full eager fp32, full eager bf16, "
    assert rows in refused("--compare", RELEASED, other)


def test_two_of_unlike_kinds_are_refused(tmp_path: Path) -> None:
    other = write_manifest(tmp_path / "other.json", make_manifest())
    kinds = f"{RELEASED} is a certificate, {other} a manifest: --compare takes two of one kind"
    assert kinds in refused("--compare", RELEASED, other)
    assert f"{other} is a manifest, {RELEASED} a certificate" in refused(
        "--compare", other, RELEASED
    )
    assert "one certificate or two" in refused(
        "--compare", RELEASED, RELEASED, RELEASED
    )


def test_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    both = refused("--certificate", other, "--manifest", other)
    assert "--certificate and --distributed run no check" in both
    compared = refused("--compare", other, "--report", other)
    assert "--compare makes what it compares itself" in compared


def damaged(document: "dict[str, Any]") -> "list[tuple[dict[str, Any], str]]":
    """Changes to a certificate, each with what is said of it."""
    name = "full sdpa fp32"
    row = document["rows"][name]
    half = {**row, "loss": row["loss"][:9]}
    texts = {**row, "loss": ["1"] * 50}
    negative = {**row, "spread": -1}
    return [
        ({"schema_version": 9}, "is of schema version 9, this reads 1"),
        (
            {"rows": {name: half}},
            f"(`rows.{name}` does not have a loss and a gradient norm for each",
        ),
        ({"rows": {name: texts}}, f"(`rows.{name}.loss[0]` is not a number)"),
        ({"rows": {name: negative}}, f"(`rows.{name}.spread` is negative)"),
        (
            {"rows": {name: {**row, "tensors": {}}}},
            f"(`rows.{name}` has no tensors or no weights)",
        ),
        (
            {"rows": {"full sdpa fp8": row}},
            "(`full sdpa fp8` is not the name of a row)",
        ),
        ({"rows": {}}, "(it has no row)"),
        ({"rows": []}, "(`rows` is not an object)"),
        ({"task": 1}, "(`task` is not an object)"),
        (
            {"task": {"version": 1, "steps": 10**9}},
            "(`task.steps` is not between 1 and 1000)",
        ),
        ({"made_with": None}, "(`made_with` is not an object)"),
    ]


def test_a_damaged_certificate_is_refused_with_its_name(
    document: "dict[str, Any]", tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    for changes, problem in damaged(document):
        bad.write_text(json.dumps({**document, **changes}))
        with pytest.raises(DocumentError) as error:
            certificate_from(str(bad), read_document(bad))
        text = str(error.value)
        assert text.startswith(f"{bad}: is "), (changes.keys(), text)
        assert problem in text, (changes.keys(), text)
    bad.write_text(RELEASED.read_text()[:5000])
    assert f"{bad}: is not a session manifest or certificate (" in refused(
        "--compare", bad
    )
