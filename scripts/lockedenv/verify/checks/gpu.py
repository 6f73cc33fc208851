"""The GPU: its driver, its speed beside its kind's, the errors and slowdowns that it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Callable

from lockedenv.host.disks import GIB
from lockedenv.host.finding import Finding
from lockedenv.host.gpu_state import judge_state, read_state
from lockedenv.spec.drivers import find_old_driver
from lockedenv.spec.gpu_speeds import FLOORS, REFERENCES, Speed
from lockedenv.spec.level import Level
from lockedenv.verify.checks import (
    CheckOutcome,
    Context,
    Result,
    check,
    child_check,
    failed,
    first,
    no_gpu,
    passed,
    skipped,
    warned,
)

ALIKE = 0.85  # of the median of the other GPUs of the same name, which differ by a few percent
WARM_UP = 20  # rounds that are not counted
ROUNDS = 40


@check(
    "driver",
    "there is a GPU that answers, with a driver new enough for the locked CUDA",
    speaks=True,
)
def driver(context: Context) -> Result:
    reason = no_gpu(context)
    if reason and context.gpu_mode == "require":
        return failed(
            "no GPU found, and --gpu require was given",
            "rent a pod with a GPU, or leave out --gpu require",
        )
    if reason:
        return skipped(reason)
    if context.gpu_error:
        return failed(
            context.gpu_error,
            "run nvidia-smi by hand; if it says the same, take another pod",
        )
    old = find_old_driver(context.gpus, context.cuda)
    if old is not None:
        return failed(old.problem, old.remedy)
    kinds = {f"{gpu.name}, compute capability {gpu.capability}" for gpu in context.gpus}
    names = " and ".join(sorted(kinds))
    return passed(f"{len(context.gpus)} x {names}, driver {context.gpus[0].driver}")


@dataclass(frozen=True)
class Measured:
    """What was measured of one GPU, by its index in torch's order."""

    name: str
    speed: Speed


def judge_speeds(gpus: Sequence[Measured]) -> Result:
    """The verdict on GPUs at work together: which is slow for its kind or beside its like."""
    texts = []
    slow = []
    figures = {}
    for index, gpu in enumerate(gpus):
        figures[f"GPU {index} bf16_tflop_per_s"] = round(gpu.speed.product, 1)
        figures[f"GPU {index} copy_tb_per_s"] = round(gpu.speed.copy, 3)
        text = f"GPU {index}, {gpu.name}: {_describe_speed(gpu)}"
        beside = _compare_with_others(index, gpus)
        if beside < ALIKE:
            text += f"; {beside:.0%} of what the other GPUs do"
        texts.append(text)
        if beside < ALIKE or _is_slow_for_its_kind(gpu):
            slow.append(text)
    if slow:
        remedy = (
            "shared, throttled or faulty: see the check `gpu-state`, stop other jobs, "
            "or take another pod"
        )
        return warned(first(slow), remedy, slow[1:], **figures)
    slowest = min(range(len(gpus)), key=lambda index: gpus[index].speed.product)
    summary = texts[slowest]
    if len(gpus) > 1:
        summary += f"; the slowest of {len(gpus)} at work together"
    return passed(summary, **figures)


def _describe_speed(gpu: Measured) -> str:
    text = (
        f"bf16 product {gpu.speed.product:.0f} TFLOP/s, copy {gpu.speed.copy:.2f} TB/s"
    )
    reference = REFERENCES.get(gpu.name)
    if reference is None:
        return f"{text} (no reference figure for this GPU)"
    product = gpu.speed.product / reference.speed.product
    copy = gpu.speed.copy / reference.speed.copy
    return f"{text}: {product:.0%} and {copy:.0%} of {reference.source.value}"


def _is_slow_for_its_kind(gpu: Measured) -> bool:
    reference = REFERENCES.get(gpu.name)
    if reference is None:
        return False
    floor = FLOORS[reference.source]
    return (
        gpu.speed.product < floor.product * reference.speed.product
        or gpu.speed.copy < floor.copy * reference.speed.copy
    )


def _compare_with_others(index: int, gpus: Sequence[Measured]) -> float:
    """The smaller share of the median of the other GPUs of its name; 1 where there are none."""
    gpu = gpus[index]
    others = []
    for number, other in enumerate(gpus):
        if number != index and other.name == gpu.name:
            others.append(other.speed)
    if not others:
        return 1.0
    product = gpu.speed.product / median(other.product for other in others)
    copy = gpu.speed.copy / median(other.copy for other in others)
    return min(product, copy)


@child_check(
    "gpu-speed",
    "each GPU, all at work together, multiplies and copies at no less than 70 % of what its kind "
    "does",
    gpu=True,
    alone=True,
    memory=4 * GIB,
)
def gpu_speed(device: str) -> Result:
    import torch

    gpus = range(torch.cuda.device_count() or 1)  # where there is none, torch says why
    side = 8192
    size = 2**30
    squares = []
    blocks = []
    for index in gpus:
        place = f"cuda:{index}"
        left = torch.randn(side, side, device=place, dtype=torch.bfloat16)
        right = torch.randn(side, side, device=place, dtype=torch.bfloat16)
        squares.append((left, right))
        target = torch.empty(size, device=place, dtype=torch.uint8)
        source = torch.empty(size, device=place, dtype=torch.uint8)
        blocks.append((target, source))
    products = _measure_rates(2 * side**3, squares, torch.matmul)
    copies = _measure_rates(2 * size, blocks, torch.Tensor.copy_)
    measured = []
    for index in gpus:
        speed = Speed(products[index], copies[index])
        measured.append(Measured(torch.cuda.get_device_name(index), speed))
    return judge_speeds(measured)


def _measure_rates(
    amount: float, pairs: Sequence[Sequence[Any]], work: Callable[[Any, Any], object]
) -> list[float]:
    """How many 10^12 of `amount` each GPU does a second, by the median time of its rounds.

    `pairs`: the two tensors of each GPU that `work` is done on. The rounds are queued, so that all
    GPUs work at once.
    """
    import torch

    count = WARM_UP + ROUNDS + 1
    events = []
    for _ in pairs:
        events.append([torch.cuda.Event(enable_timing=True) for _ in range(count)])
    for number in range(count):
        for index, pair in enumerate(pairs):
            events[index][number].record(torch.cuda.current_stream(index))
            work(*pair)
    for index in range(len(pairs)):
        torch.cuda.synchronize(index)
    rates = []
    for row in events:
        times = []  # milliseconds
        for began, ended in zip(row[WARM_UP:], row[WARM_UP + 1 :]):
            times.append(began.elapsed_time(ended))
        rates.append(amount / median(times) / 1e9)
    return rates


@check(
    "gpu-state",
    "no GPU reports memory errors, a slowdown or less than its full PCIe width",
    Level.FULL,
)
def gpu_state(context: Context) -> Result:
    reason = no_gpu(context)
    if reason:
        return skipped(reason)
    return as_result(judge_state(read_state()))


def as_result(finding: Finding) -> Result:
    """A finding of the machine as a check's result."""
    return Result(
        CheckOutcome(finding.verdict.value),
        finding.summary,
        finding.remedy,
        list(finding.details),
        dict(finding.measured),
        finding.check,
    )
