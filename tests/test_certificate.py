"""The numeric certificate: as documented, equal between two runs on the CPU, and what is no certificate is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any, Dict

import jsonschema
import pytest
from conftest import ROOT, clean_environ, sh
from lockedenv.errors import Stop
from lockedenv.prefix.records import read_prefix
from lockedenv.provenance import certificate, compare
from lockedenv.spec.environment import Environment, ours

OURS = sorted((ROOT / "certificates").glob("*-cpu.json"))
SCHEMA = json.loads((ROOT / "scripts/lockedenv/schemas/certificate.schema.json").read_text())
VERIFY = ROOT / "scripts/verify_environment.py"
NAMES = ("a", "b")
ANOTHER_BLAS = """
static float at(const float *x, long ld, long row, long col, int t) { return t ? x[col + row * ld] : x[row + col * ld]; }
void sgemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k, const float *alpha, const float *a,
            const int *lda, const float *b, const int *ldb, const float *beta, float *c, const int *ldc) {
  for (int j = 0; j < *n; j++)
    for (int i = 0; i < *m; i++) {
      float sum = 0, *out = c + i + (long)j * *ldc;
      for (int p = *k - 1; p >= 0; p--)  /* from the end */
        sum += at(a, *lda, i, p, (*ta | 32) != 'n') * at(b, *ldb, p, j, (*tb | 32) != 'n');
      *out = *alpha * sum + (*beta ? *beta * *out : 0);
    }
}
"""


@pytest.fixture
def document() -> Dict[str, Any]:
    return compare.read(ROOT / "certificates/default-cpu.json")


def test_the_released_environments_have_certificates_of_their_locks() -> None:
    assert [path.name for path in OURS] == ["current-cpu.json", "default-cpu.json"]
    for path, of in zip(OURS, sorted(ours(), key=lambda of: of.name)):
        made = compare.read(path)
        jsonschema.validate(made, SCHEMA)
        assert (made["environment"], made["task"]) == (
            of.name,
            {"version": certificate.TASK, "steps": certificate.STEPS},
        )
        pins = {pin.name: pin.version for pin in Environment(of.folder).wheels("pip")}
        versions = {
            name: made["made_with"][name]
            for name in certificate.VERSIONS
            if name in made["made_with"]
        }
        assert (
            versions == {name: pins[name] for name in certificate.VERSIONS if name in pins}
            and len(versions) == 5
        )
        assert len(made["rows"]) == 6 and {row["spread"] for row in made["rows"].values()} == {0.0}
        assert certificate.text(made) == path.read_text(), "a line for each row"
    current, default = map(compare.read, OURS)
    assert "bit for bit" in compare.certificates(default, default, NAMES)[0]
    said, status = compare.certificates(default, current, NAMES)
    assert status == 0 and "within the tolerance" in said and "transformers" in said


@pytest.fixture(scope="module")
def short(pip_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of three steps in place of 50: the comparison takes their number from the file."""
    program = (
        "import sys; from pathlib import Path; from lockedenv.prefix.records import read_prefix; from lockedenv.provenance import certificate;"
        "Path(sys.argv[1]).write_text(certificate.text(certificate.make(read_prefix(Path(sys.prefix)), [], 'cpu', 3)))"
    )
    file = tmp_path_factory.mktemp("certificate") / "short.json"
    environ = clean_environ(PYTHONPATH=str(ROOT / "scripts"), OMP_NUM_THREADS="2")
    sh(pip_environment / "bin/python", "-c", program, file, env=environ)
    return file


def test_a_real_environment_computes_the_same_again_and_another_library_is_named(
    pip_environment: Path, short: Path, tmp_path: Path
) -> None:
    made, whole = compare.read(short), compare.read(ROOT / "certificates/default-cpu.json")
    jsonschema.validate(made, SCHEMA)
    assert {row["spread"] for row in made["rows"].values()} == {0.0}, "two runs, in two processes"
    for name, row in made["rows"].items():  # the first steps of ours, on whatever CPU this is
        assert row["loss"] == pytest.approx(
            whole["rows"][name]["loss"][:3], rel=compare.BETWEEN[name.split()[-1]]
        )
    (tmp_path / "blas.c").write_text(ANOTHER_BLAS)
    sh("gcc", "-O2", "-shared", "-fPIC", "-o", tmp_path / "blas.so", tmp_path / "blas.c")
    command = [pip_environment / "bin/python", VERIFY, "--compare", short]
    done = sh(*command, check=False, env=clean_environ(LD_PRELOAD=str(tmp_path / "blas.so")))
    assert done.stdout.startswith(
        f"{short} and this machine: they compute the same within the tolerance\n"
    ), done.stdout
    assert (
        done.returncode == 0
        and f"LD_PRELOAD                   -  ->  {tmp_path}/blas.so" in done.stdout
    ), done.stdout
    for attention in ("eager", "sdpa"):  # in fp32 alone torch asks a BLAS
        assert re.search(
            rf"full {attention} fp32 +equal within 3.8e-06: .*, from step 0, layers.0.self_attn.q_proj on",
            done.stdout,
        )
        assert re.search(rf"full {attention} bf16 +bit for bit equal", done.stdout), done.stdout


