"""The roll call: what each rank reports about its node, and which ranks differ from the others."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

from lockedenv.provenance.difference import (
    DifferenceGroup,
    ManifestDifference,
    find_differences,
)
from lockedenv.provenance.documents import Fields
from lockedenv.provenance.manifest import Manifest, manifest_from
from lockedenv.provenance.ranks.meeting import SHOWN, Meeting

ARRIVED = "arrived"
MANIFEST = "manifest"
# What is shown of ranks that are not like the others: the rest differs between healthy nodes too.
SHOWN_GROUPS = (
    DifferenceGroup.PYTHON,
    DifferenceGroup.PACKAGES,
    DifferenceGroup.GPU,
    DifferenceGroup.DRIVER,
)


@dataclass(frozen=True)
class Identity:
    """What must be equal on all ranks.

    `gpu` and `driver` are "none" without a GPU, `nccl` likewise.
    """

    fingerprint: str
    gpu: str
    driver: str
    nccl: str


@dataclass(frozen=True)
class Description:
    """The report of a rank. `group`: its node's number at torchrun, which tells nodes of one
    name apart. `problem`: why this node has no GPU although it should. `pod`: what is odd about it.
    """

    node: str
    group: int
    identity: Identity
    problem: str = ""
    pod: str = ""

    def text(self) -> str:
        """Its JSON, for the store."""
        return json.dumps(asdict(self))


def parse_description(text: str) -> Description:
    """A description from the store."""
    values = json.loads(text)
    return Description(
        node=values["node"],
        group=values["group"],
        identity=Identity(**values["identity"]),
        problem=values["problem"],
        pod=values["pod"],
    )


@dataclass(frozen=True)
class Company:
    """The ranks of one node that have the same identity. `is_odd`: it is not the usual one."""

    node: str
    identity: Identity
    ranks: tuple[int, ...]
    is_odd: bool


@dataclass(frozen=True)
class OddRanks:
    """Ranks that are not like the others, and in what."""

    node: str
    ranks: tuple[int, ...]
    differences: tuple[ManifestDifference, ...]


@dataclass(frozen=True)
class RollCall:
    """What rank 0 found.

    `odd`: the first few odd companies; `more_odd`: how many ranks beside them.

    `pods` and `problems`: lines that nodes said of themselves.
    """

    world: int
    companies: tuple[Company, ...]
    odd: tuple[OddRanks, ...]
    more_odd: int
    pods: tuple[str, ...]
    problems: tuple[str, ...]
    nodes: dict[str, list[int]]

    @property
    def answer(self) -> "RollCallAnswer":
        """What all ranks must know of it."""
        same = not any(company.is_odd for company in self.companies)
        return RollCallAnswer(same, self.nodes, bool(self.problems))


@dataclass(frozen=True)
class RollCallAnswer:
    """What rank 0 tells all: whether all are the same, node -> its ranks,
    whether a GPU is lacking."""

    same: bool
    nodes: dict[str, list[int]]
    lacks_gpu: bool

    def text(self) -> str:
        """Its JSON, for the store."""
        return json.dumps(asdict(self))


def parse_answer(text: str) -> RollCallAnswer:
    """An answer from the store."""
    return RollCallAnswer(**json.loads(text))


def identify(manifest: Manifest) -> Identity:
    """What must be equal on all ranks, of a manifest."""
    gpu = "none"
    driver = "none"
    if manifest.gpus:
        gpu = manifest.gpus[0].name
        driver = manifest.gpus[0].driver
    nccl = manifest.cuda["nccl"]
    if nccl is None:
        nccl = "none"
    return Identity(manifest.fingerprint, gpu, driver, nccl)


def take_roll_call(meeting: Meeting) -> RollCall:
    """What all ranks have said of themselves; rank 0 alone takes it, once all have arrived."""
    descriptions = []
    identities = []
    pods: dict[str, None] = {}
    problems: dict[str, None] = {}
    for text in meeting.read_all(ARRIVED):
        description = parse_description(text)
        descriptions.append(description)
        identities.append(description.identity)
        # As keys, so that what all ranks of a node say stands there once.
        if description.pod:
            pods[f"{description.node}: {description.pod}"] = None
        if description.problem:
            problems[f"{description.node}: {description.problem}"] = None
    usual = Counter(identities).most_common(1)[0][0]
    companies = _find_companies(descriptions, usual)
    odd = [company for company in companies if company.is_odd]
    usual_rank = identities.index(usual)
    more_odd = 0
    for company in odd[SHOWN:]:
        more_odd += len(company.ranks)
    return RollCall(
        world=meeting.world,
        companies=tuple(companies),
        odd=_compare_with_usual(meeting, odd[:SHOWN], usual_rank),
        more_odd=more_odd,
        pods=tuple(pods),
        problems=tuple(problems),
        nodes=name_nodes(descriptions),
    )


def name_nodes(descriptions: list[Description]) -> dict[str, list[int]]:
    """Node -> its ranks in order; the group is in the name where several nodes have one name."""
    groups: dict[tuple[str, int], list[int]] = {}
    for rank, description in enumerate(descriptions):
        groups.setdefault((description.node, description.group), []).append(rank)
    times = Counter(node for node, _ in groups)
    nodes = {}
    for (node, group), ranks in groups.items():
        name = node
        if times[node] > 1:
            name = f"{node} (group {group})"
        nodes[name] = ranks
    return nodes


def _find_companies(descriptions: list[Description], usual: Identity) -> list[Company]:
    ranks: dict[tuple[Identity, str], list[int]] = {}
    for rank, description in enumerate(descriptions):
        ranks.setdefault((description.identity, description.node), []).append(rank)
    companies = []
    for (identity, node), members in ranks.items():
        companies.append(Company(node, identity, tuple(members), identity != usual))
    return companies


def _compare_with_usual(
    meeting: Meeting, odd: list[Company], usual_rank: int
) -> tuple[OddRanks, ...]:
    if not odd:
        return ()
    ranks = [usual_rank]
    for company in odd:
        ranks.append(company.ranks[0])
    usual, *others = [_parse_manifest(text) for text in meeting.read(MANIFEST, ranks)]
    found = []
    for company, manifest in zip(odd, others):
        differences = []
        for difference in find_differences(usual, manifest):
            if difference.group in SHOWN_GROUPS:
                differences.append(difference)
        found.append(OddRanks(company.node, company.ranks, tuple(differences)))
    return tuple(found)


def _parse_manifest(text: str) -> Manifest:
    return manifest_from("a rank's manifest", Fields(json.loads(text)))
