"""The GPU: its driver, its speed beside its kind's, the errors and brakes that it reports."""

from __future__ import annotations

import subprocess
from typing import Any, Callable, Dict, List, Tuple

from lockedenv.machine import driver_problem
from lockedenv.verify.checks import FULL, Context, check, first
from lockedenv.verify.results import PASS, WARN, Result, failed, passed, skipped, warned


@check("driver", "there is a GPU that answers, with a driver new enough for CUDA 12.4")
def driver(context: Context) -> Result:
    if context.gpu_mode == "off":
        return skipped("--gpu off")
    if context.gpu_error:
        return failed(context.gpu_error, "run nvidia-smi by hand; if it says the same, take another pod")
    if not context.gpus:
        if context.gpu_mode == "require":
            return failed("no GPU found, and --gpu require was given", "rent a pod with a GPU, or leave out --gpu require")
        return skipped("no NVIDIA GPU on this machine")
    problem = driver_problem(context.gpus)
    if problem:
        return failed(problem.split(";")[0], problem.split("; ")[1])
    names = sorted({f"{g.name}, compute capability {g.capability}" for g in context.gpus})
    return passed(f"{len(context.gpus)} x {' and '.join(names)}, driver {context.gpus[0].driver}")


# GPU -> (bf16 matrix product in TFLOP/s, device-to-device copy in TB/s, read plus written). H100: measured with
# PyTorch 2.11, 8192^3 random bf16, on one machine; the others are not known yet and are only reported.
KNOWN: Dict[str, Tuple[float, float]] = {"NVIDIA H100 80GB HBM3": (798.0, 3.0)}
FLOOR = 0.7


def speed_verdict(name: str, tflops: float, tbytes: float) -> Result:
    """The verdict on measured rates, TFLOP/s and TB/s: a warning under 70 % of what is known of that GPU."""
    said = f"{name}: bf16 product {tflops:.0f} TFLOP/s, copy {tbytes:.2f} TB/s"
    measured: Dict[str, Any] = {"bf16_tflop_per_s": round(tflops, 1), "copy_tb_per_s": round(tbytes, 3)}
    if name not in KNOWN:
        return Result(PASS, f"{said} (no reference figure for this GPU)", measured=measured)
    shares = [tflops / KNOWN[name][0], tbytes / KNOWN[name][1]]
    said += f": {shares[0]:.0%} and {shares[1]:.0%} of the reference"
    if min(shares) < FLOOR:
        remedy = "shared, throttled or faulty: see the check `gpu-state`, stop other jobs, or take another pod"
        return Result(WARN, said, remedy, measured=measured)
    return Result(PASS, said, measured=measured)


@check("gpu-speed", "the GPU multiplies and copies at no less than 70 % of what its kind does", FULL, child=True, gpu=True,
       alone=True, memory=4 * 1024**3)  # fmt: skip
def gpu_speed(device: str) -> Result:
    import torch

    def seconds(work: Callable[[], object], rounds: int) -> float:
        times: List[float] = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        return sorted(times)[rounds // 2]

    n = 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    for _ in range(10):
        a @ b
    tflops = 2 * n**3 / seconds(lambda: a @ b, 20) / 1e12
    tbytes = 2 * source.numel() / seconds(lambda: target.copy_(source), 20) / 1e12
    return speed_verdict(torch.cuda.get_device_name(), tflops, tbytes)


_FIELDS = {
    "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors",
    "clocks_throttle_reasons.hw_slowdown": "hardware slowdown",
    "clocks_throttle_reasons.hw_thermal_slowdown": "thermal slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown": "thermal slowdown",
    "pcie.link.width.current": "PCIe width",
    "pcie.link.width.max": "PCIe width at most",
    "retired_pages.pending": "memory pages to be retired",
}


def state_verdict(text: str) -> Result:
    """The verdict on `nvidia-smi --query-gpu=<_FIELDS> --format=csv,noheader,nounits`, one line a GPU."""
    bad: List[str] = []
    for index, line in enumerate(text.strip().splitlines()):
        values = dict(zip(_FIELDS, (part.strip() for part in line.split(","))))
        width, most = (values.get(f"pcie.link.width.{which}", "") for which in ("current", "max"))
        for field, value in values.items():
            if field.startswith("pcie") or value in ("0", "Not Active", "No") or not value or value.startswith("["):
                continue  # [N/A] and [Not Supported]: this GPU does not say
            bad.append(f"GPU {index}: {_FIELDS[field]}: {value}")
        if width.isdigit() and most.isdigit() and int(width) < int(most):
            bad.append(f"GPU {index}: PCIe link has {width} of {most} lanes")
    if any("memory" in line for line in bad):
        return failed(first(bad), "the GPU's memory is failing: take another pod", bad[1:])
    if bad:
        return warned(first(bad), "slower than it should be; if it stays so under load, take another pod", bad[1:])
    return passed("no memory errors, no slowdown, full PCIe width")


@check("gpu-state", "the GPU reports no memory errors, no slowdown and its full PCIe width", FULL)
def gpu_state(context: Context) -> Result:
    if not context.gpus or context.gpu_mode == "off":
        return skipped("--gpu off" if context.gpu_mode == "off" else "no NVIDIA GPU on this machine")
    fields = ",".join(_FIELDS)
    for query in (fields, fields.replace("clocks_throttle_reasons", "clocks_event_reasons")):  # renamed in newer drivers
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            return failed(f"nvidia-smi does not answer: {error}", "run nvidia-smi -q by hand; take another pod")
        text = done.stdout.decode(errors="replace")
        if done.returncode == 0:
            return state_verdict(text)
    return warned(f"nvidia-smi does not say: {' '.join(text.split())[:120]}", "run nvidia-smi -q by hand")
