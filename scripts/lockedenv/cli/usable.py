"""Whether a place can hold what is to be installed or collected there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lockedenv.errors import Stop
from lockedenv.host.disks import existing_parent
from lockedenv.host.process import ask


def refuse_unusable(folder: Path) -> None:
    """Raises Stop for a place where this user cannot write, or where the kernel
    starts no program (noexec).
    """
    parent = existing_parent(folder)
    try:
        # root may write anywhere, says os.access, and cannot.
        with tempfile.TemporaryDirectory(dir=parent) as tmp:
            program = Path(tmp, "try")
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
            tried = ask([program])
    except OSError as error:
        raise Stop(
            f"{folder} cannot be made in {parent} ({error.strerror}); choose another with --prefix "
            "or --cache"
        ) from None
    if tried.status != 0:
        raise Stop(
            f"no program starts from the disk of {folder} ({tried.error}): it is mounted noexec; "
            "choose another with --prefix or --cache"
        )
