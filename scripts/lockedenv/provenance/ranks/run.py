"""Runs the check on one rank: each stage within a time limit,
and one exit status on all living ranks."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable

from lockedenv.errors import Stop, disk_text
from lockedenv.host.files import write_document
from lockedenv.provenance.manifest import Manifest
from lockedenv.provenance.ranks import bandwidth, certify, collectives, words
from lockedenv.provenance.ranks.certify import Certifier
from lockedenv.provenance.ranks.launch import (
    Launch,
    choose_gpu,
    open_store,
    read_launch,
)
from lockedenv.provenance.ranks.meeting import (
    Meeting,
    explain_within_grace,
    run_in_thread,
    stopping,
)
from lockedenv.provenance.ranks.roll_call import (
    ARRIVED,
    MANIFEST,
    Description,
    RollCallAnswer,
    identify,
    parse_answer,
    take_roll_call,
)

COLLECTIVES = "collectives"
BANDWIDTH = "bandwidth"
LEFT = "left"
LATE = 5.0  # seconds that a measurement may end late: who waits names first who is late

Say = Callable[[str], None]


@dataclass(frozen=True)
class RankRequest:
    """What to check on this rank.

    `timeout`: seconds for each stage. `make_manifest` and `look_at_pod` are called when the ranks
    have met; the second gives what is odd about this node, or nothing. `problem`: why this node has
    no GPU although it should. `certificate`: where the certificate of most ranks is written.
    """

    timeout: float
    on_gpu: bool
    problem: str
    make_manifest: Callable[[], Manifest]
    look_at_pod: Callable[[], str]
    certifier: Certifier
    certificate: Path | None


def check_ranks(request: RankRequest, say: Say, complain: Say) -> int:
    """The check on this rank; gives the exit status, the same on every living rank.

    Rank 0 alone calls `say`, with a line. `complain` is for what ends this rank. Raises Stop if the
    ranks cannot meet.
    """
    launch = read_launch(os.environ)
    store = open_store(launch, request.timeout)
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    check = RankCheck(request, launch, store, say)
    try:
        return check.run()
    except (OSError, RuntimeError, Stop) as error:
        reason = explain_within_grace(check.meeting, check.stage, error)
        complain(f"rank {launch.rank}: {reason}")
        return 1


class RankCheck:
    """The stages on one rank. `stage`: where it is, to name it when it fails."""

    def __init__(
        self, request: RankRequest, launch: Launch, store: Any, say: Say
    ) -> None:
        self.request = request
        self.launch = launch
        self.store = store
        self.meeting = Meeting(store, launch.rank, launch.world)
        self.stage = ARRIVED
        self._say = say
        self.device = "cpu"
        if request.on_gpu:
            self.device = f"cuda:{launch.local_rank}"

    def run(self) -> int:
        """All stages; gives the exit status. Raises RanksMissing, Stop, and what torch raises."""
        answer = self.meet()
        right = self.check_collectives()
        if right and self.launch.world > 1:
            self.measure(answer)
        certified = True
        if self.request.certificate is not None:
            certified = self.certify(self.request.certificate)
        self.say_all(words.describe_verdict(answer.same, answer.lacks_gpu))
        self.leave()
        if answer.same and right and certified and not answer.lacks_gpu:
            return 0
        return 1

    def say_all(self, lines: list[str]) -> None:
        """Says lines, on rank 0 alone."""
        if self.launch.rank == 0:
            for line in lines:
                self._say(line)

    def meet(self) -> RollCallAnswer:
        """The roll call."""
        manifest = self.request.make_manifest()
        pod = ""
        if self.launch.is_first_of_node:
            pod = self.request.look_at_pod()
        description = Description(
            node=os.uname().nodename,
            group=self.launch.group,
            identity=identify(manifest),
            problem=self.request.problem,
            pod=pod,
        )
        self.meeting.reach(MANIFEST, json.dumps(manifest.document()))
        text = self.meeting.exchange(
            ARRIVED, description.text(), self.request.timeout, self._answer_roll_call
        )
        return parse_answer(text)

    def check_collectives(self) -> bool:
        """Whether all collectives give right values on every rank."""
        self.stage = COLLECTIVES
        timeout = self.request.timeout
        run_in_thread(self._join_process_group, timeout)
        wrong = run_in_thread(
            lambda: collectives.check_collectives(
                self.launch.rank, self.launch.world, self.device
            ),
            timeout,
        )
        done = f"{COLLECTIVES} done"
        answer = self.meeting.exchange(
            done,
            collectives.wrong_values_text(wrong),
            timeout,
            lambda: json.dumps(not self._read_wrong_values(done)),
        )
        if self.launch.rank == 0:
            self.say_all(words.describe_collectives(self._read_wrong_values(done)))
        right: bool = json.loads(answer)
        return right

    def measure(self, answer: RollCallAnswer) -> None:
        """The bandwidths; a slow node is named, and no more."""
        self.stage = BANDWIDTH
        limit = min(self.request.timeout, bandwidth.SECONDS)
        measured = run_in_thread(
            lambda: bandwidth.measure_bandwidth(
                self.meeting, answer.nodes, self.device, limit
            ),
            limit + LATE,
        )
        self.say_all(words.describe_bandwidth(measured))

    def certify(self, target: Path) -> bool:
        """Whether every rank computes the same; writes most ranks' certificate."""
        self.stage = certify.STAGE
        certifier = self.request.certifier
        seconds = max(self.request.timeout, certifier.seconds)
        gpu = ""
        if self.request.on_gpu:
            gpu = choose_gpu(self.launch, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        own = run_in_thread(lambda: certifier.make(gpu), seconds)
        name = f"rank {self.launch.rank} on {os.uname().nodename}"
        certified = certify.certify(self.meeting, own, certifier, name, seconds)
        summary = certifier.summarize(certified.certificate)
        self.say_all(words.describe_certified(certified, summary))
        if self.launch.rank != 0:
            return certified.same
        try:
            write_document(target, certified.certificate)
        except OSError as error:  # no rank's fault
            self.say_all([f"the certificate could not be written: {disk_text(error)}"])
            return False
        return certified.same

    def leave(self) -> None:
        """Rank 0 leaves last: the store may be in it."""
        self.meeting.reach(LEFT)
        if self.launch.rank == 0:
            self.meeting.wait(
                lambda: not self.meeting.missing(LEFT), self.meeting.grace, heed=False
            )

    def _answer_roll_call(self) -> str:
        call = take_roll_call(self.meeting)
        self.say_all(words.describe_roll_call(call))
        return call.answer.text()

    def _join_process_group(self) -> None:
        import torch.distributed as dist

        backend = "gloo"
        if self.request.on_gpu:
            backend = "nccl"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(COLLECTIVES, self.store),
            rank=self.launch.rank,
            world_size=self.launch.world,
            timeout=timedelta(seconds=self.request.timeout),
        )

    def _read_wrong_values(self, stage: str) -> list[collectives.WrongValues]:
        found = []
        for text in self.meeting.read_all(stage):
            found += collectives.parse_wrong_values(text)
        return found
