"""The GPU: its driver, its speed beside its kind's, the errors and brakes that it reports."""

from __future__ import annotations

from statistics import median
from typing import Any, Callable, Dict, List, Tuple

from lockedenv.host.machine import GIB, driver_problem
from lockedenv.host.process import ask
from lockedenv.verify.checks import (
    FULL,
    Context,
    Result,
    check,
    failed,
    first,
    no_gpu,
    passed,
    skipped,
    warned,
)


@check("driver", "there is a GPU that answers, with a driver new enough for the locked CUDA")
def driver(context: Context) -> Result:
    if no_gpu(context) and context.gpu_mode == "require":
        return failed(
            "no GPU found, and --gpu require was given",
            "rent a pod with a GPU, or leave out --gpu require",
        )
    if no_gpu(context):
        return skipped(no_gpu(context))
    if context.gpu_error:
        return failed(
            context.gpu_error, "run nvidia-smi by hand; if it says the same, take another pod"
        )
    problem = driver_problem(context.gpus, context.cuda)
    if problem:
        return failed(*problem.split("; "))
    names = sorted({f"{g.name}, compute capability {g.capability}" for g in context.gpus})
    return passed(f"{len(context.gpus)} x {' and '.join(names)}, driver {context.gpus[0].driver}")


# Name by nvidia-smi and torch -> dense bf16 matrix product in TFLOP/s, memory in TB/s, what these are. Measured: PyTorch 2.11,
# 8192^3 random bf16, copy read plus written, one machine. Peaks: NVIDIA's data sheets of A100, H100, H200 and HGX B200, half
# of a bf16 figure with sparsity. A MIG slice has another name ("... MIG 1g.10gb"): it is not held against a whole GPU.
MEASURED, PEAK = "the measured reference", "the maker's peak"
KNOWN: Dict[str, Tuple[float, float, str]] = {
    "NVIDIA H100 80GB HBM3": (798, 3.0, MEASURED),
    "NVIDIA H100 PCIe": (756, 2.0, PEAK),
    "NVIDIA H100 NVL": (835, 3.9, PEAK),
    "NVIDIA H200": (989, 4.8, PEAK),
    "NVIDIA A100-SXM4-40GB": (312, 1.555, PEAK),
    "NVIDIA A100-SXM4-80GB": (312, 2.039, PEAK),
    "NVIDIA A100-PCIE-40GB": (312, 1.555, PEAK),
    "NVIDIA A100 80GB PCIe": (312, 1.935, PEAK),
    "NVIDIA B200": (2250, 8.0, PEAK),
}
# 70 % of what is measured; of a peak 70 % of what that H100 reaches: 798 of its maker's 989 TFLOP/s (81 %), 3.0 of 3.35 (90 %)
FLOORS = {MEASURED: (0.7, 0.7), PEAK: (0.7 * 0.81, 0.7 * 0.9), "": (0.0, 0.0)}
ODD = 0.85  # of the median of the other GPUs of the same name, which differ by a few percent


def speed_verdict(speeds: List[Tuple[str, float, float]]) -> Result:
    """The verdict on (name, TFLOP/s, TB/s) of GPU 0, 1, ... at work together: which is slow for its kind or beside its like."""
    said, slow, figures = [], [], {}
    for index, (name, *rates) in enumerate(speeds):
        figures.update(
            {
                f"GPU {index} bf16_tflop_per_s": round(rates[0], 1),
                f"GPU {index} copy_tb_per_s": round(rates[1], 3),
            }
        )
        *most, kind = KNOWN.get(name, (1.0, 1.0, ""))
        shares = [rate / known for rate, known in zip(rates, most)]
        others = [other[1:] for i, other in enumerate(speeds) if i != index and other[0] == name]
        beside = min((rate / median(each) for rate, each in zip(rates, zip(*others))), default=1.0)
        text = f"GPU {index}, {name}: bf16 product {rates[0]:.0f} TFLOP/s, copy {rates[1]:.2f} TB/s"
        text += (
            f": {shares[0]:.0%} and {shares[1]:.0%} of {kind}"
            if kind
            else " (no reference figure for this GPU)"
        )
        text += f"; {beside:.0%} of what the other GPUs do" if beside < ODD else ""
        said.append(text)
        if beside < ODD or any(share < floor for share, floor in zip(shares, FLOORS[kind])):
            slow.append(text)
    if slow:
        remedy = "shared, throttled or faulty: see the check `gpu-state`, stop other jobs, or take another pod"
        return warned(first(slow), remedy, slow[1:], **figures)
    slowest = said[min(range(len(said)), key=lambda index: speeds[index][1])]
    return passed(
        slowest + f"; the slowest of {len(said)} at work together" * (len(said) > 1), **figures
    )


