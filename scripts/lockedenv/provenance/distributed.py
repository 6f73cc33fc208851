"""The same environment on every rank of a job, and collectives that give right values; under torchrun.

Ranks meet in torchrun's own store, not in a collective: a rank that never comes, dies or hangs is then known by name.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any, Callable, Dict, List, Optional

from lockedenv.installed import Installed
from lockedenv.machine import Gpu
from lockedenv.provenance.compare import differences
from lockedenv.provenance.manifest import make

ARRIVED, DONE = "arrived", "done"
GRACE = 5.0  # seconds that the living get to say so, once one of them has failed
SIZES = [2**20, 2**24, 2**27, 2**30]  # bytes, for the bandwidth table


# Set by SIGTERM: torchrun sends it to the others when one rank fails. They still say who it was before they end.
stopping = threading.Event()


class Absent(Exception):
    """Some ranks did not get to a stage in time; the message names them."""


class Stopped(Exception):
    """torchrun has sent SIGTERM: another rank has failed."""


class Meeting:
    """What the ranks know of each other, through a torch.distributed store."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world

    def reach(self, stage: str, value: str = "") -> None:
        self.store.set(f"maximalcai/{stage}/{self.rank}", value or platform.node())

    def read(self, stage: str, rank: int) -> str:
        return str(self.store.get(f"maximalcai/{stage}/{rank}").decode())

    def missing(self, stage: str) -> List[int]:
        return [r for r in range(self.world) if not self.store.check([f"maximalcai/{stage}/{r}"])]

    def names(self, ranks: List[int]) -> str:
        """Ranks with their nodes, where they have said which: rank 1 (node-b)."""
        known = [(r, r not in self.missing(ARRIVED)) for r in ranks]
        return ", ".join(f"rank {r}" + (f" ({json.loads(self.read(ARRIVED, r))['node']})" if there else "") for r, there in known)

    def wait(self, stage: str, seconds: float) -> None:
        """Until every rank has reached a stage. Raises Absent after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            absent = self.missing(stage)
            if not absent:
                return
            if stopping.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise Absent(
                    f"{self.names(absent)} did not get to `{stage}` within {seconds:.0f} s: dead, hanging, or not started"
                )
            time.sleep(0.05)


def description(installed: Installed, gpus: List[Gpu]) -> Dict[str, Any]:
    """What this rank tells the others: its node and its manifest (without results)."""
    manifest = make(installed, gpus)
    return {"node": platform.node(), "local_rank": int(os.environ.get("LOCAL_RANK", "0")), "manifest": manifest}


def identity(description: Dict[str, Any]) -> Dict[str, str]:
    """What must be the same on every rank."""
    manifest = description["manifest"]
    gpus = manifest["gpus"]
    return {
        "fingerprint": manifest["fingerprint"],
        "GPU": gpus[0]["name"] if gpus else "none",
        "driver": gpus[0]["driver"] if gpus else "none",
        "NCCL": manifest["cuda"]["nccl"] or "none",
    }


def table(descriptions: List[Dict[str, Any]]) -> "tuple[str, bool]":
    """(text, all the same): one row for the ranks of a node that agree, the odd ones out named, with what differs."""
    identities = [identity(d) for d in descriptions]
    usual = json.loads(Counter(json.dumps(i, sort_keys=True) for i in identities).most_common(1)[0][0])
    reference = descriptions[[i == usual for i in identities].index(True)]["manifest"]
    groups: Dict[Any, List[int]] = {}
    for rank, (d, i) in enumerate(zip(descriptions, identities)):
        groups.setdefault((d["node"], json.dumps(i, sort_keys=True)), []).append(rank)
    lines = [f"{'node':<24} {'ranks':<10} {'fingerprint':<12} {'GPU':<26} {'driver':<12} NCCL"]
    odd = []
    for (node, text), ranks in groups.items():
        i = json.loads(text)
        mark = "" if i == usual else "  <- differs"
        where = f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0])
        lines.append(f"{node:<24} {where:<10} {i['fingerprint'][:12]} {i['GPU']:<26} {i['driver']:<12} {i['NCCL']}{mark}")
        if i != usual:
            odd.append((node, ranks, descriptions[ranks[0]]["manifest"]))
    for node, ranks, manifest in odd:
        lines.append(f"rank {', '.join(map(str, ranks))} on {node} is not like the others:")
        rows = [row for row in differences(reference, manifest) if row[0] in ("packages", "GPU", "driver")]
        lines += [f"  {group} {name}: others {theirs}, here {here}" for group, name, theirs, here in rows]
    return "\n".join(lines), not odd


def collectives(device: str, rank: int, world: int) -> List[str]:
    """What is wrong with the values that the collectives give, for fp32 and bf16; empty if nothing is.

    The values differ by rank and place, and are small integers, so that their sums are exact in bf16 too.
    """
    import torch
    import torch.distributed as dist

    wrong = []
    places = torch.arange(64)

    def of(r: int) -> Any:
        return (places * (r + 1)) % 5 + r % 3

    for dtype in (torch.float32, torch.bfloat16):
        total = sum(of(r) for r in range(world)).to(dtype)
        mine = of(rank).to(dtype).to(device)
        reduced = mine.clone()
        dist.all_reduce(reduced)
        gathered = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(gathered, mine)
        whole = torch.cat([of(rank + 10 * part) for part in range(world)]).to(dtype).to(device)
        scattered = torch.empty_like(mine)
        dist.reduce_scatter_tensor(scattered, whole)
        part = sum(of(r + 10 * rank) for r in range(world)).to(dtype)
        sent = mine.clone()
        dist.broadcast(sent, src=world - 1)
        for name, got, wants in (
            ("all_reduce", reduced, total),
            ("all_gather", torch.cat(gathered), torch.cat([of(r) for r in range(world)]).to(dtype)),
            ("reduce_scatter", scattered, part),
            ("broadcast", sent, of(world - 1).to(dtype)),
        ):
            if not torch.equal(got.cpu(), wants):
                wrong.append(f"{name} of {str(dtype)[6:]} gives wrong values on rank {rank}")
    return wrong


def bandwidth(device: str, world: int) -> List[str]:
    """The all_reduce bus bandwidth by message size, GB/s: bytes * 2 (n - 1) / n / time, as nccl-tests define it."""
    import torch
    import torch.distributed as dist

    lines = []
    for size in SIZES:
        data = torch.ones(size // 4, device=device)
        for _ in range(3):
            dist.all_reduce(data)
        torch.cuda.synchronize()
        started = time.monotonic()
        for _ in range(5):
            dist.all_reduce(data)
        torch.cuda.synchronize()
        seconds = (time.monotonic() - started) / 5
        lines.append(f"  all_reduce {size / 2**20:5.0f} MiB  {size * 2 * (world - 1) / world / seconds / 1e9:7.1f} GB/s")
    return lines


def in_thread(work: Callable[[], Any], seconds: float) -> Any:
    """The result of `work`, run where it cannot stop this process from noticing a signal or a time-out."""
    answer: List[Any] = []

    def call() -> None:
        try:
            answer.append((work(), None))
        except BaseException as error:  # told by the caller
            answer.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(0.1)
        if stopping.is_set() and not answer:
            raise Stopped
    if not answer:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    value, error = answer[0]
    if error is not None:
        raise error
    return value


def main(installed: Installed, gpus: List[Gpu], timeout: float) -> int:
    """The check on this rank; gives the exit status, the same on every rank that lives to give one."""
    try:
        import torch
        import torch.distributed as dist

        store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    except Exception as error:
        print(f"the ranks cannot meet: {error}; run it under torchrun, and check MASTER_ADDR and the port", file=sys.stderr)
        return 1
    meeting = Meeting(store, rank, world)
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    cuda = bool(gpus)
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu"
    stage = ARRIVED
    try:
        meeting.reach(ARRIVED, json.dumps(description(installed, gpus)))
        meeting.wait(ARRIVED, timeout)
        text, same = table([json.loads(meeting.read(ARRIVED, r)) for r in range(world)])
        if rank == 0:
            print(f"{world} ranks\n{text}", flush=True)
        stage = "collectives"

        def work() -> List[str]:
            if cuda:
                torch.cuda.set_device(device)
            options = {"timeout": timedelta(seconds=timeout), "rank": rank, "world_size": world}
            dist.init_process_group("nccl" if cuda else "gloo", store=dist.PrefixStore("collectives", store), **options)
            wrong = collectives(device, rank, world)
            lines = bandwidth(device, world) if cuda and not wrong else []
            if rank == 0 and lines:
                print("\n".join(lines), flush=True)
            return wrong

        wrong = in_thread(work, timeout)
        meeting.reach(DONE, "; ".join(wrong) or "right")
        meeting.wait(DONE, timeout)
        told = [meeting.read(DONE, r) for r in range(world)]
        wrong = [text for text in told if text != "right"]
    except (Absent, Stopped, TimeoutError, RuntimeError, ConnectionError) as error:
        print(f"rank {rank}: {explain(meeting, stage, error)}", file=sys.stderr, flush=True)
        return 1
    if rank == 0:
        for text in wrong:
            print(text)
        right = "all_reduce, all_gather, reduce_scatter and broadcast give the right values, fp32 and bf16"
        print(right if not wrong else "the collectives are WRONG: check the network between the nodes, NCCL_DEBUG=INFO says more")
        print("the same environment on every rank" if same else "NOT the same environment on every rank", flush=True)
    meeting.reach("left")
    if rank == 0:  # the store may live in this process: leave last
        try:
            meeting.wait("left", GRACE)
        except Absent:
            pass
    return 0 if same and not wrong else 1


def explain(meeting: Meeting, stage: str, error: Exception) -> str:
    """What to tell of a failure: which ranks are gone, found by who does not answer within the grace."""
    if isinstance(error, Absent):
        return str(error)
    try:
        meeting.reach("failed")
        deadline = time.monotonic() + GRACE
        absent: Optional[List[int]] = None
        while time.monotonic() < deadline:
            absent = [r for r in meeting.missing("failed") if r in meeting.missing(DONE)]
            if not absent:
                break
            time.sleep(0.1)
    except Exception as lost:
        return f"the store is gone, with the node of rank 0: it died or lost the network ({type(lost).__name__}: {lost})"
    if absent:
        return f"{meeting.names(absent)} died or hangs in `{stage}`; its own output, and NCCL_DEBUG=INFO, say more"
    return f"the {stage} failed on every rank: {type(error).__name__}: {str(error)[:200]}"
