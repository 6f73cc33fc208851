"""How fast a kind of GPU is: what was measured on one, or what its maker promises."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class FigureSource(Enum):
    """Where a figure is from, in words."""

    MEASURED = "the measured reference"
    PEAK = "the maker's peak"


@dataclass(frozen=True)
class Speed:
    """`product`: dense bf16 matrix product, TFLOP/s. `copy`: memory read plus written, TB/s."""

    product: float
    copy: float


@dataclass(frozen=True)
class Reference:
    speed: Speed
    source: FigureSource


# By the name that nvidia-smi and torch give. Measured: PyTorch 2.11, 8192^3 random bf16, copy read
# plus written, one machine. Peaks: NVIDIA's data sheets of A100, H100, H200 and HGX B200, half of a
# bf16 figure with sparsity. A MIG slice has another name ("... MIG 1g.10gb"): it is not held
# against a whole GPU.
REFERENCES = {
    "NVIDIA H100 80GB HBM3": Reference(Speed(798, 3.0), FigureSource.MEASURED),
    "NVIDIA H100 PCIe": Reference(Speed(756, 2.0), FigureSource.PEAK),
    "NVIDIA H100 NVL": Reference(Speed(835, 3.9), FigureSource.PEAK),
    "NVIDIA H200": Reference(Speed(989, 4.8), FigureSource.PEAK),
    "NVIDIA A100-SXM4-40GB": Reference(Speed(312, 1.555), FigureSource.PEAK),
    "NVIDIA A100-SXM4-80GB": Reference(Speed(312, 2.039), FigureSource.PEAK),
    "NVIDIA A100-PCIE-40GB": Reference(Speed(312, 1.555), FigureSource.PEAK),
    "NVIDIA A100 80GB PCIe": Reference(Speed(312, 1.935), FigureSource.PEAK),
    "NVIDIA B200": Reference(Speed(2250, 8.0), FigureSource.PEAK),
}
# The least share of a reference: 70 % of what is measured; of a peak 70 % of what that H100
# reaches, which is 798 of its maker's 989 TFLOP/s (81 %) and 3.0 of 3.35 TB/s (90 %).
FLOORS = {
    FigureSource.MEASURED: Speed(0.7, 0.7),
    FigureSource.PEAK: Speed(0.7 * 0.81, 0.7 * 0.9),
}
