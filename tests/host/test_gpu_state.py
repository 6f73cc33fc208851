"""What a GPU reports of itself: each value is judged by what its field speaks of."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.gpu_stand_ins import make_smi
from lockedenv.host import gpu_state, nvidia_smi
from lockedenv.host.finding import Finding, FindingOutcome
from lockedenv.host.gpu_state import (
    GPU_FIELDS,
    LANES_MOST,
    LANES_NOW,
    RECOVERY,
    ROWS_FAILED,
    ROWS_PENDING,
    UNCORRECTED,
    About,
    judge_state,
    read_state,
)
from lockedenv.host.nvidia_smi import SmiAnswer, SmiStatus

WELL = {field.name: "Not Active" for field in GPU_FIELDS}
WELL.update({UNCORRECTED.name: "0", LANES_NOW.name: "16", LANES_MOST.name: "16"})
WELL[RECOVERY.name] = "None"
ROWS = {ROWS_PENDING.name: "No", ROWS_FAILED.name: "No"}
HW_SLOWDOWN = "clocks_event_reasons.hw_slowdown"


def judge(*gpus: dict[str, str], rows: dict[str, str] | None = None) -> Finding:
    """The verdict on GPUs that differ from healthy ones by these values."""
    remapped = {**ROWS, **(rows or {})}
    return judge_state(
        {
            "gpu": SmiAnswer(
                SmiStatus.ANSWERED, tuple({**WELL, **gpu} for gpu in gpus)
            ),
            "remapped-rows": SmiAnswer(SmiStatus.ANSWERED, (remapped,) * len(gpus)),
        }
    )


SILENT = [
    "[N/A]",
    "[Not Supported]",
    "[n/a]",
    "[Insufficient Permissions]",
    "[Requested functionality has been deprecated]",
]


@pytest.mark.parametrize("value", SILENT)
@pytest.mark.parametrize("field", GPU_FIELDS, ids=lambda field: field.name)
def test_what_a_gpu_does_not_say_is_no_fault(
    field: gpu_state.Field, value: str
) -> None:
    assert judge({field.name: value}).verdict is FindingOutcome.PASS
    rows = {ROWS_PENDING.name: value, ROWS_FAILED.name: value}
    assert judge({}, {}, rows=rows).verdict is FindingOutcome.PASS


def test_a_count_of_nothing_is_no_fault() -> None:
    assert judge(
        {}, {}, rows={ROWS_PENDING.name: "0", ROWS_FAILED.name: "0"}
    ).summary == ("no memory errors, no slowdown, full PCIe width")


@pytest.mark.parametrize("field", GPU_FIELDS, ids=lambda field: field.name)
def test_only_fields_that_speak_of_memory_say_something_about_memory(
    field: gpu_state.Field,
) -> None:
    found = judge({}, {field.name: "[Unknown Error]"})
    assert found.summary.startswith("GPU 1: ")
    assert "[Unknown Error]" in found.summary
    assert "take another pod" in found.remedy
    if field.about is About.MEMORY:
        assert found.verdict is FindingOutcome.FAIL
        assert "is failing" in found.remedy
    else:
        assert found.verdict is FindingOutcome.WARN
        assert "memory" not in found.summary + found.remedy


@pytest.mark.parametrize("value", ["[GPU requires reset]", "[GPU is lost]"])
@pytest.mark.parametrize("field", GPU_FIELDS, ids=lambda field: field.name)
def test_a_gpu_that_must_be_reset_says_so_in_any_field(
    field: gpu_state.Field, value: str
) -> None:
    found = judge({}, {field.name: value})
    assert found.verdict is FindingOutcome.FAIL
    assert value in found.summary
    assert "must be reset" in found.remedy
    assert "take another pod" in found.remedy


@pytest.mark.parametrize("value", ["Yes", "1"])
def test_rows_that_wait_for_a_reset(value: str) -> None:
    found = judge({}, rows={ROWS_PENDING.name: value})
    assert found.verdict is FindingOutcome.FAIL
    assert "memory rows wait for a reset to be remapped" in found.summary
    assert "must be reset, which a pod cannot do: take another pod" in found.remedy


def test_rows_that_cannot_be_remapped() -> None:
    found = judge({}, {}, rows={ROWS_FAILED.name: "Yes"})
    assert found.verdict is FindingOutcome.FAIL
    assert "is failing" in found.remedy
    assert "GPU 0: memory rows cannot be remapped: Yes" in found.summary


def test_memory_errors_come_before_a_slowdown() -> None:
    found = judge({UNCORRECTED.name: "3", HW_SLOWDOWN: "Active"})
    assert found.verdict is FindingOutcome.FAIL
    assert "uncorrected memory errors: 3" in found.summary
    assert found.details == ("GPU 0: hardware slowdown: Active",)


def test_slowdown_and_link() -> None:
    found = judge({}, {HW_SLOWDOWN: "Active", LANES_NOW.name: "8"})
    assert found.verdict is FindingOutcome.WARN
    assert "GPU 1: hardware slowdown: Active" in found.summary
    assert "PCIe link has 8 of 16 lanes" in found.details[0]


@pytest.mark.parametrize("value", ["Reset", "Reboot", "Drain P2P", "Drain and Reset"])
def test_a_recovery_that_the_driver_asks_for(value: str) -> None:
    found = judge({RECOVERY.name: value})
    assert found.verdict is FindingOutcome.FAIL
    assert value in found.summary
    assert "only the host can do that: take another pod" in found.remedy


def test_a_field_that_the_driver_does_not_know_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = [field.name for field in GPU_FIELDS if "event_reasons" in field.name]
    answers = {
        "UNKNOWN": " ".join([*unknown, ROWS_FAILED.name, RECOVERY.name]),
        "SLOWDOWN": "Active",
        "PENDING": "Yes",
        "ASKED": str(tmp_path / "asked"),
    }
    for name, value in make_smi(tmp_path, **answers).items():
        monkeypatch.setenv(name, value)
    found = judge_state(read_state())
    assert found.verdict is FindingOutcome.FAIL
    assert "GPU 0: memory rows wait for a reset to be remapped: Yes" in found.summary
    # Both thermal reasons have one text.
    assert found.details == (
        "GPU 0: hardware slowdown: Active",
        "GPU 0: thermal slowdown: Active",
    )
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 7
    assert "clocks_throttle_reasons.hw_slowdown" in asked[4]
    assert "event" not in asked[4]


def test_rows_beside_a_warning_are_judged_and_the_warning_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = "WARNING: infoROM is corrupted at gpu 0000:84:00.0"
    for name, value in make_smi(tmp_path, WARNING=warning, EXIT="14").items():
        monkeypatch.setenv(name, value)
    found = judge_state(read_state())
    assert found.verdict is FindingOutcome.WARN
    assert warning in found.summary
    monkeypatch.setenv("ECC", "7")
    found = judge_state(read_state())
    assert found.verdict is FindingOutcome.FAIL
    assert "uncorrected memory errors: 7" in found.summary


def test_an_nvidia_smi_that_fails_or_is_gone_is_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").mkdir()
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path / "none"))
        found = judge_state(read_state())
    assert found.verdict is FindingOutcome.FAIL
    assert "nvidia-smi does not answer: No such file" in found.summary
    for name, value in make_smi(tmp_path, SAYS="sorry", EXIT="3").items():
        monkeypatch.setenv(name, value)
    found = judge_state(read_state())
    assert found.verdict is FindingOutcome.WARN
    assert "nvidia-smi does not say: sorry" in found.summary


def test_an_nvidia_smi_that_says_nothing_is_described(tmp_path: Path) -> None:
    """The message had nothing where the cause belongs: "nvidia-smi does not say: : run nvidia-smi -q"."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    answer = nvidia_smi.query("gpu", ["name"], {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert answer.status is SmiStatus.NO_DEVICES
    assert answer.problem == "it says nothing"
