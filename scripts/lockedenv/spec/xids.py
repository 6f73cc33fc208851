"""The errors that NVIDIA's driver writes into the kernel's log, as the maker's catalogue has them.

Xids are errors of a GPU: https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, the
catalogue for Ampere and newer, as of driver 590. Codes that it calls unused are left out; so are
those without any action (162 to 170). SXids are errors of an NVSwitch:
https://docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide/, appendix C.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class XidFault(Enum):
    """Whose fault an error is, as far as the catalogue tells."""

    PROGRAM = "a program"
    DRIVER = "the driver or its firmware"
    GPU = "the GPU"
    MEMORY = "the GPU's memory"
    LINK = "NVLink"
    HOST = "the host"
    NOBODY = "nobody: it is a notice"


class XidAction(Enum):
    """The catalogue's immediate action: its resolution buckets, by who can take them."""

    IGNORE = "ignore"  # IGNORE
    RESTART_PROGRAM = "restart the program"  # RESTART_APP
    FOLLOW_OTHER = "follow the error that came with it"  # WORKFLOW_XID_45
    WATCH = (
        "watch"  # CONTACT_SUPPORT and workflows whose outcome depends on what follows
    )
    RESET_GPU = "reset the GPU"  # RESET_GPU
    RESTART_HOST = (
        "restart the host"  # RESTART_BM, RESTART_VM, CHECK_MECHANICALS, UPDATE_SWFW
    )
    AS_IT_SAYS = (
        "as the line itself says"  # XID_154, and "Fatal" or "Nonfatal" of 144 to 150
    )


@dataclass(frozen=True)
class Xid:
    """One row of the catalogue."""

    code: int
    name: str
    fault: XidFault
    action: XidAction


