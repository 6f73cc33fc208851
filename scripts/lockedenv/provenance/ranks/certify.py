"""Every rank computes a certificate, and compares it with the one that most ranks compute.

The certificate's room is not imported here: cli hands in a Certifier.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from lockedenv.provenance.ranks.meeting import SHOWN, Meeting

STAGE = "certificate"
TEXT = "certificate text"
COMPARED = "certificate compared"


class Certifier(Protocol):
    """What makes and compares certificates; a certificate is a text here."""

    seconds: float  # that one may take

    def make(self, gpu: str) -> str:
        """The certificate of one GPU, as CUDA_VISIBLE_DEVICES names it,
        or without any of the CPU."""

    def digest(self, certificate: str) -> str:
        """Equal for two that computed the same bits."""

    def compare(self, usual: str, own: str, own_name: str) -> list[str]:
        """Lines that say what differs beyond what is allowed; empty if nothing does."""

    def summarize(self, certificate: str) -> list[str]:
        """Lines that say what was computed."""


@dataclass(frozen=True)
class Certified:
    """Most ranks' certificate, and the lines of ranks that compute otherwise, of a few ranks.

    `differing`: the lines of each of the first few; `more`: how many ranks beside them. Both are
    known on rank 0 alone; `same` on all.
    """

    same: bool
    certificate: str
    differing: tuple[tuple[str, ...], ...]
    more: int


def certify(
    meeting: Meeting, own: str, certifier: Certifier, name: str, seconds: float
) -> Certified:
    """Compares this rank's certificate with the usual one. Raises RanksMissing.

    `name`: of this rank, for people. `seconds`: for each of the two exchanges.
    """
    meeting.reach(TEXT, own)
    usual = meeting.exchange(
        STAGE, certifier.digest(own), seconds, lambda: _find_usual(meeting)
    )
    lines = certifier.compare(usual, own, name)
    answer = meeting.exchange(
        COMPARED,
        json.dumps(lines),
        seconds,
        lambda: json.dumps(_count_differing(meeting) == 0),
    )
    differing = []
    for text in meeting.read_all(COMPARED):
        told = json.loads(text)
        if told:
            differing.append(tuple(told))
    return Certified(
        same=json.loads(answer),
        certificate=usual,
        differing=tuple(differing[:SHOWN]),
        more=len(differing[SHOWN:]),
    )


def _find_usual(meeting: Meeting) -> str:
    """The certificate that most ranks compute; rank 0 alone asks."""
    digests = meeting.read_all(STAGE)
    usual = Counter(digests).most_common(1)[0][0]
    return meeting.read(TEXT, [digests.index(usual)])[0]


def _count_differing(meeting: Meeting) -> int:
    count = 0
    for text in meeting.read_all(COMPARED):
        if json.loads(text):
            count += 1
    return count
