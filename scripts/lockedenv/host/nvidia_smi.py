"""Asking nvidia-smi for fields, whatever the driver's age, and what its exit status means."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from lockedenv.host.process import ask

# It answers in less than a second where the driver is loaded, in some seconds per GPU where it is
# not (no persistence mode). A hanging GPU makes it wait for ever.
PATIENCE = 60  # seconds
UNKNOWN_FIELD = re.compile(r'Field "([\w.]+)" is not a valid field to query')
# "WARNING: infoROM is corrupted at gpu 0000:84:00.0", on standard output, before or after the rows.
WARNING = re.compile(r"^\s*WARNING: ", re.IGNORECASE)


class SmiStatus(Enum):
    """How nvidia-smi ended."""

    ANSWERED = "answered"
    ABSENT = "absent"  # there is no such program
    HANGS = "hangs"
    NO_DRIVER = "no driver"
    NO_DEVICES = "no devices"
    FAILED = "failed"


# Section RETURN VALUE of nvidia-smi(1). 14 warns of the infoROM, and the rows are right all the
# same: https://github.com/pytorch/pytorch/pull/87464,
# https://github.com/NVIDIA/gpu-operator/issues/285
EXIT_NO_DRIVER = 9
EXIT_INFOROM = 14


@dataclass(frozen=True)
class SmiAnswer:
    """What nvidia-smi said to a query.

    `rows` has one mapping of field to value for each line. A field that this driver does not know
    is in no row. `warnings` are lines that came beside the rows. `problem` is what went wrong, in
    nvidia-smi's words, and empty if it answered.
    """

    status: SmiStatus
    rows: tuple[Mapping[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str = ""
    exit_status: int | None = None


def find_program(environ: Mapping[str, str]) -> str | None:
    """The nvidia-smi on PATH."""
    return shutil.which("nvidia-smi", path=environ.get("PATH"))


def query(
    selector: str, fields: Sequence[str], environ: Mapping[str, str] | None = None
) -> SmiAnswer:
    """Asks for fields, such as `query("gpu", ["name", "uuid"])`.

    A driver that does not know a field names the first such one and answers nothing, so the query
    is repeated without it. Driver 470 has no compute_cap:
    https://github.com/huggingface/candle/issues/733
    """
    if environ is None:
        environ = os.environ
    program = find_program(environ)
    if program is None:
        return SmiAnswer(SmiStatus.ABSENT, problem="No such file or directory")
    known = list(fields)
    while known:
        command = [
            program,
            f"--query-{selector}={','.join(known)}",
            "--format=csv,noheader,nounits",
        ]
        found = ask(command, PATIENCE, env=dict(environ))
        if found.status is None:
            return SmiAnswer(SmiStatus.HANGS, problem=found.error)
        unknown = UNKNOWN_FIELD.findall(found.output + found.error)
        remaining = [field for field in known if field not in unknown]
        if remaining == known:
            return _read_answer(found.status, found.output, found.error, known)
        known = remaining
    return SmiAnswer(SmiStatus.ANSWERED)


def _read_answer(
    exit_status: int, out: str, err: str, fields: Sequence[str]
) -> SmiAnswer:
    rows = []
    warnings = []
    for line in out.splitlines():
        if WARNING.match(line):
            warnings.append(line.strip())
        elif line.strip():
            rows.append(line)
    for line in err.splitlines():
        if WARNING.match(line):
            warnings.append(line.strip())
    words = " ".join((out + " " + err).split())
    if "No devices were found" in words or (exit_status == 0 and not rows):
        problem = words or "it says nothing"
        return SmiAnswer(SmiStatus.NO_DEVICES, problem=problem, exit_status=exit_status)
    if (
        exit_status == EXIT_NO_DRIVER
        or "couldn't communicate with the NVIDIA driver" in words
    ):
        return SmiAnswer(SmiStatus.NO_DRIVER, problem=words, exit_status=exit_status)
    if exit_status not in (0, EXIT_INFOROM):
        return SmiAnswer(
            SmiStatus.FAILED, problem=_first_line(out, err), exit_status=exit_status
        )
    if not rows:
        return SmiAnswer(
            SmiStatus.FAILED, problem=_first_line(out, err), exit_status=exit_status
        )
    parsed = []
    for row in rows:
        values = [value.strip() for value in row.split(",")]
        if len(values) != len(fields):
            problem = f"{row.strip()!r} is no answer to {','.join(fields)}"
            return SmiAnswer(
                SmiStatus.FAILED, (), tuple(warnings), problem, exit_status
            )
        parsed.append(dict(zip(fields, values)))
    return SmiAnswer(
        SmiStatus.ANSWERED, tuple(parsed), tuple(warnings), "", exit_status
    )


def _first_line(out: str, err: str) -> str:
    for line in (out + "\n" + err).splitlines():
        if line.strip() and not WARNING.match(line):
            return line.strip()
    for line in (out + "\n" + err).splitlines():
        if line.strip():
            return line.strip()
    return "it says nothing"