_ROWS = (
    Xid(8, "GPU stopped processing", XidFault.PROGRAM, XidAction.RESTART_PROGRAM),
    Xid(
        11,
        "invalid or corrupted push buffer stream",
        XidFault.PROGRAM,
        XidAction.RESTART_PROGRAM,
    ),
    Xid(13, "graphics engine exception", XidFault.PROGRAM, XidAction.RESTART_PROGRAM),
    Xid(
        25,
        "invalid or illegal push buffer stream",
        XidFault.PROGRAM,
        XidAction.RESTART_PROGRAM,
    ),
    Xid(31, "GPU memory page fault", XidFault.PROGRAM, XidAction.RESTART_PROGRAM),
    Xid(
        32,
        "invalid or corrupted push buffer stream",
        XidFault.PROGRAM,
        XidAction.RESTART_PROGRAM,
    ),
    Xid(37, "driver firmware error", XidFault.DRIVER, XidAction.IGNORE),
    Xid(38, "driver firmware error", XidFault.DRIVER, XidAction.IGNORE),
    Xid(43, "GPU stopped processing", XidFault.PROGRAM, XidAction.IGNORE),
    Xid(
        44,
        "graphics engine fault during context switch",
        XidFault.DRIVER,
        XidAction.IGNORE,
    ),
    Xid(45, "cleanup after an earlier error", XidFault.PROGRAM, XidAction.FOLLOW_OTHER),
    Xid(46, "GPU stopped processing", XidFault.GPU, XidAction.RESET_GPU),
    Xid(48, "double bit ECC error", XidFault.MEMORY, XidAction.RESET_GPU),
    Xid(54, "auxiliary power is not connected", XidFault.HOST, XidAction.RESTART_HOST),
    Xid(60, "video processor exception", XidFault.PROGRAM, XidAction.RESTART_PROGRAM),
    Xid(62, "internal micro-controller halt", XidFault.GPU, XidAction.RESET_GPU),
    Xid(63, "a memory row or page was remapped", XidFault.MEMORY, XidAction.IGNORE),
    Xid(
        64,
        "a memory row or page could not be remapped",
        XidFault.MEMORY,
        XidAction.RESET_GPU,
    ),
    Xid(66, "illegal access by the driver", XidFault.DRIVER, XidAction.IGNORE),
    Xid(67, "illegal access by the driver", XidFault.DRIVER, XidAction.IGNORE),
    Xid(69, "graphics engine class error", XidFault.PROGRAM, XidAction.RESTART_PROGRAM),
    Xid(74, "NVLink error", XidFault.LINK, XidAction.WATCH),
    Xid(78, "vGPU start error", XidFault.HOST, XidAction.RESTART_HOST),
    Xid(79, "GPU has fallen off the bus", XidFault.GPU, XidAction.RESTART_HOST),
    Xid(
        80,
        "corrupted data sent to the GPU",
        XidFault.PROGRAM,
        XidAction.RESTART_PROGRAM,
    ),
    Xid(92, "high rate of single bit ECC errors", XidFault.MEMORY, XidAction.WATCH),
    Xid(93, "infoROM wear limit exceeded", XidFault.GPU, XidAction.IGNORE),
    Xid(94, "contained memory error", XidFault.MEMORY, XidAction.WATCH),
    Xid(95, "uncontained memory error", XidFault.MEMORY, XidAction.RESET_GPU),
    Xid(106, "test message", XidFault.NOBODY, XidAction.IGNORE),
    Xid(107, "test message", XidFault.NOBODY, XidAction.IGNORE),
    Xid(109, "context switch timeout", XidFault.GPU, XidAction.RESET_GPU),
    Xid(110, "security fault", XidFault.DRIVER, XidAction.RESET_GPU),
    Xid(
        119,
        "the GPU's system processor (GSP) does not answer",
        XidFault.DRIVER,
        XidAction.RESET_GPU,
    ),
    Xid(
        120,
        "error of the GPU's system processor (GSP)",
        XidFault.DRIVER,
        XidAction.RESET_GPU,
    ),
    Xid(121, "error of the link between chips (C2C)", XidFault.LINK, XidAction.WATCH),
    Xid(136, "NVLink training failed", XidFault.LINK, XidAction.RESET_GPU),
    Xid(137, "NVLink privilege error", XidFault.LINK, XidAction.IGNORE),
    Xid(140, "unrecovered ECC error", XidFault.MEMORY, XidAction.RESET_GPU),
    Xid(141, "CUDA fast path error", XidFault.DRIVER, XidAction.IGNORE),
    Xid(143, "GPU initialization error", XidFault.GPU, XidAction.RESET_GPU),
    Xid(144, "NVLink error (SAW)", XidFault.LINK, XidAction.AS_IT_SAYS),
    Xid(145, "NVLink error (RLW)", XidFault.LINK, XidAction.AS_IT_SAYS),
    Xid(146, "NVLink error (TLW)", XidFault.LINK, XidAction.AS_IT_SAYS),
    Xid(147, "NVLink error (TREX)", XidFault.LINK, XidAction.AS_IT_SAYS),
    Xid(148, "NVLink error (NVLPW_CTRL)", XidFault.LINK, XidAction.AS_IT_SAYS),
    Xid(149, "NVLink error (NETIR)", XidFault.LINK, XidAction.AS_IT_SAYS),
    Xid(150, "NVLink error (MSE)", XidFault.LINK, XidAction.AS_IT_SAYS),
    Xid(151, "key rotation error", XidFault.DRIVER, XidAction.RESTART_HOST),
    Xid(154, "the driver asks for a recovery", XidFault.GPU, XidAction.AS_IT_SAYS),
    Xid(155, "NVLink error (defined by software)", XidFault.LINK, XidAction.RESET_GPU),
    Xid(156, "a resource was retired", XidFault.GPU, XidAction.RESET_GPU),
    Xid(157, "a resource could not be retired", XidFault.GPU, XidAction.WATCH),
    Xid(158, "GPU fatal timeout", XidFault.GPU, XidAction.RESET_GPU),
    Xid(160, "a memory channel was retired", XidFault.MEMORY, XidAction.WATCH),
    Xid(161, "a memory channel could not be retired", XidFault.MEMORY, XidAction.WATCH),
    Xid(171, "uncorrectable DRAM error", XidFault.MEMORY, XidAction.FOLLOW_OTHER),
    Xid(172, "uncorrectable SRAM error", XidFault.MEMORY, XidAction.FOLLOW_OTHER),
)
# The engines of a GPU, whose rows in the catalogue differ by the number alone: RESTART_APP.
_COPY_ENGINES = (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136))
_VIDEO_ENGINES = (68, 82, 83, 84, 86, 88, 89, 96, 97, 98, *range(99, 106), 139, 142)


