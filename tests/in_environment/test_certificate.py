"""Runs in the environment under test: the certificate's task gives the same bits again.

A wrong kernel is found and named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import pytest
import torch
from lockedenv.provenance.certificate import task
from lockedenv.provenance.certificate.document import (
    Certificate,
    Precision,
    Row,
    RowName,
    Task,
)
from lockedenv.provenance.certificate.judge import compare_certificates, find_deviations
from lockedenv.provenance.certificate.words import describe_judgement, describe_place
from lockedenv.spec.layers import BackendName

EAGER_FP32 = RowName("full", "eager", Precision.FP32)
SDPA_FP32 = RowName("full", "sdpa", Precision.FP32)
SDPA_BF16 = RowName("full", "sdpa", Precision.BF16)
SDPA_QLORA = RowName("qlora", "sdpa", Precision.FOUR_BIT)
ROWS = (EAGER_FP32, SDPA_FP32, SDPA_BF16, SDPA_QLORA)
STEPS = 3
PLAIN = torch.nn.functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def certificate(**made_with: str) -> Certificate:
    """A certificate of three steps, computed in this process."""
    return Certificate(
        task=Task(task.TASK, STEPS),
        made="",
        environment="default",
        backend=BackendName.PIP,
        fingerprint="0" * 64,
        device="cpu",
        made_with=made_with,
        left_out={},
        rows={name: task.train(name, "cpu", STEPS) for name in ROWS},
    )


def said(first: Certificate, second: Certificate) -> str:
    judgement = compare_certificates(first, second, ("then", "now"))
    return "\n".join(describe_judgement(judgement))


class WrongAttention:
    """torch's attention, wrong by a factor after so many calls."""

    def __init__(self, factor: float, right_calls: int) -> None:
        self.factor = factor
        self.right_calls = right_calls

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        result = PLAIN(*inputs, **options)
        if self.right_calls:
            self.right_calls -= 1
            return result
        return result * self.factor


def places(first: Row, second: Row) -> "list[str]":
    return [describe_place(deviation) for deviation in find_deviations(first, second)]


def test_two_runs_are_bit_for_bit_equal_and_a_wrong_kernel_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = certificate()
    lines = said(right, certificate()).splitlines()
    assert "they compute the same, bit for bit" in lines[0]
    assert [line.count("bit for bit equal") for line in lines[1:]] == [1] * len(ROWS)

    wrong = WrongAttention(1.05, right_calls=0)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)
    # On this very machine, and as far as another one can tell.
    for made_with in ({}, {"CPU": "another"}):
        text = said(right, certificate(**made_with))
        assert "they do NOT compute the same" in text
        assert (
            text.count("DIFFERENT from step 0, layers.0.self_attn.o_proj on") == 3
        ), text
        assert "full eager fp32              bit for bit equal" in text
        assert "what differs is sdpa; eager computes the same" in text

    late = WrongAttention(1.05, right_calls=4)  # two layers: from the third step on
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", late)
    row = task.train(SDPA_FP32, "cpu", STEPS)
    assert places(right.rows[SDPA_FP32], row)[0] == "step 2, the loss"


def test_another_start_or_batch_is_another_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The figures depend on what they claim to: a digest over nothing would be equal too."""
    first = task.train(EAGER_FP32, "cpu", 1)
    monkeypatch.setitem(task.RATES, "full", 5.1e-4)
    other = task.train(EAGER_FP32, "cpu", 1)
    assert places(first, other) == [
        "the final weights"
    ], "one step: only what it has left differs"
    assert len(first.tensors) > 40
    for name, value in first.tensors.items():
        assert value > 0 or "rotary" in name