def test_other_kernels_are_within_the_tolerance_and_named(
    pip_environment: Path, short: Path
) -> None:
    kernels = (
        "avx2" if compare.read(short)["made_with"]["torch's CPU kernels"] == "NO AVX" else "default"
    )
    command = [pip_environment / "bin/python", VERIFY, "--compare", short]
    done = sh(*command, check=False, env=clean_environ(ATEN_CPU_CAPABILITY=kernels))
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(
        f"{short} and this machine: they compute the same within the tolerance\n"
    )
    assert (
        f"ATEN_CPU_CAPABILITY          -  ->  {kernels}" in done.stdout
        and "from step 0, layers.0." in done.stdout
    )


def test_a_machine_that_does_not_agree_with_itself_is_no_measure(
    document: Dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy.deepcopy(document)
    other["rows"]["full sdpa bf16"].update(loss=[7.0] * 50, spread=0.33)
    said, status = compare.certificates(document, other, NAMES)
    assert (
        status == 1
        and "full sdpa bf16               DIFFERENT from itself: two runs of one machine are apart by 3.3e-01"
        in said
    )
    runs = [
        {"rows": {"full sdpa bf16": document["rows"]["full sdpa bf16"]}},
        {"rows": {"full sdpa bf16": other["rows"]["full sdpa bf16"]}},
    ]
    monkeypatch.setattr(certificate, "in_child", lambda *_: runs.pop())
    with pytest.raises(
        Stop,
        match="full sdpa bf16: two runs on this machine are apart by .*: it does not compute reliably",
    ):
        certificate.make(read_prefix(Path(sys.prefix)), [], "cpu")


def test_rows_are_equal_within_what_was_measured_or_different(document: Dict[str, Any]) -> None:
    other = copy.deepcopy(document)
    other["rows"]["full sdpa bf16"]["loss"][7] *= 1 + 1e-4
    said, status = compare.certificates(document, other, NAMES)
    assert (
        status == 1
        and "full sdpa bf16               DIFFERENT from step 7, the loss on: by 1.0e-04, where 0.0e+00"
        in said
    )
    other["rows"]["full sdpa bf16"][
        "spread"
    ] = 2e-5  # as a GPU's might be: ten times as much is allowed
    said, status = compare.certificates(document, other, NAMES)
    assert (
        status == 0
        and "equal within 2.0e-04: apart by 1.0e-04 at most, from step 7, the loss on" in said
    )
    assert "measured (the same kind of machine" in said
    other["made_with"]["CPU"] = "another"
    other["rows"]["full sdpa bf16"]["spread"] = 0.0
    said, status = compare.certificates(document, other, NAMES)
    assert (
        status == 0
        and "equal within 7.8e-03" in said
        and "another machine or other versions" in said
    )
    for wrong in (1.01, float("nan"), float("inf")):
        other["rows"]["full sdpa bf16"]["loss"][7] = (
            document["rows"]["full sdpa bf16"]["loss"][7] * wrong
        )
        assert compare.certificates(document, other, NAMES)[1] == 1, wrong
    other = copy.deepcopy(document)
    other["rows"]["full sdpa fp32"]["weights"] = "0" * 64
    said, status = compare.certificates(document, other, NAMES)
    assert (
        status == 1 and "full sdpa fp32               DIFFERENT from the final weights on" in said
    )


def test_rows_without_a_common_tensor_are_not_equal(document: Dict[str, Any]) -> None:
    other = copy.deepcopy(document)
    other["rows"]["full sdpa fp32"]["tensors"] = {"x": 1.0}
    said, status = compare.certificates(document, other, NAMES)
    assert (
        status == 1
        and "full sdpa fp32               DIFFERENT from step 0, where they have no tensor in common, on"
        in said
    )


def test_a_gpus_certificate_does_not_depend_on_its_host_and_says_what_it_left_out(
    document: Dict[str, Any],
) -> None:
    rows, left_out = certificate.combinations("cuda", bf16=True, flash=True)
    assert len(rows) == 8 and ("qlora", "flash_attention_2", "4-bit") in rows
    assert left_out == {"full flash_attention_2 fp32": "flash-attn has no fp32"}
    rows, left_out = certificate.combinations("cuda", bf16=False, flash=True)
    assert rows == [("full", "eager", "fp32"), ("full", "sdpa", "fp32")]
    assert (
        left_out["qlora sdpa 4-bit"]
        == left_out["full flash_attention_2 bf16"]
        == "this GPU cannot do bf16"
    )
    assert (
        certificate.combinations("cuda", bf16=True, flash=False)[1]["qlora flash_attention_2 4-bit"]
        == "flash-attn is not installed"
    )
    gpu, old = copy.deepcopy(document), copy.deepcopy(document)
    for made, cpu in ((gpu, "one"), (old, "another")):
        made["device"] = "cuda"
        made["made_with"].update(CPU=cpu, GPU="NVIDIA H100 80GB HBM3")
    del old["rows"]["full sdpa bf16"]
    old["left_out"]["full sdpa bf16"] = "this GPU cannot do bf16"
    old["rows"]["full sdpa fp32"]["loss"][7] *= 1 + 1e-6
    said, status = compare.certificates(gpu, old, NAMES)
    assert "full sdpa bf16               not compared: this GPU cannot do bf16 (b)" in said
    assert (
        status == 1
    ), "one kind of GPU, whatever its host: nothing beyond the measured spread is allowed"
    old["made_with"]["GPU"] = "NVIDIA A100"
    assert compare.certificates(gpu, old, NAMES)[1] == 0
    assert "(this GPU cannot do bf16)" in certificate.summary(old)


def refused(*options: Any) -> str:
    done = sh(sys.executable, VERIFY, *options, check=False, env=clean_environ())
    assert done.returncode == 2 and "Traceback" not in done.stdout, done.stdout
    return done.stdout


def test_what_cannot_be_compared_is_refused_with_both_names(
    document: Dict[str, Any], tmp_path: Path
) -> None:
    ours, other = ROOT / "certificates/default-cpu.json", tmp_path / "other.json"
    other.write_text(json.dumps({**document, "task": {"version": 0, "steps": 50}}))
    said = refused("--compare", ours, other)
    assert (
        f"{ours} is of task 1 with 50 steps, {other} of task 0 with 50 steps: make both anew"
        in said
    )
    assert f"{other}: is of task version 0, this machine's is 1; make it anew" in refused(
        "--compare", other
    )
    other.write_text(json.dumps({**document, "device": "cuda"}))
    assert f"{other}: is a GPU's certificate, and this machine has none" in refused(
        "--compare", other
    )
    nothing = {
        "packages": [],
        "gpus": [],
        **{key: {} for key in ("variables", "machine", "cuda", "locks")},
    }
    other.write_text(
        json.dumps({"schema_version": 1, "fingerprint": hashlib.sha256().hexdigest(), **nothing})
    )
    assert (
        f"{ours} is a certificate, {other} a manifest: --compare takes two of one kind"
        in refused("--compare", ours, other)
    )
    assert f"{other} is a manifest, {ours} a certificate" in refused("--compare", other, ours)
    assert "--certificate and --distributed run no check" in refused(
        "--certificate", other, "--manifest", other
    )
    assert "--compare makes what it compares itself" in refused(
        "--compare", other, "--report", other
    )
    assert "one certificate or two" in refused("--compare", ours, ours, ours)
    other.write_text(
        json.dumps({**document, "rows": {"full new fp32": document["rows"]["full sdpa fp32"]}})
    )
    assert f"{ours} is of full eager fp32, full eager bf16, " in refused("--compare", ours, other)


def test_a_damaged_certificate_is_refused_with_its_name(
    document: Dict[str, Any], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    row = document["rows"]["full sdpa fp32"]
    for changes, why in (
        ({"schema_version": 9}, "is of schema version 9, this reads 1"),
        (
            {"rows": {"full sdpa fp32": {**row, "loss": row["loss"][:9]}}},
            "is not a certificate (its row full sdpa fp32 is damaged)",
        ),
        (
            {"rows": {"full sdpa fp32": {**row, "loss": ["1"] * 50}}},
            "is not a certificate (its row full sdpa fp32 is damaged)",
        ),
        ({"rows": []}, "is not a certificate ("),
        ({"task": 1}, "is not a certificate ("),
        ({"made_with": None}, "is not a certificate ("),
    ):
        bad.write_text(json.dumps({**document, **changes}))
        assert f"{bad}: {why}" in refused("--compare", bad, bad), changes
    bad.write_text((ROOT / "certificates/default-cpu.json").read_text()[:5000])
    assert f"{bad}: is not a session manifest or certificate (" in refused("--compare", bad)


def test_where_nothing_can_be_certified_one_message_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python without torch; a run that gives no number; a GPU that was asked for."""
    from lockedenv.errors import Stop

    with pytest.raises(
        Stop,
        match="the certificate's task failed .exit 1.: ModuleNotFoundError: No module named 'torch'",
    ):
        certificate.in_child(Path(sys.executable), "cpu", 1, {"PYTHONPATH": str(ROOT / "scripts")})
    row = {"loss": [5.5, float("nan")], "gradient_norm": [1.0, 1.0]}
    monkeypatch.setattr(
        certificate,
        "ask",
        lambda *_, **__: (0, "a warning\n" + json.dumps({"rows": {"full sdpa bf16": row}}), ""),
    )
    with pytest.raises(
        Stop, match="full sdpa bf16: loss nan, gradient norm 1.0 at step 1: this does not train"
    ):
        certificate.in_child(Path(sys.executable), "cpu", 2, {})
