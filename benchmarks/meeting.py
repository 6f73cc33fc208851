"""The meeting of 64 to 1,024 ranks that --distributed begins with; each is a
real client of one store.

`PREFIX/bin/python benchmarks/meeting.py RANKS` prints the seconds from the first rank's first word
to the last one's verdict.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scripts")]

from lockedenv.prefix.records import read_prefix  # noqa: E402
from lockedenv.provenance.gather import make_manifest  # noqa: E402
from lockedenv.provenance.ranks import roll_call  # noqa: E402
from lockedenv.provenance.ranks.meeting import Meeting  # noqa: E402
from measuring import compare, time_command  # noqa: E402

WORLDS = (64, 128, 256, 512, 1024)
PROCESSES = 2
RANKS_A_NODE = 8
LIMIT = timedelta(seconds=60)


def compare_meetings(prefix: Path, rounds: int) -> str:
    """A Markdown table."""
    contenders = {}
    for world in WORLDS:
        command = [prefix / "bin/python", Path(__file__), world]
        contenders[f"{world} ranks"] = lambda command=command: float(
            time_command(*command).output
        )
    title = "The meeting of --distributed: clients of one store, in the threads of two processes"
    return compare(title, contenders, rounds)


def join(
    rank: int, world: int, client: Any, identity: roll_call.Identity, manifest: str
) -> float:
    """One rank's part; gives when it was done. The last rank is not like the others."""
    if rank == world - 1:
        identity = replace(identity, fingerprint="another")
    node = rank // RANKS_A_NODE
    description = roll_call.Description(f"node-{node}", node, identity)
    meeting = Meeting(client, rank, world)
    meeting.reach(roll_call.MANIFEST, manifest)
    text = meeting.exchange(
        roll_call.ARRIVED,
        description.text(),
        60,
        lambda: roll_call.take_roll_call(meeting).answer.text(),
    )
    answer = roll_call.parse_answer(text)
    assert not answer.same and len(answer.nodes) == world // RANKS_A_NODE
    return time.monotonic()


def meet(world: int) -> float:
    """The seconds of one meeting; runs in the environment's Python."""
    from torch.distributed import TCPStore

    manifest = make_manifest(read_prefix(Path(sys.prefix)), ())
    identity = roll_call.identify(manifest)
    text = json.dumps(manifest.document())
    store = TCPStore("127.0.0.1", 0, None, True, LIMIT, wait_for_workers=False)
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(PROCESSES)
    times: Any = fork.Queue()

    def connect(_: int) -> Any:
        return TCPStore("127.0.0.1", store.port, None, False, LIMIT)

    def take_part(number: int) -> None:
        ranks = range(number, world, PROCESSES)
        with ThreadPoolExecutor(len(ranks)) as pool:
            clients = list(pool.map(connect, ranks))
            ready.wait()
            started = time.monotonic()
            ends = pool.map(
                lambda rank, client: join(rank, world, client, identity, text),
                ranks,
                clients,
            )
            times.put((started, max(ends)))
            times.close()
            times.join_thread()
            os._exit(
                0
            )  # the clients made in threads cannot all be freed: pybind11 aborts

    for number in range(PROCESSES):
        fork.Process(target=take_part, args=(number,)).start()
    starts = []
    ends = []
    for _ in range(PROCESSES):
        started, ended = times.get(timeout=300)
        starts.append(started)
        ends.append(ended)
    return max(ends) - min(starts)


if __name__ == "__main__":
    print(meet(int(sys.argv[1])))
