"""NVLinks: the GPUs of a pod compared with each other, and an entry for each."""

from __future__ import annotations

import pytest
from lockedenv.host.finding import FindingOutcome
from lockedenv.host.gpus import Gpu
from lockedenv.pod.links import GpuLinks, judge_links, parse_links

SXM = "NVIDIA H100 80GB HBM3"
NVL = "NVIDIA H100 NVL"
A6000 = "NVIDIA RTX A6000"
# As nvidia-smi prints it: three RTX A6000 of which two are joined by a bridge.
STATUS = """\
GPU 0: NVIDIA RTX A6000 (UUID: GPU-5baec991-de63-c196-1766-04c38407e133)
\t Link 0: 14.062 GB/s
\t Link 1: 14.062 GB/s
GPU 1: NVIDIA RTX A6000 (UUID: GPU-39fc2446-cb50-2067-2867-d95efd470a2c)
\t Link 0: 14.062 GB/s
\t Link 1: <inactive>
GPU 2: NVIDIA RTX A6000 (UUID: GPU-02c05ee3-bdb5-aac7-f9e8-a4c8f3f725b3)
NVML: Unable to retrieve NVLink information as all links are inActive
"""


def make_gpus(name: str, count: int) -> list[Gpu]:
    return [
        Gpu(name, "550.90", 0, "9.0", f"GPU-{index}", False) for index in range(count)
    ]


def entries(*active: int, total: int = 18) -> list[GpuLinks]:
    found = []
    for index, count in enumerate(active):
        # Where all are inactive, nvidia-smi lists none.
        found.append(GpuLinks(index, count, total - count if count else 0))
    return found


def test_the_entries_of_nvidia_smi() -> None:
    assert parse_links(STATUS) == [
        GpuLinks(0, 2, 0),
        GpuLinks(1, 1, 1),
        GpuLinks(2, 0, 0),
    ]
    assert parse_links("") == []
    assert parse_links("\t Link 0: 26 GB/s\n") == []


@pytest.mark.parametrize(
    "name, count, links, verdict, text",
    [
        pytest.param(
            NVL,
            2,
            entries(12, 12),
            "pass",
            "12 NVLinks are active on each",
            id="NVL pair",
        ),
        pytest.param(
            SXM,
            8,
            entries(*[18] * 8),
            "pass",
            "18 NVLinks are active on each",
            id="HGX",
        ),
        pytest.param(
            SXM,
            8,
            entries(18, 18, 18, 18, 18, 0, 18, 18),
            "warn",
            "GPU 5: no NVLink is active, 18 are on others",
            id="one without any among eight",
        ),
        pytest.param(
            SXM,
            4,
            entries(18, 18, 17, 18),
            "warn",
            "GPU 2: 17 NVLinks are active, 18 are",
            id="one",
        ),
        pytest.param(
            SXM,
            4,
            entries(14, 14, 14, 14),
            "warn",
            "GPU 0: 4 of 18 NVLinks are inactive",
            id="switch",
        ),
        pytest.param(
            SXM, 2, entries(0, 0), "warn", "GPU 0: no NVLink is active", id="no fabric"
        ),
        pytest.param(
            SXM,
            3,
            entries(18, 18, 18)[:2],
            "warn",
            "GPU 2: nvidia-smi says nothing",
            id="no entry",
        ),
        pytest.param(
            SXM, 2, [], "warn", "GPU 0: nvidia-smi says nothing", id="no entries at all"
        ),
        pytest.param(
            NVL,
            2,
            entries(12, 11),
            "warn",
            "GPU 1: 11 NVLinks are active",
            id="NVL, one down",
        ),
        pytest.param(
            A6000, 2, entries(0, 0), "skip", "no NVLink joins", id="no bridge"
        ),
        pytest.param("NVIDIA L4", 2, [], "skip", "no NVLink joins", id="no NVLink"),
        pytest.param(
            A6000,
            3,
            parse_links(STATUS),
            "warn",
            "GPU 1: 1 NVLinks are active, 2 are",
            id="bridge",
        ),
    ],
)
def test_the_gpus_are_compared_with_each_other(
    name: str, count: int, links: list[GpuLinks], verdict: str, text: str
) -> None:
    found = judge_links(make_gpus(name, count), links)
    assert found.verdict.value == verdict, found
    assert text in found.summary, found


def test_one_gpu_has_no_other_to_be_compared_with() -> None:
    assert judge_links(make_gpus(SXM, 1), entries(0)).verdict is FindingOutcome.SKIP


def test_gpus_of_two_kinds_are_not_compared() -> None:
    gpus = [*make_gpus(NVL, 2), *make_gpus("NVIDIA A100 80GB PCIe", 2)]
    found = judge_links(gpus, entries(12, 12, 4, 4, total=12))
    assert found.verdict is FindingOutcome.PASS
    assert found.summary == "4 or 12 NVLinks are active on each of 4 GPUs"
