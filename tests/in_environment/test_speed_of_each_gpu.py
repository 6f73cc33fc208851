"""The check of the GPU's speed measures each GPU, and all at once."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from lockedenv.verify.checks import gpu

H100 = "NVIDIA H100 80GB HBM3"


class Clock:
    """Two GPUs' clocks, in milliseconds, which their work moves on; and whose turn it was."""

    def __init__(self) -> None:
        self.times = [0.0, 0.0]
        self.order: list[int] = []

    def make_event(self, enable_timing: bool) -> "Event":
        return Event(self)

    def make_work(self, milliseconds: list[float]) -> Callable[[Any, Any], None]:
        def work(a: Any, b: Any) -> None:
            self.times[self.order[-1]] += milliseconds[self.order[-1]]

        return work


class Event:
    """torch.cuda.Event on such a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.at = 0.0

    def record(self, stream: int) -> None:
        self.at = self.clock.times[stream]
        self.clock.order.append(stream)

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


def test_gpu_speed_measures_each_gpu_and_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPU 1 is half as fast at products."""
    clock = Clock()
    monkeypatch.setattr(torch.cuda, "Event", clock.make_event)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: index)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: H100)
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: options["device"])
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: options["device"])
    monkeypatch.setattr(torch, "matmul", clock.make_work([1.5, 3.0]))
    monkeypatch.setattr(torch.Tensor, "copy_", clock.make_work([0.75, 0.75]))
    result = gpu.gpu_speed("cuda")
    assert result.verdict == "warn"
    assert result.summary.startswith(
        f"GPU 1, {H100}: bf16 product 367 TFLOP/s, copy 2.86 TB/s"
    )
    assert result.measured["GPU 0 bf16_tflop_per_s"] == 733.0
    assert clock.order[:4] == [0, 1, 0, 1], "in turns, not one after another"
