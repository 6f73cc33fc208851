"""The note of the installed flash-attn in the prefix, and the proof that it works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flash_stand_ins import PREBUILT
from lockedenv.install.flash_attention.installed import (
    InstalledWheel,
    WheelOrigin,
    read_installed_wheel,
    write_installed_wheel,
)
from lockedenv.install.flash_attention.proof import Proof, prove_import, read_proof


def test_the_installed_wheel_is_a_record(tmp_path: Path) -> None:
    wheel = InstalledWheel(PREBUILT, "0" * 64, WheelOrigin.PREBUILT, "", "1" * 64)
    write_installed_wheel(tmp_path, wheel)
    assert read_installed_wheel(tmp_path) == wheel
    assert wheel.version == "2.8.3"


@pytest.mark.parametrize(
    "text",
    [
        f"{PREBUILT} {'0' * 64} --wheel",
        "",
        "[]",
        json.dumps(
            {"filename": "../x.whl", "sha256": "0", "key": "", "record_sha256": ""}
        ),
        json.dumps(
            {"filename": PREBUILT, "sha256": "0", "key": "", "record_sha256": 5}
        ),
        json.dumps(
            {
                "filename": PREBUILT,
                "sha256": "0",
                "key": "",
                "record_sha256": "",
                "origin": "gift",
            }
        ),
    ],
)
def test_a_damaged_note_and_one_of_version_2_0_are_as_none(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "maximalcai-flash-attn").write_text(text)
    assert read_installed_wheel(tmp_path) is None


@pytest.mark.parametrize(
    "document, proof",
    [
        ({}, Proof("the verifier wrote no verdict (it crashed)")),
        ({"results": [{"check": "flash-attn", "verdict": "pass"}]}, Proof()),
        ({"results": [{"check": "flash-attn", "verdict": "skip"}]}, Proof()),
        (
            {
                "results": [
                    {
                        "check": "flash-attn",
                        "verdict": "fail",
                        "summary": "out of memory",
                        "measured": {},
                    }
                ]
            },
            Proof("out of memory", False),
        ),
        (
            {
                "results": [
                    {
                        "check": "driver",
                        "verdict": "fail",
                        "summary": "x",
                        "measured": {},
                    },
                    {
                        "check": "flash-attn",
                        "verdict": "fail",
                        "summary": "wrong",
                        "measured": {"error": 100.0},
                    },
                ]
            },
            Proof("wrong", True),
        ),
    ],
)
def test_the_verifiers_document_is_the_proof(
    document: dict[str, Any], proof: Proof
) -> None:
    assert read_proof(document, "Traceback\nit crashed\n") == proof


def test_a_wheel_that_does_not_import_is_at_fault_and_a_crash_is_not(
    tmp_path: Path,
) -> None:
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    for script, problem, at_fault in (
        (
            "echo 'ImportError: undefined symbol' >&2; exit 1",
            "does not import: ImportError",
            True,
        ),
        ("kill -9 $$", "it does not import", False),
        ("echo 2.8.2", "version 2.8.2 was imported, not 2.8.3", True),
        ("echo 2.8.3", "", False),
    ):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        proof = prove_import(tmp_path, "2.8.3")
        assert problem in proof.problem
        assert bool(problem) == bool(proof.problem)
        assert proof.wheel_at_fault == at_fault
