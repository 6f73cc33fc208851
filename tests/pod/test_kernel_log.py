"""The errors of our GPUs and of NVSwitches in the kernel's log, by the maker's catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.gpu_stand_ins import make_smi
from lockedenv.host.finding import FindingOutcome
from lockedenv.pod.kernel_log import LoggedGpu, check_kernel_log, judge_log
from lockedenv.spec.xids import (
    CATALOGUE,
    XidAction,
    XidFault,
    read_switch_errors,
    read_xids,
)

OURS = LoggedGpu("0000:01:00")
FATAL_149 = (
    "NVRM: Xid (PCI:0000:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 00 "
    "(0x026001c6 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)"
)
NONFATAL_145 = (
    "NVRM: Xid (PCI:0000:01:00): 145, RLW_RXPIPE Nonfatal XC0 i0 Link 13 "
    "(0x0409a0c2 0x00000008 0x00000001 0x00000000 0x00100000 0x00000004)"
)
REBOOT_154 = (
    "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) "
    "to 0x2 (Node Reboot Required)"
)
RECOVERED_154 = (
    "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) "
    "to 0x0 (None)"
)
FATAL_SWITCH = (
    "[131453.740743] nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Fatal, "
    "Link 30 LTSSM Fault Up"
)
# https://github.com/NVIDIA/nvtrust/issues/124
NON_FATAL_SWITCH = """\
[38.175561] nvidia-nvswitch3: SXid (PCI:0000:04:00.0): 22013, Data {0x0000002b, 0x0000002b}
[38.178720] nvidia-nvswitch3: SXid (PCI:0000:04:00.0): 22013, Non-fatal, Link 44 Minion Link DLREQ
[38.180708] nvidia-nvswitch3: SXid (PCI:0000:04:00.0): 22013, Severity 0 Engine instance 44
"""


def xid(code: int, text: str = "pid=1234, name=python3, something") -> str:
    return f"[1.0] NVRM: Xid (PCI:0000:01:00): {code}, {text}"


@pytest.mark.parametrize(
    "log, verdict, text",
    [
        pytest.param("", "pass", "no error of these GPUs", id="nothing"),
        pytest.param(
            xid(31, "pid=1, MMU Fault"), "warn", "a program's own fault", id="31"
        ),
        pytest.param(xid(13), "warn", "a program's own fault", id="13"),
        pytest.param(
            "[1.0] NVRM: Xid (PCI:0000:01:00 GPU-I:05): 79, GPU has fallen off the bus.",
            "fail",
            "GPU has fallen off the bus (fault of the GPU; restart the host): only the host",
            id="79 of a MIG instance",
        ),
        pytest.param(
            "NVRM: Xid (PCI:0000:02:00): 79, another tenant's GPU",
            "pass",
            "no error",
            id="other",
        ),
        pytest.param(
            FATAL_149, "fail", "NVLink error (NETIR): NETIR_LINK_EVT Fatal", id="149"
        ),
        pytest.param(
            NONFATAL_145, "warn", "if it comes again, take another pod", id="145"
        ),
        pytest.param(
            REBOOT_154,
            "fail",
            "asks for: Node Reboot Required: only the host",
            id="154",
        ),
        pytest.param(RECOVERED_154, "pass", "no error", id="154 recovered"),
        pytest.param(
            FATAL_SWITCH,
            "fail",
            "SXid 20034 of the NVSwitch at 0000:a9:00.0",
            id="SXid",
        ),
        pytest.param(NON_FATAL_SWITCH, "pass", "no error", id="SXid that is not fatal"),
        pytest.param(xid(48), "fail", "double bit ECC error", id="48"),
        pytest.param(xid(63), "pass", "no error", id="63: a row was remapped"),
        pytest.param(
            xid(64), "fail", "could not be remapped (fault of the GPU's memory", id="64"
        ),
        pytest.param(xid(74), "warn", "NVLink error", id="74"),
        pytest.param(xid(94), "warn", "contained memory error", id="94"),
        pytest.param(xid(95), "fail", "uncontained memory error", id="95"),
        pytest.param(xid(119), "fail", "GSP", id="119"),
        pytest.param(xid(140), "fail", "unrecovered ECC error", id="140"),
        pytest.param(xid(43), "pass", "no error", id="43: ignored by the catalogue"),
        pytest.param(xid(999), "warn", "not in the catalogue", id="unknown code"),
        pytest.param(
            "NVRM: Xid (0000:01:00): 79, old driver",
            "fail",
            "off the bus",
            id="old form",
        ),
        pytest.param(
            "NVRM: Xid (PCI:0000:01:00): abc, 31", "pass", "no error", id="no number"
        ),
    ],
)
def test_what_the_log_says_is_judged_by_the_catalogue(
    log: str, verdict: str, text: str
) -> None:
    found = judge_log(log, [OURS])
    assert found.verdict.value == verdict, found
    assert text in f"{found.summary}: {found.remedy}", found


def test_the_worst_comes_first_and_each_is_counted_once() -> None:
    log = "\n".join(
        [xid(31), xid(31), NONFATAL_145, FATAL_149, xid(45), REBOOT_154, FATAL_SWITCH]
    )
    found = judge_log(log, [OURS])
    assert found.verdict is FindingOutcome.FAIL
    assert "give this pod back" in found.remedy
    lines = [found.summary, *found.details]
    assert len(lines) == 5
    assert "(2 times)" in lines[-1]
    assert "Xid 31" in lines[-1]
    assert "Xid 145" in lines[-2]
    # 45 is what is cleaned up after another error.
    assert not any("Xid 45" in line for line in lines)
    assert "a program may have caused it" not in found.remedy


def test_a_cleanup_alone_is_a_programs() -> None:
    found = judge_log(xid(45), [OURS])
    assert found.verdict is FindingOutcome.WARN
    assert "a program's own fault" in found.remedy


def test_what_came_before_a_recovery_is_history() -> None:
    found = judge_log("\n".join([xid(119), RECOVERED_154]), [OURS])
    assert found.verdict is FindingOutcome.WARN
    assert "since recovered" in found.summary
    found = judge_log("\n".join([RECOVERED_154, xid(119)]), [OURS])
    assert found.verdict is FindingOutcome.FAIL
    found = judge_log("\n".join([REBOOT_154, RECOVERED_154]), [OURS])
    assert found.verdict is FindingOutcome.PASS


def test_what_the_driver_wants_now_decides_over_an_old_line() -> None:
    recovered = LoggedGpu("0000:01:00", "None")
    assert judge_log(xid(119), [recovered]).verdict is FindingOutcome.WARN
    assert judge_log(REBOOT_154, [recovered]).verdict is FindingOutcome.PASS
    assert (
        judge_log(xid(119), [LoggedGpu("0000:01:00", "Reset")]).verdict
        is FindingOutcome.FAIL
    )
    assert (
        judge_log(xid(119), [LoggedGpu("0000:01:00", "[N/A]")]).verdict
        is FindingOutcome.FAIL
    )


def test_the_catalogue_has_each_code_once_with_what_to_do() -> None:
    for code, row in CATALOGUE.items():
        assert row.code == code
        assert row.name
        assert isinstance(row.fault, XidFault)
    assert CATALOGUE[79].action is XidAction.RESTART_HOST
    for code in (64, 95, 119, 140):
        assert CATALOGUE[code].action is XidAction.RESET_GPU
    programs = [13, 31, 32, 43, 69]
    assert {CATALOGUE[code].fault for code in programs} == {XidFault.PROGRAM}
    for code in (1, 91, 122):  # unused
        assert code not in CATALOGUE


def test_lines_as_they_stand_in_the_log() -> None:
    [line] = read_xids(f"kern  :warn  : [Fri Aug 30 11:43:09 2024] {REBOOT_154}")
    assert (line.place, line.code, line.recovery) == (
        "0000:01:00",
        154,
        "Node Reboot Required",
    )
    assert [line.code for line in read_switch_errors(NON_FATAL_SWITCH)] == [22013] * 3
    assert read_xids("NVRM: Xid (PCI:0000:01:00): 31" + "\n")[0].text == ""


def write_dmesg(folder: Path, script: str) -> None:
    (folder / "dmesg").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "dmesg").chmod(0o755)


def test_the_log_is_read_with_the_addresses_of_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in make_smi(
        tmp_path, GPUS="2", UNKNOWN="gpu_recovery_action"
    ).items():
        monkeypatch.setenv(name, value)
    write_dmesg(
        tmp_path, "echo 'NVRM: Xid (PCI:0001:01:00): 79, GPU has fallen off the bus.'"
    )
    assert check_kernel_log().summary.startswith("Xid 79 of the GPU at 0001:01:00")
    write_dmesg(tmp_path, "echo 'dmesg: read kernel buffer failed' >&2; exit 1")
    found = check_kernel_log()
    assert found.verdict is FindingOutcome.SKIP
    assert "may not be read" in found.summary
    write_dmesg(tmp_path, "exit 0")
    assert check_kernel_log().verdict is FindingOutcome.PASS
    monkeypatch.setenv("UNKNOWN", "pci.bus_id gpu_recovery_action")
    assert check_kernel_log().verdict is FindingOutcome.SKIP