@check(
    "gpu-speed",
    "each GPU, all at work together, multiplies and copies at no less than 70 % of what its kind does",
    FULL,
    child=True,
    gpu=True,
    alone=True,
    memory=4 * GIB,
)
def gpu_speed(device: str) -> Result:
    import torch

    gpus = range(torch.cuda.device_count() or 1)  # where there is none, torch says why

    def rates(
        amount: float, pairs: List[List[Any]], work: Callable[[Any, Any], object]
    ) -> List[float]:
        """How many 10^12 of `amount` each GPU does a second, by the median time; the rounds are queued: all work at once."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(61)] for _ in gpus]
        for row in zip(*events):
            for index, pair in enumerate(pairs):
                row[index].record(torch.cuda.current_stream(index))
                work(*pair)
        for index in gpus:
            torch.cuda.synchronize(index)
        return [
            amount / median(a.elapsed_time(b) for a, b in zip(row[20:], row[21:])) / 1e9
            for row in events
        ]

    n, size = 8192, 2**30
    squares = [
        [torch.randn(n, n, device=f"cuda:{i}", dtype=torch.bfloat16) for _ in range(2)]
        for i in gpus
    ]
    blocks = [
        [torch.empty(size, device=f"cuda:{i}", dtype=torch.uint8) for _ in range(2)] for i in gpus
    ]
    tflops, tbytes = rates(2 * n**3, squares, torch.matmul), rates(
        2 * size, blocks, torch.Tensor.copy_
    )
    return speed_verdict([(torch.cuda.get_device_name(i), tflops[i], tbytes[i]) for i in gpus])


# nvidia-smi's queries: field -> what it is about. clocks_event_reasons were called clocks_throttle_reasons; remapped rows are
# from Ampere on what retired pages were. https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/
BRAKES = {
    "hw": "hardware slowdown",
    "hw_thermal": "thermal slowdown",
    "sw_thermal": "thermal slowdown",
}
QUERIES = {
    "gpu": {
        "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors",
        **{
            f"clocks_{word}_reasons.{brake}_slowdown": about
            for word in ("event", "throttle")
            for brake, about in BRAKES.items()
        },
        "pcie.link.width.current": "PCIe width",
        "pcie.link.width.max": "PCIe width at most",
    },
    "remapped-rows": {
        "remapped_rows.pending": "memory rows wait for a reset to be remapped",
        "remapped_rows.failure": "memory rows cannot be remapped",
    },
}
GOOD = (
    "0",
    "no",
    "not active",
    "",
    "[n/a]",
    "[not supported]",
    "[insufficient permissions]",
)  # or this GPU does not say; any other [...] is an error


def state_verdict(answers: Dict[str, Tuple[List[str], str]]) -> Result:
    """The verdict on nvidia-smi's answers by query: (the fields that were asked for, their values, a line for each GPU)."""
    bad: List[str] = []
    for query, (fields, text) in answers.items():
        for index, line in enumerate(text.strip().splitlines()):
            values = dict(zip(fields, (part.strip() for part in line.split(","))))
            for field, value in values.items():
                if value.lower() not in GOOD and not (field.startswith("pcie") and value.isdigit()):
                    bad.append(f"GPU {index}: {QUERIES[query][field]}: {value}")
            width, most = (
                values.get(f"pcie.link.width.{which}", "") for which in ("current", "max")
            )
            if width.isdigit() and most.isdigit() and int(width) < int(most):
                bad.append(f"GPU {index}: PCIe link has {width} of {most} lanes")
    bad = sorted(dict.fromkeys(bad), key=lambda line: "memory" not in line and "[" not in line)
    if bad and ("memory" in bad[0] or "[" in bad[0]):
        remedy = (
            "the GPU must be reset, which a pod cannot do"
            if "reset" in bad[0]
            else "the GPU or its memory is failing"
        )
        return failed(first(bad), f"{remedy}: take another pod", bad[1:])
    if bad:
        return warned(
            first(bad),
            "slower than it should be; if it stays so under load, take another pod",
            bad[1:],
        )
    return passed("no memory errors, no slowdown, full PCIe width")


@check(
    "gpu-state", "no GPU reports memory errors, a slowdown or less than its full PCIe width", FULL
)
def gpu_state(context: Context) -> Result:
    return skipped(no_gpu(context)) if no_gpu(context) else ask_state()


def ask_state() -> Result:
    """What nvidia-smi says of the state of each GPU."""
    answers, hand = {}, "run nvidia-smi -q by hand; take another pod"
    for query, fields in ((query, list(fields)) for query, fields in QUERIES.items()):
        unknown = ["?"]
        while (
            unknown
        ):  # a field that the driver does not know: it says so of the first, and answers none
            status, text, why = ask(
                [
                    "nvidia-smi",
                    f"--query-{query}={','.join(fields)}",
                    "--format=csv,noheader,nounits",
                ]
            )
            unknown = [field for field in fields if f'"{field}" is not a valid field' in text + why]
            fields = [field for field in fields if field not in unknown]
        if status is None:
            return failed(f"nvidia-smi does not answer: {why}", hand)
        if status:
            return warned(f"nvidia-smi does not say: {' '.join((text + why).split())[:120]}", hand)
        answers[query] = (fields, text)
    return state_verdict(answers)
