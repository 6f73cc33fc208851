"""The speed of GPUs at work together, held against what their kind does and against each other."""

from __future__ import annotations

import re

import pytest
from lockedenv.spec.gpu_speeds import FLOORS, FigureSource, Speed
from lockedenv.verify.checks.gpu import Measured, judge_speeds

H100 = "NVIDIA H100 80GB HBM3"
MIG = f"{H100} MIG 1g.10gb"


@pytest.mark.parametrize(
    "gpus, verdict, summary",
    [
        (
            [(H100, 700, 2.6)],
            "pass",
            "GPU 0, NVIDIA H100 80GB HBM3: bf16 product 700 TFLOP/s, copy 2.60 TB/s: "
            "88% and 87% of the measured",
        ),
        ([(H100, 500, 2.9)], "warn", "63% and 97% of the measured reference"),
        (
            [(H100, 700, 2.6), (H100, 690, 2.7)],
            "pass",
            "GPU 1, NVIDIA H100 80GB HBM3: bf16 product 690 .* the slowest of 2 at work together",
        ),
        (
            [(H100, 700, 2.7), (H100, 580, 2.7)],
            "warn",
            "^GPU 1, .* 83% of what the other GPUs do$",
        ),
        (
            [(H100, 700, 2.7), (H100, 690, 2.2), (H100, 710, 2.6)],
            "warn",
            "^GPU 1, .* 83% of what the other GPUs do$",
        ),
        (
            [(H100, 700, 2.7), ("NVIDIA L4", 70, 0.25)],
            "pass",
            "no reference figure for this GPU",
        ),
        ([("NVIDIA H200", 700, 4.0)], "pass", "71% and 83% of the maker's peak"),
        ([("NVIDIA H200", 550, 4.0)], "warn", "56% and 83% of the maker's peak"),
        ([("NVIDIA H200", 700, 3.0)], "warn", "71% and 62% of the maker's peak"),
        (
            [("NVIDIA A100-SXM4-80GB", 240, 1.7)],
            "pass",
            "77% and 83% of the maker's peak",
        ),
        ([(MIG, 90, 0.3)], "pass", "no reference figure for this GPU"),
    ],
)
def test_speeds(
    gpus: list[tuple[str, float, float]], verdict: str, summary: str
) -> None:
    measured = [Measured(name, Speed(product, copy)) for name, product, copy in gpus]
    result = judge_speeds(measured)
    assert result.verdict == verdict
    assert re.search(summary, result.summary), result.summary
    assert len(result.measured) == 2 * len(gpus)
    assert result.measured["GPU 0 bf16_tflop_per_s"] == gpus[0][1]


def test_the_measured_gpu_passes_by_its_makers_peak_too() -> None:
    assert 798 / 989 > FLOORS[FigureSource.PEAK].product > 0.5
    assert 3.0 / 3.35 > FLOORS[FigureSource.PEAK].copy > 0.6
