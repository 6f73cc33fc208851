"""How ranks meet, in a stand-in for torch's store: what it costs, who is missed, who is not like the others."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pytest
from lockedenv.cli.distributed import RankCertifier
from lockedenv.provenance.certificate.document import Certificate, certificate_text
from lockedenv.provenance.manifest import Manifest
from lockedenv.provenance.packages import fingerprint_of
from lockedenv.provenance.ranks.certify import Certified, certify
from lockedenv.provenance.ranks.meeting import SHOWN, Meeting, RanksMissing, Wait
from lockedenv.provenance.ranks.roll_call import (
    Description,
    Identity,
    RollCallAnswer,
    identify,
    name_nodes,
    parse_answer,
    take_roll_call,
)
from lockedenv.provenance.ranks.words import describe_certified, describe_roll_call
from sample_documents import (
    change_row,
    make_manifest,
    make_package,
    released_certificate,
    row_of,
    with_loss,
)

NOBODY = Identity("", "none", "none", "none")


class Store:
    """A stand-in for torch's store, which counts the keys that it is asked for. Where torch's would wait, this raises."""

    def __init__(self) -> None:
        self.values: "dict[str, bytes]" = {}
        self.asked: "list[str]" = []
        self.lock = threading.RLock()
        self.mine = threading.local()

    def count(self, *keys: str) -> None:
        if not getattr(self.mine, "uncounted", False):
            self.asked += keys

    def set(self, key: str, value: str) -> None:
        with self.lock:
            self.count(key)
            self.values[key] = value.encode()

    def append(self, key: str, value: str) -> None:
        with self.lock:
            self.count(key)
            self.values[key] = self.values.get(key, b"") + value.encode()

    def check(self, keys: "list[str]") -> bool:
        with self.lock:
            self.count(*keys)
            return all(key in self.values for key in keys)

    def multi_get(self, keys: "list[str]") -> "list[bytes]":
        with self.lock:
            self.count(*keys)
            return [self.values[key] for key in keys]

    def get(self, key: str) -> bytes:
        return self.multi_get([key])[0]

    def wait(self, condition: Callable[[], bool], *_: Any, **__: Any) -> bool:
        """In place of `wait_until`: counts one look for each wait, the one that ends it.

        How often it looks is a matter of time.
        """
        self.mine.uncounted = True
        while not condition():
            time.sleep(0.01)
        self.mine.uncounted = False
        return condition()


def manifest_of(rank: int, odd: bool) -> Manifest:
    """The usual manifest, or one with another version of a package."""
    version = "3.1"
    if odd:
        version = "3.0"
    packages = (make_package("idna", version, build=f"of-{rank}"),)
    fingerprint = "usual"
    if odd:
        fingerprint = f"other-{rank}"
    return make_manifest(packages, fingerprint=fingerprint)


def in_threads(world: int, work: Callable[[int], Any]) -> "list[Any]":
    """What `work` gives for each rank, in threads of their own."""
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, range(world)))


def meet_all(
    world: int, odd: "list[int]", monkeypatch: pytest.MonkeyPatch
) -> "tuple[Store, str]":
    """The store after a meeting of many ranks, eight to a node, and what rank 0 told."""
    monkeypatch.setattr(
        "lockedenv.provenance.manifest.fingerprint_of",
        lambda packages, _=None: "usual" if packages[0].version == "3.1" else "odd",
    )
    store = Store()
    told: "list[str]" = []

    def rank_of(rank: int) -> RollCallAnswer:
        manifest = manifest_of(rank, rank in odd)
        meeting = Meeting(store, rank, world, wait=store.wait)
        description = Description(f"node-{rank // 8}", rank // 8, identify(manifest))
        document = manifest.document()
        if rank in odd:
            document["fingerprint"] = "odd"
        meeting.reach("manifest", json.dumps(document))

        def answer() -> str:
            call = take_roll_call(meeting)
            told.extend(describe_roll_call(call))
            return call.answer.text()

        return parse_answer(meeting.exchange("arrived", description.text(), 60, answer))

    nodes = {
        f"node-{node}": list(range(8 * node, 8 * node + 8))
        for node in range(world // 8)
    }
    assert in_threads(world, rank_of) == [RollCallAnswer(not odd, nodes, False)] * world
    return store, "\n".join(told)


@pytest.mark.parametrize("odd", [[], [3, 60]])
def test_what_the_meeting_costs_is_linear(
    odd: "list[int]", monkeypatch: pytest.MonkeyPatch
) -> None:
    small, _ = meet_all(64, odd, monkeypatch)
    large, _ = meet_all(128, odd, monkeypatch)
    assert 64 < len(small.asked)
    assert len(large.asked) <= 2.2 * len(small.asked)


def test_what_a_lost_rank_costs_is_linear_and_every_other_rank_names_it() -> None:
    """Each but one gets to a stage and gives up there; all have met before."""
    costs = []
    for world in (64, 128):
        store = Store()
        barrier = threading.Barrier(world - 1)

        def wait(condition: Callable[[], bool], *_: Any, **__: Any) -> bool:
            barrier.wait(60)
            return condition()

        def give_up(rank: int, wait: Wait = wait) -> str:
            if rank == 5:
                return ""
            meeting = Meeting(store, rank, world, wait=wait)
            with pytest.raises(RanksMissing) as error:
                meeting.exchange("a stage", "", 7)
            return str(error.value)

        for rank in range(world):
            Meeting(store, rank, world).reach("arrived", '{"node": "node-b"}')
        store.asked.clear()
        said = set(in_threads(world, give_up)) - {""}
        assert said == {
            "rank 5 (node-b) did not get to `a stage` within 7 s: dead, hanging, or not started"
        }
        costs.append(len(store.asked))
    assert costs[1] <= 2.2 * costs[0]


def test_of_many_lost_ranks_a_few_are_named_and_the_rest_counted() -> None:
    store = Store()
    first = Meeting(store, 0, 4096)
    with pytest.raises(
        RanksMissing, match=r"^rank 1, .*rank 8 and 4087 more ranks did not"
    ) as error:
        first.exchange("arrived", '{"node": "node-a"}', 0)
    assert len(str(error.value)) < 200


def test_a_rank_0_that_does_not_answer_is_named_and_one_that_is_late_is_heard() -> None:
    store = Store()
    first = Meeting(store, 0, 2)
    first.reach("arrived", '{"node": "node-a"}')
    second = Meeting(store, 1, 2, grace=0.1)
    with pytest.raises(
        RanksMissing, match=r"^rank 0 \(node-a\) did not get to `arrived` within 0 s"
    ):
        second.exchange("arrived", '{"node": "node-b"}', 0)
    first.reach("next")
    late = threading.Timer(0.2, store.set, ["next/answer", "heard"])
    late.start()
    assert Meeting(store, 1, 2, grace=60).exchange("next", "", 0) == "heard"
    late.join()


@pytest.mark.parametrize("odd", [[], [7], [1, 2], list(range(32, 64))])
def test_few_manifests_are_read_and_the_rest_counted(
    odd: "list[int]", monkeypatch: pytest.MonkeyPatch
) -> None:
    world = 72
    store, told = meet_all(world, odd, monkeypatch)
    asked = [key for key in store.asked if "manifest/" in key]
    read = 0
    if odd:  # one usual one, and the odd ones
        read = 1 + min(len(odd), SHOWN)
    assert len(asked) == world + read, "each is written once"
    named = re.findall(r"^rank (\d+) on node-\d+ is not like the others:$", told, re.M)
    assert [int(rank) for rank in named] == odd[:SHOWN]
    assert told.count("packages idna (pip): others 3.1 of-0 ") == len(named)
    assert told.count("<- differs") == len(odd)
    more = re.findall(r"^and (\d+) more ranks are not like the others$", told, re.M)
    expected = []
    if len(odd) > SHOWN:
        expected = [str(len(odd) - SHOWN)]
    assert more == expected


def test_another_python_on_one_rank_is_named() -> None:
    """The packages are the same, and the machine's Python is not."""
    usual = make_manifest()
    other = make_manifest(
        interpreter=usual.interpreter.__class__("3.11.2", "x", "y", "z")
    )
    assert fingerprint_of(usual.packages) == fingerprint_of(other.packages)
    store = Store()
    for rank, manifest in enumerate((usual, usual, other)):
        meeting = Meeting(store, rank, 3)
        meeting.reach("manifest", json.dumps(manifest.document()))
        meeting.reach("arrived", Description("node", 0, identify(manifest)).text())
    call = take_roll_call(Meeting(store, 0, 3))
    assert not call.answer.same
    assert "  Python version: others 3.11.7, here 3.11.2" in describe_roll_call(call)


