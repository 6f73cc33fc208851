"""Certificates of a real environment: equal between two runs on the CPU, and another library is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.provenance.certificate.document import Certificate, certificate_from
from lockedenv.provenance.certificate.judge import TOLERANCE
from lockedenv.provenance.documents import read_document
from sample_documents import released_certificate

PROGRAMS = Path(__file__).parent / "programs"
SCHEMA = json.loads(
    (ROOT / "scripts/lockedenv/schemas/certificate.schema.json").read_text()
)
VERIFY = ROOT / "scripts/verify_environment.py"


@pytest.fixture(scope="module")
def short(pip_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of three steps."""
    file = tmp_path_factory.mktemp("certificate") / "short.json"
    environ = clean_environ(PYTHONPATH=str(ROOT / "scripts"), OMP_NUM_THREADS="2")
    sh(
        pip_environment / "bin/python",
        PROGRAMS / "short_certificate.py",
        file,
        env=environ,
    )
    return file


def read(path: Path) -> Certificate:
    return certificate_from(str(path), read_document(path))


def test_a_real_environment_computes_the_same_again_and_another_library_is_named(
    pip_environment: Path, short: Path, tmp_path: Path
) -> None:
    jsonschema.validate(json.loads(short.read_text()), SCHEMA)
    made = read(short)
    whole = released_certificate()
    assert {row.spread for row in made.rows.values()} == {
        0.0
    }, "two runs, in two processes"
    for (
        name,
        row,
    ) in made.rows.items():  # the first steps of ours, on whatever CPU this is
        allowed = TOLERANCE[name.precision]
        assert row.loss == pytest.approx(whole.rows[name].loss[:3], rel=allowed)
    blas = tmp_path / "blas.so"
    sh("gcc", "-O2", "-shared", "-fPIC", "-o", blas, PROGRAMS / "another_blas.c")
    command = [pip_environment / "bin/python", VERIFY, "--compare", short]
    done = sh(*command, check=False, env=clean_environ(LD_PRELOAD=str(blas)))
    headline = f"{short} and this machine: they compute the same within the tolerance\n"
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(headline), done.stdout
    assert f"LD_PRELOAD                   -  ->  {blas}" in done.stdout, done.stdout
    for attention in ("eager", "sdpa"):  # in fp32 alone torch asks a BLAS
        within = rf"full {attention} fp32 +equal within 3.8e-06: .*, from step 0, layers.0.self_attn.q_proj on"
        assert re.search(within, done.stdout), done.stdout
        assert re.search(
            rf"full {attention} bf16 +bit for bit equal", done.stdout
        ), done.stdout


def test_other_kernels_are_within_the_tolerance_and_named(
    pip_environment: Path, short: Path
) -> None:
    kernels = "default"
    if read(short).made_with["torch's CPU kernels"] == "NO AVX":
        kernels = "avx2"
    command = [pip_environment / "bin/python", VERIFY, "--compare", short]
    done = sh(*command, check=False, env=clean_environ(ATEN_CPU_CAPABILITY=kernels))
    assert done.returncode == 0, done.stdout
    headline = f"{short} and this machine: they compute the same within the tolerance\n"
    assert done.stdout.startswith(headline)
    assert f"ATEN_CPU_CAPABILITY          -  ->  {kernels}" in done.stdout
    assert "from step 0, layers.0." in done.stdout
