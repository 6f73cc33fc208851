"""The messages about the ranks."""

from __future__ import annotations

from lockedenv.errors import printable
from lockedenv.provenance.difference import shown
from lockedenv.provenance.ranks.bandwidth import (
    Bandwidth,
    SlowNode,
    Way,
    find_slow_nodes,
)
from lockedenv.provenance.ranks.certify import Certified
from lockedenv.provenance.ranks.collectives import NAMES, WrongValues
from lockedenv.provenance.ranks.roll_call import Company, RollCall

GB = 1e9
MIB = 2**20
LOOK_AT = {
    Way.INSIDE: "`nvidia-smi topo -m` and `nvidia-smi nvlink -s` there",
    Way.BETWEEN: "its network cards and NCCL_DEBUG=INFO",
}


def describe_roll_call(call: RollCall) -> list[str]:
    """A row for the ranks of a node that agree; then the nodes' troubles,
    and what odd ranks differ in."""
    lines = [
        f"{call.world} ranks",
        _row("node", "ranks", "fingerprint", "GPU", "driver", "NCCL"),
    ]
    for company in call.companies:
        lines.append(describe_company(company))
    for line in (*call.pods, *call.problems):
        lines.append(printable(line))
    for odd in call.odd:
        ranks = ", ".join(str(rank) for rank in odd.ranks)
        lines.append(f"rank {ranks} on {odd.node} is not like the others:")
        for difference in odd.differences:
            name = printable(f"{difference.group.value} {difference.name}")
            usual = printable(shown(difference.first))
            here = printable(shown(difference.second))
            lines.append(f"  {name}: others {usual}, here {here}")
    if call.more_odd:
        lines.append(f"and {call.more_odd} more ranks are not like the others")
    return lines


def describe_company(company: Company) -> str:
    """The row of some ranks of a node."""
    first = company.ranks[0]
    last = company.ranks[-1]
    ranks = str(first)
    if last != first:
        ranks = f"{first}-{last}"
    identity = company.identity
    row = _row(
        company.node,
        ranks,
        identity.fingerprint,
        identity.gpu,
        identity.driver,
        identity.nccl,
    )
    if company.is_odd:
        return f"{row}  <- differs"
    return row


def describe_collectives(wrong: list[WrongValues]) -> list[str]:
    """What gives wrong values on which rank, and the verdict."""
    lines = []
    for values in wrong:
        lines.append(
            f"{values.collective} of {values.dtype} gives wrong values on rank {values.rank}"
        )
    if wrong:
        lines.append(
            "the collectives are WRONG: check the network between the nodes, "
            "NCCL_DEBUG=INFO says more"
        )
    else:
        names = f"{', '.join(NAMES[:-1])} and {NAMES[-1]}"
        lines.append(f"{names} give the right values, fp32 and bf16")
    return lines


def describe_bandwidth(bandwidth: Bandwidth) -> list[str]:
    """A row for each size of message and for each node, then a line for each slow node."""
    lines = []
    for measured in bandwidth.sizes:
        lines.append(
            f"  all_reduce {measured.size / MIB:7.2f} MiB  {measured.rate / GB:7.2f} GB/s"
        )
    for node, rates in bandwidth.nodes.items():
        if rates:
            parts = [f"{way.value} {rate / GB:.2f} GB/s" for way, rate in rates.items()]
            lines.append(f"  {node:<24}  {'  '.join(parts)}")
    for slow in find_slow_nodes(bandwidth.nodes):
        lines.append(describe_slow_node(slow))
    return lines


def describe_slow_node(slow: SlowNode) -> str:
    """One node that is slower, and where to look."""
    return (
        f"{slow.node} is slower {slow.way.value}: {slow.rate / GB:.2f} GB/s, the median is "
        f"{slow.median / GB:.2f} GB/s; look at {LOOK_AT[slow.way]}"
    )


def describe_certified(certified: Certified, summary: list[str]) -> list[str]:
    """The ranks that compute otherwise, and the verdict. `summary`: of most ranks' certificate."""
    lines: list[str] = []
    for told in certified.differing:
        lines += told
    if certified.more:
        lines.append(f"and {certified.more} more ranks")
    if certified.same:
        lines.append("every rank computes the same:")
        lines += summary
    else:
        lines.append("NOT every rank computes the same")
    return lines


def describe_verdict(same: bool, lacks_gpu: bool) -> list[str]:
    """The last lines."""
    lines = ["NOT the same environment on every rank"]
    if same:
        lines = ["the same environment on every rank"]
    if lacks_gpu:
        lines.append(
            "NOT on every GPU: a node that should have GPUs has none that works"
        )
    return lines


def _row(
    node: str, ranks: str, fingerprint: str, gpu: str, driver: str, nccl: str
) -> str:
    columns = (node, ranks, fingerprint, gpu, driver, nccl)
    safe = [printable(column) for column in columns]
    return "{:<24} {:<10} {:<12.12} {:<26} {:<12} {}".format(*safe)
