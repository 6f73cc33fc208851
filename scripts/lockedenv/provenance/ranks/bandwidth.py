"""How fast the ranks exchange data, inside each node and between nodes,
and which node is slower."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any, Mapping

from lockedenv.provenance.ranks.collectives import device_module
from lockedenv.provenance.ranks.meeting import Meeting

SECONDS = 120.0  # for the whole measurement; --timeout if that is less
# Of the messages, in bytes; the last but one gives the nodes' figures.
GPU_SIZES: tuple[int, ...] = (2**20, 2**24, 2**27, 2**30)
CPU_SIZES: tuple[int, ...] = (2**18, 2**20, 2**22)
WARM_UP = 3  # repeats that are not counted
REPEATS = 5
# Of the median. Healthy nodes are within a tenth of each other; a link at half its width or speed
# gives half.
SLOW = 0.7


class Way(Enum):
    """The ranks between which data is sent."""

    INSIDE = "inside the node"
    BETWEEN = "between nodes"


@dataclass(frozen=True)
class SizeRate:
    """The bus bandwidth of an all_reduce of so many bytes over all ranks, in bytes a second."""

    size: int
    rate: float


# Node -> way -> bytes a second.
NodeRates = Mapping[str, Mapping[Way, float]]


@dataclass(frozen=True)
class Bandwidth:
    """What was measured. `nodes` is complete on rank 0 alone."""

    sizes: tuple[SizeRate, ...]
    nodes: NodeRates


@dataclass(frozen=True)
class SlowNode:
    """A node that is well under the others, with its rate and theirs."""

    node: str
    way: Way
    rate: float
    median: float


@dataclass(frozen=True)
class Step:
    """Groups of ranks that exchange data at the same time; no rank is in two of them."""

    way: Way
    groups: tuple[tuple[int, ...], ...]


def plan_steps(nodes: Mapping[str, list[int]]) -> list[Step]:
    """Inside all nodes at once; then the links of a ring of the nodes' first ranks."""
    inside = []
    for ranks in nodes.values():
        if len(ranks) > 1:
            inside.append(tuple(ranks))
    steps = [Step(Way.INSIDE, tuple(inside))]
    for links in find_rounds(_list_first_ranks(nodes)):
        steps.append(Step(Way.BETWEEN, links))
    return steps


def _list_first_ranks(nodes: Mapping[str, list[int]]) -> list[int]:
    return [ranks[0] for ranks in nodes.values()]


def find_rounds(ranks: list[int]) -> list[tuple[tuple[int, int], ...]]:
    """The links of a ring of ranks, in rounds in which no rank has two links."""
    line = list(zip(ranks, ranks[1:]))
    closing = []
    if len(ranks) > 2:
        closing.append((ranks[0], ranks[-1]))
    rounds = []
    for links in (line[::2], line[1::2], closing):
        if links:
            rounds.append(tuple(links))
    return rounds


def measure_bandwidth(
    meeting: Meeting, nodes: Mapping[str, list[int]], device: str, seconds: float
) -> Bandwidth:
    """Measures within `seconds` in all.

    Raises RanksMissing, which names a step, and what torch raises.
    """
    import torch.distributed as dist

    deadline = time.monotonic() + seconds
    sizes = GPU_SIZES
    if device == "cpu":
        sizes = CPU_SIZES
    size_rates = []
    for size in sizes:
        size_rates.append(SizeRate(size, measure_rate(device, size, meeting.world)))
    own: dict[Way, float] = {}
    stage = ""
    for number, step in enumerate(plan_steps(nodes), 1):
        for group in step.groups:
            if meeting.rank in group:
                ranks = list(group)
                members = dist.new_group(ranks, use_local_synchronization=True)
                rate = measure_rate(device, sizes[-2], len(ranks), members)
                # Of its best link, so that a slow neighbour has no say.
                own[step.way] = max(own.get(step.way, 0.0), rate)
        stage = f"bandwidth step {number}, {step.way.value}"
        left = max(0.0, deadline - time.monotonic())
        meeting.exchange(stage, _rates_text(own), left)
    rates = {}
    if meeting.rank == 0:
        texts = meeting.read(stage, _list_first_ranks(nodes))
        for node, text in zip(nodes, texts):
            rates[node] = _parse_rates(text)
    return Bandwidth(tuple(size_rates), rates)


def measure_rate(device: str, size: int, ranks: int, group: Any = None) -> float:
    """The bus bandwidth of an all_reduce of `size` bytes, as nccl-tests define it,
    in bytes a second."""
    import torch

    data = torch.ones(size // 4, device=device)
    seconds = 0.0
    for repeats in (WARM_UP, REPEATS):
        started = time.monotonic()
        for _ in range(repeats):
            torch.distributed.all_reduce(data, group=group)
        device_module(device).synchronize(device)
        seconds = time.monotonic() - started
    return size * 2 * (ranks - 1) / ranks * REPEATS / seconds


def find_slow_nodes(nodes: NodeRates) -> list[SlowNode]:
    """The nodes that are well under the median of all, by way."""
    found = []
    for way in Way:
        rates = {}
        for node, own in nodes.items():
            if way in own:
                rates[node] = own[way]
        if not rates:
            continue
        median = statistics.median(rates.values())
        for node, rate in rates.items():
            if rate < SLOW * median:
                found.append(SlowNode(node, way, rate, median))
    return found


def _rates_text(rates: Mapping[Way, float]) -> str:
    return json.dumps({way.value: rate for way, rate in rates.items()})


def _parse_rates(text: str) -> dict[Way, float]:
    return {Way(name): rate for name, rate in json.loads(text).items()}
