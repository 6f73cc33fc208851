"""Under torchrun: the same environment on every rank, collectives that give right values, no node slower than the others.

Ranks meet in torchrun's own store, not in a collective: a rank that never comes, dies or hangs is then known by name.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from lockedenv.errors import Stop, disk_text
from lockedenv.host.machine import Gpu, write_atomically
from lockedenv.pod import verdict as pod
from lockedenv.prefix.records import Installed
from lockedenv.provenance import certificate, compare
from lockedenv.provenance.compare import differences
from lockedenv.provenance.manifest import make

GRACE = 5.0  # seconds that the living get to say so, once one of them has failed
BANDWIDTH_SECONDS = 120.0  # for the whole measurement; --timeout if that is less
SIZES, CPU_SIZES = [2**20, 2**24, 2**27, 2**30], [
    2**18,
    2**20,
    2**22,
]  # bytes; the last but one gives the nodes' figures
WIDTH, SHOWN = (
    32,
    8,
)  # places of one rank's part of a message; manifests of odd ranks that are read: the rest is a number
SLOW = 0.7  # of the median: healthy nodes are within a tenth of each other, a link at half its width or speed gives half
INSIDE, BETWEEN = "inside the node", "between nodes"
LOOK_AT = {
    INSIDE: "`nvidia-smi topo -m` and `nvidia-smi nvlink -s` there",
    BETWEEN: "its network cards and NCCL_DEBUG=INFO",
}
stopping = (
    threading.Event()
)  # set by SIGTERM: torchrun sends it to the others when one fails; they still say who it was


def until(true: Callable[[], bool], seconds: float, heed: bool = True, every: float = 0.05) -> bool:
    """Whether a condition comes true within `seconds`. Raises InterruptedError on SIGTERM, if told to heed it."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        if heed and stopping.is_set():
            raise InterruptedError("another rank has failed")
        time.sleep(every)
    return true()


class Meeting:
    """What the ranks know of each other, through a torch.distributed store: rank 0 alone reads what all say, and answers."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.until = partial(
            until, every=min(1.0, max(0.05, world / 2000))
        )  # one store answers 2,000 looks a second

    def reach(self, stage: str, value: str = "") -> None:
        self.store.set(
            f"{stage}/{self.rank}", value
        )  # the value first: who is in the list can be read
        self.store.append(stage, f"{self.rank} ")

    def read(self, what: str, ranks: Iterable[int]) -> List[str]:
        return [
            value.decode() for value in self.store.multi_get([f"{what}/{rank}" for rank in ranks])
        ]

    def missing(self, *stages: str) -> List[int]:
        """The ranks that have got to none of these stages."""
        there = b"".join(self.store.get(stage) for stage in stages if self.store.check([stage]))
        return sorted({*range(self.world)}.difference(map(int, there.split())))

    def names(self, ranks: List[int]) -> str:
        """Those ranks, with their nodes where they have said which: rank 1 (node-b)."""
        known = sorted({*ranks}.difference(self.missing("arrived")))
        nodes = {
            r: f" ({json.loads(text)['node']})"
            for r, text in zip(known, self.read("arrived", known))
        }
        return ", ".join(f"rank {r}{nodes.get(r, '')}" for r in ranks)

    def exchange(
        self, stage: str, value: str, seconds: float, answer: Callable[[], str] = str
    ) -> str:
        """Rank 0's `answer`, once all have got to a stage. Raises ProcessLookupError, which names who has not in time."""
        self.reach(stage, value)
        ready = (
            (lambda: self.store.check([f"{stage}/answer"]))
            if self.rank
            else (lambda: not self.missing(stage))
        )
        if not self.until(ready, seconds) and (self.missing(stage) or not self.until(ready, GRACE)):
            absent = self.names(self.missing(stage) or [0])
            raise ProcessLookupError(
                f"{absent} did not get to `{stage}` within {seconds:.0f} s: dead, hanging, or not started"
            )
        if self.rank == 0:
            self.store.set(f"{stage}/answer", answer())
        return str(self.store.get(f"{stage}/answer").decode())


