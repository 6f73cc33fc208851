"""Two certificates: equal, within what was measured, different, or not compared."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.errors import Stop
from lockedenv.host.process import CommandResult
from lockedenv.prefix.records import read_prefix
from lockedenv.provenance.certificate import make
from lockedenv.provenance.certificate.document import (
    Certificate,
    Precision,
    certificate_text,
    parse_row_name,
)
from lockedenv.provenance.certificate.judge import (
    SLACK,
    TOLERANCE,
    Judgement,
    allowed_difference,
    compare_certificates,
)
from lockedenv.provenance.certificate.task import choose_rows
from lockedenv.provenance.certificate.words import describe_judgement, summarize
from sample_documents import change_row, released_certificate, row_of, with_loss

VERIFY = ROOT / "scripts/verify_environment.py"
BF16 = "full sdpa bf16"
FP32 = "full sdpa fp32"
FLASH = {"flash_attn_2_cuda"}


@pytest.fixture
def certificate() -> Certificate:
    return released_certificate()


def judge(first: Certificate, second: Certificate) -> Judgement:
    return compare_certificates(first, second, ("a", "b"))


def said(first: Certificate, second: Certificate) -> str:
    return "\n".join(describe_judgement(judge(first, second)))


def test_rows_are_equal_within_what_was_measured_or_different(
    certificate: Certificate,
) -> None:
    losses = with_loss(row_of(certificate, BF16), 7, 1 + 1e-4)
    other = change_row(certificate, BF16, loss=losses)
    assert not judge(certificate, other).computes_the_same
    different = "full sdpa bf16               DIFFERENT from step 7, the loss on: by 1.0e-04, where 0.0e+00"
    assert different in said(certificate, other)
    # As a GPU's might be: ten times as much is allowed.
    other = change_row(other, BF16, spread=2e-5)
    assert judge(certificate, other).computes_the_same
    within = "equal within 2.0e-04: apart by 1.0e-04 at most, from step 7, the loss on"
    assert within in said(certificate, other)
    assert "measured (the same kind of machine" in said(certificate, other)


def test_another_machine_may_sum_in_another_order(certificate: Certificate) -> None:
    losses = with_loss(row_of(certificate, BF16), 7, 1 + 1e-4)
    other = change_row(certificate, BF16, loss=losses)
    other = replace(other, made_with={**other.made_with, "CPU": "another"})
    assert judge(certificate, other).computes_the_same
    text = said(certificate, other)
    assert "equal within 7.8e-03" in text
    assert "another machine or other versions" in text
    for wrong in (1.01, float("nan"), float("inf")):
        losses = with_loss(row_of(certificate, BF16), 7, wrong)
        assert not judge(
            certificate, change_row(other, BF16, loss=losses)
        ).computes_the_same, wrong


def test_final_weights_count_on_one_kind_of_machine(certificate: Certificate) -> None:
    other = change_row(certificate, FP32, weights="0" * 64)
    assert not judge(certificate, other).computes_the_same
    text = said(certificate, other)
    assert "full sdpa fp32               DIFFERENT from the final weights on" in text


@pytest.mark.parametrize("precision", Precision)
def test_a_file_cannot_widen_what_is_allowed(
    precision: Precision, certificate: Certificate
) -> None:
    """A spread of 0.03 that a certificate claims of itself allowed a difference of 0.3."""
    table = TOLERANCE[precision]
    for alike in (True, False):
        for spread in (0.03, 1e30, float("inf")):
            assert allowed_difference(precision, spread, alike) == table
    assert allowed_difference(precision, table / (2 * SLACK), True) == table / 2
    name = next(str(name) for name in certificate.rows if name.precision is precision)
    claimed = 3.9 * table  # just short of a machine that does not agree with itself
    losses = with_loss(row_of(certificate, name), 7, 1 + 2 * table)
    other = change_row(certificate, name, loss=losses, spread=claimed)
    assert not judge(certificate, other).computes_the_same
    assert f"where {table:.1e} is allowed" in said(certificate, other)


def test_a_tensor_that_one_of_two_lacks_is_counted_and_said(
    certificate: Certificate, tmp_path: Path
) -> None:
    tensors = dict(row_of(certificate, FP32).tensors)
    gone = list(tensors)[3:8]
    for name in gone:
        del tensors[name]
    other = change_row(certificate, FP32, tensors=tensors)
    for first, second in ((certificate, other), (other, certificate)):
        judgement = judge(first, second)
        assert judgement.missing_tensors == 5
        assert not judgement.computes_the_same
        text = said(first, second)
        assert (
            "NOT all was compared: 5 tensors only one of them has"
            in text.splitlines()[0]
        )
        assert "compute the same, bit for bit" not in text
        assert (
            f"bit for bit equal; 5 tensors not compared: {gone[0]}, {gone[1]}" in text
        )
        assert "and 2 more" in text
    for name, document in (("a.json", certificate), ("b.json", other)):
        (tmp_path / name).write_text(certificate_text(document))
    command = [
        sys.executable,
        VERIFY,
        "--compare",
        tmp_path / "a.json",
        tmp_path / "b.json",
    ]
    done = sh(*command, check=False, env=clean_environ())
    assert done.returncode == 1
    assert "NOT all was compared" in done.stdout
    document = json.loads(
        sh(*command, "--json", "-", check=False, env=clean_environ()).stdout
    )
    schema = json.loads(
        (ROOT / "scripts/lockedenv/schemas/comparison.schema.json").read_text()
    )
    jsonschema.validate(document, schema)
    assert document["computes_the_same"] is False
    assert document["not_compared"] == [f"{FP32}: {name}" for name in gone]


def test_a_row_that_one_of_two_lacks_is_counted_and_said(
    certificate: Certificate,
) -> None:
    rows = dict(certificate.rows)
    del rows[parse_row_name(FP32)]
    other = replace(certificate, rows=rows)
    for first, second, where in ((certificate, other, "b"), (other, certificate, "a")):
        judgement = judge(first, second)
        assert len(judgement.not_compared) == 1
        assert not judgement.computes_the_same
        text = said(first, second)
        assert (
            "NOT all was compared: 1 row only one of them has" in text.splitlines()[0]
        )
        assert (
            f"full sdpa fp32               not compared: it has none ({where})" in text
        )
        assert "compute the same, bit for bit" not in text


def test_what_is_different_stays_the_headline_where_not_all_was_compared(
    certificate: Certificate,
) -> None:
    rows = dict(certificate.rows)
    del rows[parse_row_name(FP32)]
    losses = with_loss(row_of(certificate, BF16), 7, 1.1)
    other = change_row(replace(certificate, rows=rows), BF16, loss=losses)
    text = said(certificate, other)
    assert "they do NOT compute the same (1 row not compared)" in text.splitlines()[0]


def test_rows_without_a_common_tensor_are_not_equal(certificate: Certificate) -> None:
    other = change_row(certificate, FP32, tensors={"x": 1.0})
    judgement = judge(certificate, other)
    assert not judgement.computes_the_same
    missing = len(row_of(certificate, FP32).tensors) + 1
    assert judgement.missing_tensors == missing
    text = said(certificate, other)
    assert (
        f"a and b: NOT all was compared: {missing} tensors only one of them has" in text
    )
    assert (
        f"full sdpa fp32               bit for bit equal; {missing} tensors not compared: "
        in text
    )


def test_a_machine_that_does_not_agree_with_itself_is_no_measure(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = change_row(certificate, BF16, loss=(7.0,) * 50, spread=0.33)
    assert not judge(certificate, other).computes_the_same
    itself = "full sdpa bf16               DIFFERENT from itself: two runs of one machine are apart by 3.3e-01"
    assert itself in said(certificate, other)
    name = parse_row_name(BF16)
    runs = [
        make.Run({name: certificate.rows[name]}, {}, {}),
        make.Run({name: other.rows[name]}, {}, {}),
    ]
    monkeypatch.setattr(make, "run_task", lambda *_: runs.pop())
    unreliable = "full sdpa bf16: two runs on this machine are apart by .*: it does not compute reliably"
    with pytest.raises(Stop, match=unreliable):
        make.make_certificate(read_prefix(Path(sys.prefix)), [], "cpu")


def test_a_gpus_rows_are_those_that_it_can_run() -> None:
    rows, left_out = choose_rows("cuda", True, FLASH)
    names = [str(name) for name in rows]
    assert len(names) == 8
    assert "qlora flash_attention_2 4-bit" in names
    assert left_out == {"full flash_attention_2 fp32": "flash-attn has no fp32"}
    rows, left_out = choose_rows("cuda", False, FLASH)
    assert [str(name) for name in rows] == ["full eager fp32", "full sdpa fp32"]
    assert left_out["qlora sdpa 4-bit"] == "this GPU cannot do bf16"
    assert left_out["full flash_attention_2 bf16"] == "this GPU cannot do bf16"
    _, left_out = choose_rows("cuda", True, set())
    assert left_out["qlora flash_attention_2 4-bit"] == "flash-attn is not installed"


def test_flash_attention_4_has_rows_where_it_is_installed() -> None:
    rows, left_out = choose_rows("cuda", True, {"flash_attn.cute"})
    names = [str(name) for name in rows]
    assert "full flash_attention_4 bf16" in names
    assert "qlora flash_attention_4 4-bit" in names
    assert left_out["full flash_attention_4 fp32"] == "flash-attn-4 has no fp32"
    _, left_out = choose_rows("cpu", True, {"flash_attn.cute"})
    assert left_out["full flash_attention_4 bf16"] == "no GPU"
    rows, left_out = choose_rows("cuda", True, FLASH)
    assert not [
        name for name in (*map(str, rows), *left_out) if "flash_attention_4" in name
    ]


def test_a_gpus_certificate_does_not_depend_on_its_host(
    certificate: Certificate,
) -> None:
    made_with = {**certificate.made_with, "GPU": "NVIDIA H100 80GB HBM3"}
    gpu = replace(certificate, device="cuda", made_with={**made_with, "CPU": "one"})
    old = replace(certificate, device="cuda", made_with={**made_with, "CPU": "another"})
    losses = with_loss(row_of(old, FP32), 7, 1 + 1e-6)
    old = change_row(old, FP32, loss=losses)
    # One kind of GPU, whatever its host: nothing beyond the measured spread is allowed.
    assert not judge(gpu, old).computes_the_same
    another = replace(old, made_with={**old.made_with, "GPU": "NVIDIA A100"})
    assert judge(gpu, another).computes_the_same


def test_what_a_gpu_left_out_is_said_and_not_compared(certificate: Certificate) -> None:
    rows = dict(certificate.rows)
    del rows[parse_row_name(BF16)]
    left_out = {**certificate.left_out, BF16: "this GPU cannot do bf16"}
    old = replace(certificate, rows=rows, left_out=left_out)
    text = said(certificate, old)
    assert (
        "full sdpa bf16               not compared: this GPU cannot do bf16 (b)" in text
    )
    assert not judge(certificate, old).computes_the_same
    assert "left out: full sdpa bf16 (this GPU cannot do bf16)" in summarize(old)


def test_where_nothing_can_be_certified_one_message_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Python without torch; a run that gives no number."""
    failed = "the certificate's task failed .exit 1.: ModuleNotFoundError: No module named 'torch'"
    with pytest.raises(Stop, match=failed):
        make.run_task(
            Path(sys.executable), "cpu", 1, {"PYTHONPATH": str(ROOT / "scripts")}
        )
    row: "dict[str, Any]" = {"loss": [5.5, float("nan")], "gradient_norm": [1.0, 1.0]}
    row.update(tensors={"x": 1.0}, weights="0")

    def answer(*_: Any, **__: Any) -> CommandResult:
        return CommandResult(0, "a warning\n" + json.dumps({"rows": {BF16: row}}))

    monkeypatch.setattr(make, "ask", answer)
    unfit = "full sdpa bf16: loss nan, gradient norm 1.0 at step 1: this does not train"
    with pytest.raises(Stop, match=unfit):
        make.run_task(Path(sys.executable), "cpu", 2, {})
    row.update(loss=[5.5, 5.4], tensors={"x": float("inf")})
    with pytest.raises(
        Stop, match="full sdpa bf16: the norm of x is inf: this does not train"
    ):
        make.run_task(Path(sys.executable), "cpu", 2, {})
