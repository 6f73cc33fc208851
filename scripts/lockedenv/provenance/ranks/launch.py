"""Which rank of a job this process is, by the variables of torchrun."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Mapping

from lockedenv.errors import Stop

MOST_RANKS = 16_384  # up to which the values of the collectives are exact in bf16
REMEDY = "run it under torchrun, and check MASTER_ADDR and the port"


@dataclass(frozen=True)
class Launch:
    """`rank` of `world` in the job, `local_rank` on its node.

    `group`: the node's number at torchrun.
    """

    rank: int
    world: int
    local_rank: int
    group: int

    @property
    def is_first_of_node(self) -> bool:
        """Whether this rank speaks for its node."""
        return self.local_rank == 0


def read_launch(environ: Mapping[str, str]) -> Launch:
    """The place of this process among the ranks. Raises Stop for variables that make no sense."""
    for name in ("RANK", "WORLD_SIZE"):
        if name not in environ:
            raise Stop(f"the ranks cannot meet: {name} is not set; {REMEDY}")
    rank = _read_number(environ, "RANK")
    world = _read_number(environ, "WORLD_SIZE")
    if not rank < world:
        raise Stop(
            f"the ranks cannot meet: RANK is {rank}, and WORLD_SIZE {world}; {REMEDY}"
        )
    if world > MOST_RANKS:
        raise Stop(
            f"the ranks cannot meet: WORLD_SIZE is {world}, and at most {MOST_RANKS} ranks can be "
            "checked; run it on a part of the job"
        )
    return Launch(
        rank=rank,
        world=world,
        local_rank=_read_number(environ, "LOCAL_RANK"),
        group=_read_number(environ, "GROUP_RANK"),
    )


def open_store(launch: Launch, seconds: float) -> Any:
    """torchrun's own store, in which the ranks meet. Raises Stop if it cannot be reached."""
    try:
        import torch.distributed as dist

        store, rank, world = next(
            dist.rendezvous("env://", timeout=timedelta(seconds=seconds))
        )
    except Exception as error:  # whatever torch raises for an address that is wrong
        raise Stop(f"the ranks cannot meet: {error}; {REMEDY}") from None
    if (rank, world) != (launch.rank, launch.world):
        raise Stop(
            f"the ranks cannot meet: the store calls this rank {rank} of {world}; {REMEDY}"
        )
    return dist.PrefixStore("maximalcai", store)


def choose_gpu(launch: Launch, visible: str) -> str:
    """The GPU of this rank, as CUDA_VISIBLE_DEVICES names it.

    `visible`: that variable; may be empty.
    """
    if not visible:
        return str(launch.local_rank)
    names = visible.split(",")
    # Some launchers show each rank one GPU.
    return names[min(launch.local_rank, len(names) - 1)]


def _read_number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "0")
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise Stop(
            f"the ranks cannot meet: {name} is {text[:40]!r}, "
            f"which is not a number of a rank; {REMEDY}"
        )
    return int(text)