def nodes_of(descriptions: List[Dict[str, Any]]) -> Dict[str, List[int]]:
    """Node -> its ranks in order; torchrun's number of the group tells nodes of one name apart."""
    groups: Dict[Tuple[str, str], List[int]] = {}
    for rank, d in enumerate(descriptions):
        groups.setdefault((d["node"], d["group"]), []).append(rank)
    names = Counter(name for name, _ in groups)
    return {
        name + (f" (group {group})" if names[name] > 1 else ""): ranks
        for (name, group), ranks in groups.items()
    }


def table(meeting: Meeting, tell: Callable[..., None]) -> str:
    """Tells a row for the ranks of a node that agree, and the odd ones; [all the same, node -> ranks, a GPU lacks] as JSON."""
    descriptions = [json.loads(text) for text in meeting.read("arrived", range(meeting.world))]
    identities = [tuple(d["identity"]) for d in descriptions]
    usual = Counter(identities).most_common(1)[0][0]
    groups: Dict[Any, List[int]] = {}
    for rank, d in enumerate(descriptions):
        groups.setdefault((identities[rank], d["node"]), []).append(rank)
    row = "{:<24} {:<10} {:<12.12} {:<26} {:<12} {}".format
    tell(f"{meeting.world} ranks", row("node", "ranks", "fingerprint", "GPU", "driver", "NCCL"))
    for (identity, node), ranks in groups.items():
        tell(
            row(node, "-".join(map(str, sorted({ranks[0], ranks[-1]}))), *identity)
            + "  <- differs" * (identity != usual)
        )
    tell(*(f"{d['node']}: {d['pod']}" for d in descriptions if d.get("pod")))
    blind = dict.fromkeys(f"{d['node']}: {d['lack']}" for d in descriptions if d.get("lack"))
    tell(*blind)
    odd = [(node, ranks) for (identity, node), ranks in groups.items() if identity != usual]
    like, *unlike = map(
        json.loads,
        meeting.read("manifest", [identities.index(usual), *(r[0] for _, r in odd[:SHOWN])]),
    )
    for (node, ranks), own in zip(odd, unlike):
        rows = [
            f"  {g} {n}: others {a}, here {b}"
            for g, n, a, b in differences(like, own)
            if g in ("packages", "GPU", "driver")
        ]
        tell(f"rank {', '.join(map(str, ranks))} on {node} is not like the others:", *rows)
    if odd[SHOWN:]:
        tell(
            f"and {sum(len(ranks) for _, ranks in odd[SHOWN:])} more ranks are not like the others"
        )
    return json.dumps([not odd, nodes_of(descriptions), bool(blind)])


