"""The values of the collectives, and what follows from the bandwidths."""

from __future__ import annotations

import tracemalloc

import pytest
from lockedenv.provenance.ranks.bandwidth import (
    Bandwidth,
    SizeRate,
    SlowNode,
    Way,
    find_rounds,
    find_slow_nodes,
)
from lockedenv.provenance.ranks.collectives import WIDTH, make_cases
from lockedenv.provenance.ranks.words import describe_bandwidth, describe_slow_node

GB = 1e9


def is_bf16(number: int) -> bool:
    """Whether 8 significant bits hold it."""
    return number % (1 << max(0, number.bit_length() - 8)) == 0


@pytest.mark.parametrize("world", [1, 2, 88, 1024, 4096])
def test_the_values_of_the_collectives_are_exact_and_tell_every_rank(
    world: int,
) -> None:
    part = world // 2
    # Who adds to this part of the sums.
    near = sorted({(part + step) % world for step in range(WIDTH + 1)})
    cases = {rank: make_cases(rank, world) for rank in {*near, 0, world - 1}}
    for case in cases[part].values():
        assert all(is_bf16(number) for number in (*case.sent, *case.expected))
    sums = cases[part]["all_reduce"].expected
    gathered = cases[part]["all_gather"].expected
    assert len(sums) == len(gathered) == world * WIDTH
    assert max(sums) <= 256
    mine = slice(part * WIDTH, (part + 1) * WIDTH)
    given = {rank: case["reduce_scatter"].sent[mine] for rank, case in cases.items()}
    wanted = cases[part]["reduce_scatter"].expected
    assert [sum(places) for places in zip(*given.values())] == wanted == sums[mine]
    for rank in near:  # lost, or there twice
        for factor in (0, 2):
            got = [
                total + (factor - 1) * own for total, own in zip(wanted, given[rank])
            ]
            assert got != wanted
    # No two ranks have the same part: one in another's place is seen.
    for whole in (sums, gathered):
        parts = {
            tuple(whole[start : start + WIDTH]) for start in range(0, len(whole), WIDTH)
        }
        assert len(parts) == world
    for rank, case in cases.items():
        own = gathered[rank * WIDTH : (rank + 1) * WIDTH]
        assert case["all_gather"].sent == own
        assert case["all_gather"].expected == gathered
        assert case["broadcast"].sent == own
        assert case["broadcast"].expected == gathered[-WIDTH:]
        assert case["all_reduce"].sent == case["reduce_scatter"].sent
        assert case["all_reduce"].expected == sums


@pytest.mark.parametrize("world", [2, 88])
def test_every_rank_has_its_say_in_the_sums(world: int) -> None:
    inputs = [make_cases(rank, world)["all_reduce"].sent for rank in range(world)]
    sums = make_cases(0, world)["all_reduce"].expected
    assert [sum(places) for places in zip(*inputs)] == sums
    assert all(sums)


def test_the_values_are_small_for_many_ranks() -> None:
    tracemalloc.start()
    cases = make_cases(4095, 4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 2**20
    assert len(cases["reduce_scatter"].sent) == 4096 * WIDTH


@pytest.mark.parametrize("nodes", range(1, 12))
def test_the_rounds_are_the_links_of_a_ring_and_disjoint(nodes: int) -> None:
    ranks = [8 * node for node in range(nodes)]
    rounds = find_rounds(ranks)
    ring = set()
    if nodes > 1:
        ring = {frozenset((ranks[node], ranks[node - 1])) for node in range(nodes)}
    assert {frozenset(link) for links in rounds for link in links} == ring
    assert len(rounds) <= 3
    assert sum(len(links) for links in rounds) == len(ring)
    for links in rounds:
        assert len({rank for link in links for rank in link}) == 2 * len(links)


USUAL = {Way.INSIDE: 400.0 * GB, Way.BETWEEN: 48.0 * GB}


def test_a_node_well_under_the_others_is_found_and_no_other() -> None:
    near = {Way.INSIDE: 290.0 * GB, Way.BETWEEN: 34.0 * GB}
    assert find_slow_nodes({"a": USUAL, "b": near, "c": USUAL}) == []
    half = {Way.INSIDE: 390.0 * GB, Way.BETWEEN: 24.0 * GB}
    slow = find_slow_nodes({"a": USUAL, "b": half, "c": USUAL, "d": USUAL})
    assert slow == [SlowNode("b", Way.BETWEEN, 24.0 * GB, 48.0 * GB)]
    inside = {Way.INSIDE: 200.0 * GB, Way.BETWEEN: 48.0 * GB}
    alone = {Way.BETWEEN: 48.0 * GB}
    slow = find_slow_nodes({"a": alone, "b": USUAL, "c": inside, "d": USUAL})
    assert slow == [SlowNode("c", Way.INSIDE, 200.0 * GB, 400.0 * GB)]


def test_of_two_nodes_with_one_link_nobody_knows_whose_fault_it_is() -> None:
    slow = find_slow_nodes(
        {
            "a": {Way.INSIDE: 4.0 * GB, Way.BETWEEN: 5.0 * GB},
            "b": {Way.INSIDE: 40.0 * GB, Way.BETWEEN: 5.0 * GB},
        }
    )
    assert [(node.node, node.way) for node in slow] == [("a", Way.INSIDE)]
    assert find_slow_nodes({"a": {Way.BETWEEN: 5.0}, "b": {Way.BETWEEN: 5.1}}) == []
    assert find_slow_nodes({"a": {}}) == []


def test_the_rates_and_the_slow_node_are_said() -> None:
    half = {Way.INSIDE: 390.0 * GB, Way.BETWEEN: 24.0 * GB}
    nodes = {"a": USUAL, "b": half, "c": USUAL, "d": USUAL, "e": {}}
    lines = describe_bandwidth(Bandwidth((SizeRate(2**20, 0.5 * GB),), nodes))
    assert lines[0] == "  all_reduce    1.00 MiB     0.50 GB/s"
    assert len(lines) == 6, "a node without a figure has no row"
    assert "inside the node 390.00 GB/s  between nodes 24.00 GB/s" in lines[2]
    assert lines[5] == (
        "b is slower between nodes: 24.00 GB/s, the median is 48.00 GB/s; look at its network cards "
        "and NCCL_DEBUG=INFO"
    )
    inside = SlowNode("c", Way.INSIDE, 2 * GB, 4 * GB)
    assert "look at `nvidia-smi topo -m`" in describe_slow_node(inside)
