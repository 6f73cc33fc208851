"""Runs in the environment under test: the certificate's task gives the same bits again, and a wrong kernel is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
import torch
from lockedenv.provenance import certificate
from lockedenv.provenance.compare import apart, certificates

ROWS = [
    ("full", "eager", "fp32"),
    ("full", "sdpa", "fp32"),
    ("full", "sdpa", "bf16"),
    ("qlora", "sdpa", "4-bit"),
]
PLAIN = torch.nn.functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def document(**made_with: str) -> Dict[str, Any]:
    """A certificate of three steps, computed in this process."""
    rows = {" ".join(row): {**certificate.train(*row, "cpu", 3), "spread": 0.0} for row in ROWS}
    about = {
        "environment": "default",
        "fingerprint": "0" * 64,
        "backend": "pip",
        "device": "cpu",
        "left_out": {},
    }
    made = {
        **about,
        "task": {"version": certificate.TASK, "steps": 3},
        "made_with": made_with,
        "rows": rows,
    }
    again: Dict[str, Any] = json.loads(json.dumps(made))
    return again


def test_two_runs_are_bit_for_bit_equal_and_a_wrong_kernel_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def wrong(factor: float, calls_before: int) -> Any:
        def attention(*inputs: Any, **options: Any) -> Any:
            calls.append(factor)
            return PLAIN(*inputs, **options) * (factor if len(calls) > calls_before else 1.0)

        return attention

    right, names = document(), ("then", "now")
    said, status = certificates(right, document(), names)
    assert status == 0 and "bit for bit" in said.splitlines()[0]
    assert [text.count("bit for bit equal") for text in said.splitlines()[1:]] == [1] * len(ROWS)

    for made_with in (
        {},
        {"CPU": "another"},
    ):  # on this very machine, and as far as another one can tell
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong(1.05, 0))
        said, status = certificates(right, document(**made_with), names)
        assert status == 1 and "they do NOT compute the same" in said
        assert said.count("DIFFERENT from step 0, layers.0.self_attn.o_proj on") == 3, said
        assert "full eager fp32              bit for bit equal" in said
        assert "what differs is sdpa; eager computes the same" in said

    calls.clear()
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong(1.05, 4))
    row = certificate.train("full", "sdpa", "fp32", "cpu", 3)  # two layers: from the third step on
    assert [place for place, _ in apart(right["rows"]["full sdpa fp32"], row)][
        0
    ] == "step 2, the loss"


def test_another_start_or_batch_is_another_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures depend on what they claim to: a digest over nothing would be equal too."""
    first = certificate.train("full", "eager", "fp32", "cpu", 1)
    monkeypatch.setitem(certificate.RATES, "full", 5.1e-4)
    other = certificate.train("full", "eager", "fp32", "cpu", 1)
    assert [place for place, _ in apart(first, other)] == [
        "the final weights"
    ], "one step: only what it has left differs"
    assert len(first["tensors"]) > 40 and all(
        value > 0 for name, value in first["tensors"].items() if "rotary" not in name
    )
