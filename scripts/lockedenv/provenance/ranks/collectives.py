"""Do the collectives give right values? Every rank has its own,
so that one in another's place is seen."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Callable

WIDTH = 32  # places of one rank's part of a message
NAMES = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")


@dataclass(frozen=True)
class Case:
    """What a rank puts into a collective, and what it must get."""

    sent: list[int]
    expected: list[int]


@dataclass(frozen=True)
class WrongValues:
    """A collective that gave a rank other values than it must."""

    collective: str
    dtype: str
    rank: int


def make_cases(rank: int, world: int) -> dict[str, Case]:
    """Collective -> what a rank sends and must get.

    WIDTH * world whole numbers at most, exact in bf16 up to 16,384 ranks. To each place of a sum
    only two ranks add a value other than 0, its owner and the follower, which is the next rank:
    bf16 holds every whole number up to 128 + 128. The owner is another rank at each place of a
    part, so that a rank that is missing or counted twice changes sums.
    """
    mine = slice(rank * WIDTH, (rank + 1) * WIDTH)
    whole = []
    sums = []
    gathered = []
    for place in range(WIDTH * world):
        owner = (place // WIDTH + place % WIDTH) % world
        follower = (owner + 1) % world
        own = 0
        if owner == rank:
            own += _value(rank, place)
        if follower == rank:
            own += _value(rank, place)
        whole.append(own)
        sums.append(_value(owner, place) + _value(follower, place))
        gathered.append(_value(place // WIDTH, place))
    return {
        "all_reduce": Case(whole, sums),
        "all_gather": Case(gathered[mine], gathered),
        "reduce_scatter": Case(whole, sums[mine]),
        "broadcast": Case(gathered[mine], gathered[-WIDTH:]),
    }


def check_collectives(rank: int, world: int, device: str) -> list[WrongValues]:
    """What gives wrong values on this rank, in fp32 and in bf16. Raises what torch raises."""
    import torch

    device_module(device).set_device(device)
    collectives = _collectives(world)
    wrong = []
    for name, case in make_cases(rank, world).items():
        for dtype in (torch.float32, torch.bfloat16):
            got = torch.zeros(len(case.expected), dtype=dtype, device=device)
            collectives[name](got, torch.tensor(case.sent, dtype=dtype, device=device))
            if got.tolist() != case.expected:
                wrong.append(WrongValues(name, str(dtype).removeprefix("torch."), rank))
    return wrong


def wrong_values_text(wrong: list[WrongValues]) -> str:
    """The JSON of what is wrong, for the store."""
    return json.dumps([asdict(values) for values in wrong])


def parse_wrong_values(text: str) -> list[WrongValues]:
    """What is wrong, from the store."""
    return [WrongValues(**values) for values in json.loads(text)]


def device_module(device: str) -> Any:
    """torch.cuda or torch.cpu, of a device such as "cuda:1"."""
    import torch

    return getattr(torch, device.split(":")[0])


def _collectives(world: int) -> dict[str, Callable[[Any, Any], Any]]:
    """Collective -> a call of it, which takes the tensor to fill and the tensor to send."""
    import torch.distributed as dist

    def all_reduce(got: Any, sent: Any) -> None:
        got.copy_(sent)
        dist.all_reduce(got)

    def all_gather(got: Any, sent: Any) -> None:
        dist.all_gather(list(got.chunk(world)), sent)

    def reduce_scatter(got: Any, sent: Any) -> None:
        dist.reduce_scatter_tensor(got, sent)

    def broadcast(got: Any, sent: Any) -> None:
        got.copy_(sent)
        dist.broadcast(got, src=world - 1)

    return dict(zip(NAMES, (all_reduce, all_gather, reduce_scatter, broadcast)))


def _value(rank: int, place: int) -> int:
    """1 to 128. Two places in a row tell all ranks apart: an even place has the rank's lowest seven
    bits, an odd one the seven above.
    """
    if place % 2:
        return 1 + ((rank >> 7) + place) % 128
    return 1 + (rank + place) % 128
