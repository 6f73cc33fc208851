"""The files that a command is asked to write: what cannot or must not be written is refused before
anything is run.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from lockedenv.cli.verify_options import STDOUT
from lockedenv.errors import UsageError
from lockedenv.host.files import find_output, read_json, write_document
from lockedenv.redaction import redact_document
from lockedenv.verify.report import is_report

# Each kind of our JSON documents has `schema_version` and one of these: schemas/. The record of a
# prefix has none of them: it is no document that a command writes anew.
KEYS_OF_KINDS = ("fingerprint", "results", "checks", "compared", "action")
BEGINNING = 65_536  # bytes of a text in which it must look like a report


class TargetKind(Enum):
    """What is written to a file."""

    JSON = "json"
    REPORT = "report"


@dataclass(frozen=True)
class Target:
    """A file to write. `name`: as it was given on the command line."""

    name: str
    kind: TargetKind

    @property
    def path(self) -> Path:
        return Path(self.name)


def refuse_targets(
    targets: Sequence[Target], sources: Sequence[Path], own: Path
) -> None:
    """Raises UsageError for a target that cannot be written or holds what is not ours.

    `sources`: the files that the same command reads. `own`: the manifest of the prefix, which is
    replaced whatever it holds.
    """
    written = set()
    for target in targets:
        if target.name == STDOUT:
            raise UsageError("- is standard output for --json alone: name a file")
        real = os.path.realpath(target.name)
        if real in written:
            raise UsageError(
                f"{target.name}: two documents cannot be written to one file"
            )
        written.add(real)
        if any(is_same_file(target.path, source) for source in sources):
            raise UsageError(
                f"{target.name}: the same command reads it; choose another name for what is "
                "written"
            )
        if real != os.path.realpath(own) and not is_replaceable(target):
            raise UsageError(
                f"{target.name} is there, and is no document of this program; choose another "
                "name, or remove it"
            )
    for target in targets:
        refuse_unwritable(target)


def is_same_file(path: Path, source: Path) -> bool:
    """Whether a path leads to the regular file that another one, or "-", leads to."""
    try:
        status = path.stat()
        if str(source) == STDOUT:
            read = os.fstat(0)
        else:
            read = source.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and os.path.samestat(status, read)


def is_replaceable(target: Target) -> bool:
    """Whether nothing of other people's is lost: no file, an empty one, or a document of ours."""
    path = target.path
    try:
        status = path.stat()
    except OSError:
        return True
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return True
    if find_output(path) is not None:
        return True
    if target.kind is TargetKind.REPORT:
        return is_report(_read_beginning(path))
    document = read_json(path)
    return "schema_version" in document and any(
        key in document for key in KEYS_OF_KINDS
    )


def _read_beginning(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(BEGINNING).decode(errors="replace")
    except OSError:
        return ""


def refuse_unwritable(target: Target) -> None:
    """Raises UsageError for a file that cannot be written: now, not after a minute of checks."""
    try:
        _try_to_write(target.path)
    except OSError as error:
        raise UsageError(
            f"{target.name} cannot be written ({error.strerror}); "
            "name a file in a folder that you may write to"
        ) from None


def _try_to_write(path: Path) -> None:
    """Raises OSError where a file cannot be made or replaced, as far as this can be known."""
    if find_output(path) is not None:
        return
    if path.is_dir():
        raise IsADirectoryError(0, "it is a folder")
    if path.exists() and not path.is_file():
        # A pipe or a device: to open one can be to act.
        if path.is_socket():
            raise OSError(0, "it is a socket")
        if not os.access(path, os.W_OK):
            raise PermissionError(0, os.strerror(errno.EACCES))
        return
    real = Path(os.path.realpath(path))
    if real.exists():
        _refuse_protected(real)
    real.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=real.parent):
        pass


def _refuse_protected(path: Path) -> None:
    """Raises OSError for a file that may not be replaced although its folder can be written to."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        # Another error, such as that of a file that may only be read, does not hinder: the file
        # is replaced, not opened.
        if error.errno in (errno.EPERM, errno.EROFS):
            raise
    folder = path.parent.stat()
    users = (0, folder.st_uid, path.stat().st_uid)
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in users:
        raise PermissionError(0, "it is another user's, who alone may replace it there")


def write_json(target: str, document: Any) -> None:
    """Writes a document to a file, or to standard output for "-"."""
    text = json.dumps(redact_document(document), indent=2) + "\n"
    if target == STDOUT:
        sys.stdout.write(text)
    else:
        write_document(Path(target), text)