def values(rank: int, world: int) -> Dict[str, Tuple[List[int], List[int]]]:
    """Collective -> (what a rank puts in, what it must get): WIDTH * world integers at most, exact in bf16 up to 16,384 ranks."""

    def value(r: int, place: int) -> int:  # 1 to 128; two places in a row tell all ranks apart
        return 1 + ((r >> 7 * (place % 2)) + place) % 128

    places, mine = range(WIDTH * world), slice(rank * WIDTH, (rank + 1) * WIDTH)
    first = [(p // WIDTH + p % WIDTH) % world for p in places]
    whole = [
        value(rank, p) * ((r == rank) + ((r + 1) % world == rank)) for p, r in enumerate(first)
    ]
    sums = [
        value(r, p) + value((r + 1) % world, p) for p, r in enumerate(first)
    ]  # 256 at most: bf16 has no 257
    all_ = [value(p // WIDTH, p) for p in places]
    own, part, last = all_[mine], sums[mine], all_[-WIDTH:]
    return {
        "all_reduce": (whole, sums),
        "all_gather": (own, all_),
        "reduce_scatter": (whole, part),
        "broadcast": (own, last),
    }


def collectives(meeting: Meeting, device: str) -> List[str]:
    """What is wrong with the values that the collectives give, for fp32 and bf16; empty if nothing is."""
    import torch

    getattr(torch, device.split(":")[0]).set_device(device)
    wrong = []
    ways: Dict[str, Callable[[Any, Any], Any]] = {
        "all_reduce": lambda got, sent: torch.distributed.all_reduce(got.copy_(sent)),
        "all_gather": lambda got, sent: torch.distributed.all_gather(
            list(got.chunk(meeting.world)), sent
        ),
        "reduce_scatter": torch.distributed.reduce_scatter_tensor,
        "broadcast": lambda got, sent: torch.distributed.broadcast(
            got.copy_(sent), src=meeting.world - 1
        ),
    }
    for name, (sent, wanted) in values(meeting.rank, meeting.world).items():
        for dtype in (torch.float32, torch.bfloat16):
            got = torch.zeros(len(wanted), dtype=dtype, device=device)
            ways[name](got, torch.tensor(sent, dtype=dtype, device=device))
            if got.tolist() != wanted:
                wrong.append(
                    f"{name} of {str(dtype)[6:]} gives wrong values on rank {meeting.rank}"
                )
    return wrong


def rounds(ranks: List[int]) -> List[List[List[int]]]:
    """The links of a ring of ranks, in rounds in which no rank has two links."""
    line = [list(link) for link in zip(ranks, ranks[1:])]
    return [
        links
        for links in (line[::2], line[1::2], [[ranks[0], ranks[-1]]] * (len(ranks) > 2))
        if links
    ]


def bandwidth(
    meeting: Meeting, nodes: Dict[str, List[int]], device: str, seconds: float
) -> List[str]:
    """All_reduce bus bandwidths by message size, as nccl-tests define them, and what `judge` says. Raises as `exchange`."""
    import torch

    deadline, sizes = time.monotonic() + seconds, CPU_SIZES if device == "cpu" else SIZES

    def rate(size: int, n: int, group: Any = None) -> float:
        data = torch.ones(size // 4, device=device)
        for repeats in (3, 5):  # the first ones warm up
            started = time.monotonic()
            for _ in range(repeats):
                torch.distributed.all_reduce(data, group=group)
            getattr(torch, device.split(":")[0]).synchronize(device)
        return size * 2 * (n - 1) / n * repeats / (time.monotonic() - started) / 1e9

    lines = [
        f"  all_reduce {size / 2**20:7.2f} MiB  {rate(size, meeting.world):7.2f} GB/s"
        for size in sizes
    ]
    figures: Dict[str, float] = {}
    steps = [(INSIDE, [group for group in nodes.values() if len(group) > 1])]
    steps += [(BETWEEN, links) for links in rounds([group[0] for group in nodes.values()])]
    for number, (way, groups) in enumerate(steps, 1):
        for group in [group for group in groups if meeting.rank in group]:
            gbs = rate(
                sizes[-2],
                len(group),
                torch.distributed.new_group(group, use_local_synchronization=True),
            )
            figures[way] = max(
                figures.get(way, 0.0), gbs
            )  # of its best link, so that a slow neighbour has no say
        step = f"bandwidth step {number}, {way}"
        meeting.exchange(step, json.dumps(figures), max(0.0, deadline - time.monotonic()))
    told = meeting.read(step, (group[0] for group in nodes.values())) if meeting.rank == 0 else []
    return lines + judge(dict(zip(nodes, map(json.loads, told))))


def judge(figures: Dict[str, Dict[str, float]]) -> List[str]:
    """A row for each node (node -> INSIDE and BETWEEN -> GB/s), then a line for each that is well under the others."""
    said = [
        f"  {node:<24}" + "".join(f"  {way} {own[way]:.2f} GB/s" for way in own)
        for node, own in figures.items()
        if own
    ]
    for way, there in LOOK_AT.items():
        rates = {node: own[way] for node, own in figures.items() if way in own}
        median = statistics.median(rates.values() or [0.0])
        for node in [node for node, rate in rates.items() if rate < SLOW * median]:
            said.append(
                f"{node} is slower {way}: {rates[node]:.2f} GB/s, the median is {median:.2f} GB/s; look at {there}"
            )
    return said


def certify(
    meeting: Meeting,
    installed: Installed,
    gpus: List[Gpu],
    seconds: float,
    tell: Callable[..., None],
) -> Tuple[bool, str]:
    """(whether every rank computes the same within the tolerance, most ranks' certificate): each compares itself with that."""
    local, visible = int(os.environ.get("LOCAL_RANK", "0")), os.environ.get(
        "CUDA_VISIBLE_DEVICES", ""
    ).split(",")
    gpu = (
        str(local) if visible == [""] else visible[min(local, len(visible) - 1)]
    )  # some launchers show each rank one
    own = in_thread(
        lambda: certificate.make(installed, gpus, "cuda" if gpus else "cpu", gpu=gpu), seconds
    )
    stage, digest = "certificate", "".join(row["weights"] for row in own["rows"].values())
    meeting.reach(f"{stage} text", json.dumps(own))

    def usual() -> str:
        digests = meeting.read(stage, range(meeting.world))
        return meeting.read(
            f"{stage} text", [digests.index(Counter(digests).most_common(1)[0][0])]
        )[0]

    text = meeting.exchange(stage, digest, seconds, usual)
    said, wrong = compare.certificates(
        json.loads(text), own, ("most ranks", f"rank {meeting.rank} on {os.uname().nodename}")
    )
    lines = f"{stage} compared"
    bad = meeting.exchange(
        lines,
        said if wrong else "",
        seconds,
        lambda: "wrong" * any(meeting.read(lines, range(meeting.world))),
    )
    told = [
        line
        for line in meeting.read(lines, range(meeting.world) if meeting.rank == 0 else [])
        if line
    ]
    tell(*told[:SHOWN], *[f"and {len(told) - SHOWN} more ranks"] * (len(told) > SHOWN))
    tell(
        "NOT every rank computes the same"
        if bad
        else f"every rank computes the same: {certificate.summary(own)}"
    )
    return not bad, text


def in_thread(work: Callable[[], Any], seconds: float) -> Any:
    """The result of `work`, run where it cannot stop this process from noticing a signal or a time-out."""
    answer = ThreadPool(1).apply_async(work)  # a daemon: this process can end while it hangs
    if not until(answer.ready, seconds):
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return answer.get()


def main(
    installed: Installed,
    gpus: List[Gpu],
    timeout: float,
    target: Optional[str] = None,
    lack: str = "",
) -> int:
    """The check on this rank, each stage within `timeout` seconds; gives the exit status, the same on every living rank.

    `target`: where the certificate that most ranks compute is written. `lack`: why this node has no GPU although it should.
    """
    try:
        import torch.distributed as dist

        store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
        if not 0 <= rank < world:
            raise ValueError(f"RANK is {rank}, and WORLD_SIZE {world}")
    except Exception as error:
        print(
            f"the ranks cannot meet: {error}; run it under torchrun, and check MASTER_ADDR and the port",
            file=sys.stderr,
        )
        return 1
    meeting, stage = Meeting(dist.PrefixStore("maximalcai", store), rank, world), "arrived"
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    computes, device = True, f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpus else "cpu"
    tell = partial(
        print, sep="\n", flush=True, file=sys.stdout if rank == 0 else open(os.devnull, "w")
    )
    try:
        manifest, gpu = make(installed, gpus), (
            [gpus[0].name, gpus[0].driver] if gpus else ["none", "none"]
        )
        identity = [manifest["fingerprint"], *gpu, manifest["cuda"]["nccl"] or "none"]
        me = {
            "node": os.uname().nodename,
            "group": os.environ.get("GROUP_RANK", "0"),
            "identity": identity,
            "lack": lack,
        }
        if os.environ.get("LOCAL_RANK", "0") == "0":
            conclusion = pod.conclude(pod.inspect_machine())
            me["pod"] = conclusion.text * (conclusion.verdict.value in ("warn", "fail"))
        meeting.reach("manifest", json.dumps(manifest))
        same, nodes, blind = json.loads(
            meeting.exchange(stage, json.dumps(me), timeout, lambda: table(meeting, tell))
        )
        stage = "collectives"
        at = {
            "store": dist.PrefixStore(stage, store),
            "rank": rank,
            "world_size": world,
            "timeout": timedelta(seconds=timeout),
        }
        in_thread(lambda: dist.init_process_group("nccl" if gpus else "gloo", **at), timeout)
        told = "; ".join(in_thread(lambda: collectives(meeting, device), timeout))
        done, no = (
            f"{stage} done",
            "the collectives are WRONG: check the network between the nodes, NCCL_DEBUG=INFO says more",
        )
        wrong = meeting.exchange(
            done, told, timeout, lambda: "wrong" * any(meeting.read(done, range(world)))
        )
        yes = "all_reduce, all_gather, reduce_scatter and broadcast give the right values, fp32 and bf16"
        tell(
            *filter(None, meeting.read(done, range(world) if rank == 0 else [])),
            no if wrong else yes,
        )
        if world > 1 and not wrong:
            stage, limit = "bandwidth", min(timeout, BANDWIDTH_SECONDS)
            tell(
                *in_thread(lambda: bandwidth(meeting, nodes, device, limit), limit + GRACE)
            )  # who waits names who is late first
        if target:
            stage = "certificate"
            computes, text = certify(
                meeting, installed, gpus, max(timeout, certificate.LIMIT), tell
            )
            if rank == 0:
                try:
                    write_atomically(Path(target), certificate.text(json.loads(text)))
                except OSError as error:  # no rank's fault
                    tell(f"the certificate could not be written: {disk_text(error)}")
                    computes = False
    except (OSError, RuntimeError, Stop) as error:
        telling = ThreadPool(1).apply_async(
            explain, (meeting, stage, error)
        )  # a store behind a dead link never answers
        lost = "the store does not answer: its node, rank 0's, died or lost the network"
        print(
            f"rank {rank}: {telling.get() if until(telling.ready, 4 * GRACE, heed=False) else lost}",
            file=sys.stderr,
            flush=True,
        )
        return 1
    tell("the same environment on every rank" if same else "NOT the same environment on every rank")
    tell(*["NOT on every GPU: a node that should have GPUs has none that works"] * blind)
    meeting.reach("left")
    meeting.until(
        lambda: rank > 0 or not meeting.missing("left"), GRACE, heed=False
    )  # the store may be in rank 0
    return 0 if same and not wrong and not blind and computes else 1


def explain(meeting: Meeting, stage: str, error: Exception) -> str:
    """What to tell of a failure: which ranks are gone, found by who does not answer within the grace."""
    try:
        meeting.reach("failed")  # first of all: who does not say so is taken for dead
        if isinstance(error, ProcessLookupError):
            return str(error)
        gone = partial(meeting.missing, "failed", f"{stage} done")
        if meeting.until(lambda: not gone(), GRACE, heed=False):
            return f"the {stage} failed on every rank: {type(error).__name__}: {str(error)[:200]}"
        return f"{meeting.names(gone())} died or hangs in `{stage}`; its output and NCCL_DEBUG=INFO say more"
    except Exception as lost:
        return f"the store is gone, with the node of rank 0: it died or lost the network ({type(lost).__name__}: {lost})"