def _make_catalogue() -> dict[int, Xid]:
    catalogue = {row.code: row for row in _ROWS}
    for code in _COPY_ENGINES:
        catalogue[code] = Xid(
            code, "copy engine error", XidFault.PROGRAM, XidAction.RESTART_PROGRAM
        )
    for code in _VIDEO_ENGINES:
        catalogue[code] = Xid(
            code, "video engine error", XidFault.PROGRAM, XidAction.RESTART_PROGRAM
        )
    return catalogue


CATALOGUE = _make_catalogue()
# "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"
RECOVERY = re.compile(
    r"recovery action changed from \w+ \([^)]*\) to \w+ \(([^)]*)\)", re.IGNORECASE
)
RECOVERED = "None"
RECOVERY_CHANGED = 154


class SwitchSeverity(Enum):
    """What a line about an NVSwitch calls itself.

    After a fatal error the switch passes nothing on until every GPU and switch is reset.
    """

    FATAL = "Fatal"
    NON_FATAL = "Non-fatal"
    UNSAID = ""  # the lines "Severity ..." and "Data {...}" that follow


@dataclass(frozen=True)
class XidLine:
    """An Xid in the kernel's log. `place`: the GPU's PCI address, such as "0000:01:00"."""

    place: str
    code: int
    text: str

    @property
    def row(self) -> Xid | None:
        """The catalogue's row; None for a code that it does not have."""
        return CATALOGUE.get(self.code)

    @property
    def recovery(self) -> str:
        """What the driver wants done, for an Xid 154: "Node Reboot Required", or "None"."""
        match = RECOVERY.search(self.text)
        return match[1] if match else ""

    @property
    def is_fatal(self) -> bool:
        """Whether the line calls itself fatal, as 144 to 150 do."""
        return re.search(r"\bFatal\b", self.text) is not None


@dataclass(frozen=True)
class SwitchLine:
    """An SXid in the kernel's log. `place`: the NVSwitch's PCI address."""

    place: str
    code: int
    severity: SwitchSeverity
    text: str


# The GPU's address ends before its function, or in its MIG instance: "(PCI:0000:01:00 GPU-I:05)".
XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:]+)[^)]*\): (\d{1,4}),?\s*(.*)")
SXID = re.compile(
    r"nvidia-nvswitch\d*: SXid \(PCI:([0-9a-fA-F:.]+)\): (\d{1,6}),\s*(.*)"
)


def read_xids(log: str) -> list[XidLine]:
    """The Xids in a kernel's log, in its order."""
    found = []
    for place, code, text in XID.findall(log):
        found.append(XidLine(place.lower(), int(code), text.strip()))
    return found


def read_switch_errors(log: str) -> list[SwitchLine]:
    """The SXids in a kernel's log, in its order."""
    found = []
    for place, code, text in SXID.findall(log):
        found.append(
            SwitchLine(place.lower(), int(code), _read_severity(text), text.strip())
        )
    return found


def _read_severity(text: str) -> SwitchSeverity:
    for severity in (SwitchSeverity.FATAL, SwitchSeverity.NON_FATAL):
        if text.startswith(severity.value + ","):
            return severity
    return SwitchSeverity.UNSAID