class KnownCertificate(RankCertifier):
    """Compares as cli does; what the task computes is given."""

    def __init__(self, certificate: Certificate) -> None:
        self.text = certificate_text(certificate)

    def make(self, gpu: str) -> str:
        return self.text


@pytest.mark.parametrize("odd", [[], [1, 6]])
def test_a_rank_that_computes_otherwise_is_named(odd: "list[int]") -> None:
    store = Store()
    usual = released_certificate()

    def certify_rank(rank: int) -> Certified:
        certificate = usual
        if rank in odd:
            name = "full sdpa bf16"
            losses = with_loss(row_of(usual, name), 7, 1.1)
            certificate = change_row(usual, name, loss=losses, weights=str(rank))
        certifier = KnownCertificate(certificate)
        meeting = Meeting(store, rank, 8, wait=store.wait)
        return certify(
            meeting, certifier.make(""), certifier, f"rank {rank} on node", 60
        )

    found = in_threads(8, certify_rank)
    assert {certified.same for certified in found} == {not odd}
    assert {certified.certificate for certified in found} == {certificate_text(usual)}
    lines = describe_certified(found[0], ["6 rows"])
    assert ("NOT every rank computes the same" in lines) == bool(odd)
    assert ("every rank computes the same:" in lines) == (not odd)
    for rank in odd:
        assert (
            f"most ranks and rank {rank} on node: they do NOT compute the same" in lines
        )
        row = "full sdpa bf16               DIFFERENT from step 7, the loss on"
        assert any(row in line for line in lines)
    assert not any(
        certified.differing for certified in found[1:]
    ), "rank 0 alone says it"


def test_nodes_of_one_name_are_told_apart_by_their_group() -> None:
    pairs = (("a", 0), ("b", 1), ("a", 2), ("a", 0), ("b", 1))
    said = [Description(node, group, NOBODY) for node, group in pairs]
    assert name_nodes(said) == {"a (group 0)": [0, 3], "b": [1, 4], "a (group 2)": [2]}
