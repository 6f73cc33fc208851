"""How ranks meet: in torchrun's own store, not in a collective.

A rank that never comes, dies or hangs is then known by name. Rank 0 alone reads what all say, and
answers: what a meeting costs grows with the ranks, not with their square.
"""

from __future__ import annotations

import json
import threading
import time
from multiprocessing.pool import ThreadPool
from typing import Any, Callable, Iterable, Protocol

GRACE = 5.0  # seconds that the living get to say so, once one of them has failed
SHOWN = 8  # ranks that are named: the rest is a number
LOOKS = 2000  # that one store answers in a second

# Set by SIGTERM: torchrun sends it to the others when one rank fails; they still say who it was.
stopping = threading.Event()


class RanksMissing(RuntimeError):
    """Some ranks did not get to a stage in time; the message names them."""


class AnotherRankFailed(RuntimeError):
    """torchrun has ended this rank, because another one failed."""


class Wait(Protocol):
    """Waits for a condition; see `wait_until`."""

    def __call__(
        self,
        condition: Callable[[], bool],
        seconds: float,
        heed: bool = True,
        every: float = 0.05,
    ) -> bool: ...


def wait_until(
    condition: Callable[[], bool],
    seconds: float,
    heed: bool = True,
    every: float = 0.05,
) -> bool:
    """Whether a condition comes true within `seconds`; it is looked at `every` so many.

    Raises AnotherRankFailed on SIGTERM, if told to heed it.
    """
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        if heed and stopping.is_set():
            raise AnotherRankFailed("another rank has failed")
        time.sleep(every)
    return condition()


class Meeting:
    """What the ranks know of each other, through a torch.distributed store."""

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        wait: Wait = wait_until,
        grace: float = GRACE,
    ) -> None:
        self.store = store
        self.rank = rank
        self.world = world
        self.grace = grace
        self._wait = wait
        self._every = min(1.0, max(0.05, world / LOOKS))

    def wait(
        self, condition: Callable[[], bool], seconds: float, heed: bool = True
    ) -> bool:
        """As `wait_until`, looking as often as the store can bear."""
        return self._wait(condition, seconds, heed=heed, every=self._every)

    def reach(self, stage: str, value: str = "") -> None:
        """Says that this rank has got to a stage, and leaves a value there."""
        # The value first: of who is in the list it can be read.
        self.store.set(f"{stage}/{self.rank}", value)
        self.store.append(stage, f"{self.rank} ")

    def read(self, stage: str, ranks: Iterable[int]) -> list[str]:
        """The values that these ranks have left at a stage."""
        keys = [f"{stage}/{rank}" for rank in ranks]
        return [value.decode() for value in self.store.multi_get(keys)]

    def read_all(self, stage: str) -> list[str]:
        """The values that all ranks have left at a stage; for rank 0 alone, others get none."""
        if self.rank != 0:
            return []
        return self.read(stage, range(self.world))

    def missing(self, *stages: str) -> list[int]:
        """The ranks that have got to none of these stages."""
        present: set[int] = set()
        for stage in stages:
            if self.store.check([stage]):
                for rank in self.store.get(stage).split():
                    present.add(int(rank))
        return sorted(set(range(self.world)) - present)

    def name_ranks(self, ranks: list[int]) -> str:
        """These ranks, with their nodes where they have said which: rank 1 (node-b)."""
        shown = ranks[:SHOWN]
        arrived = set(shown) - set(self.missing("arrived"))
        known = sorted(arrived)
        nodes = {}
        for rank, text in zip(known, self.read("arrived", known)):
            nodes[rank] = f" ({json.loads(text)['node']})"
        names = ", ".join(f"rank {rank}{nodes.get(rank, '')}" for rank in shown)
        if len(ranks) > SHOWN:
            names += f" and {len(ranks) - SHOWN} more ranks"
        return names

    def exchange(
        self, stage: str, value: str, seconds: float, answer: Callable[[], str] = str
    ) -> str:
        """Rank 0's `answer`, once all ranks have got to a stage. Raises RanksMissing."""
        self.reach(stage, value)
        if not self._comes_true(stage, seconds):
            absent = self.missing(stage)
            if not absent:  # all are there, and rank 0 does not answer
                absent = [0]
            raise RanksMissing(
                f"{self.name_ranks(absent)} did not get to `{stage}` within {seconds:.0f} s: dead, "
                "hanging, or not started"
            )
        if self.rank == 0:
            self.store.set(f"{stage}/answer", answer())
        text: str = self.store.get(f"{stage}/answer").decode()
        return text

    def _comes_true(self, stage: str, seconds: float) -> bool:
        """Whether rank 0 sees all ranks at a stage in time, or another rank sees its answer."""

        def ready() -> bool:
            if self.rank == 0:
                return not self.missing(stage)
            there: bool = self.store.check([f"{stage}/answer"])
            return there

        if self.wait(ready, seconds):
            return True
        if self.missing(stage):
            return False
        return self.wait(ready, self.grace)  # rank 0 may be at its answer


def run_in_thread(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` gives, run where it cannot keep this process from
    noticing a signal or a time-out.

    Raises TimeoutError, AnotherRankFailed, and what `work` raises.
    """
    answer = ThreadPool(1).apply_async(
        work
    )  # a daemon: this process can end while it hangs
    if not wait_until(answer.ready, seconds):
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return answer.get()


def explain_failure(meeting: Meeting, stage: str, error: Exception) -> str:
    """What to say of a failure: which ranks are gone,
    known by who does not answer within the grace."""
    try:
        meeting.reach("failed")  # first of all: who does not say so is taken for dead
        if isinstance(error, RanksMissing):
            return str(error)

        def gone() -> list[int]:
            return meeting.missing("failed", f"{stage} done")

        if meeting.wait(lambda: not gone(), meeting.grace, heed=False):
            return f"the {stage} failed on every rank: {type(error).__name__}: {str(error)[:200]}"
        names = meeting.name_ranks(gone())
        return f"{names} died or hangs in `{stage}`; its output and NCCL_DEBUG=INFO say more"
    except Exception as lost:  # whatever the store raises
        return (
            "the store is gone, with the node of rank 0: it died or lost the network "
            f"({type(lost).__name__}: {lost})"
        )


def explain_within_grace(meeting: Meeting, stage: str, error: Exception) -> str:
    """As `explain_failure`; a store behind a dead link never answers, and then this says so."""
    answer = ThreadPool(1).apply_async(explain_failure, (meeting, stage, error))
    if not wait_until(answer.ready, 4 * meeting.grace, heed=False):
        return "the store does not answer: its node, rank 0's, died or lost the network"
    text: str = answer.get()
    return text
