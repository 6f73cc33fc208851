"""Folders among the temporary files that are this user's alone: what lies in them is run, installed
or believed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from lockedenv.errors import Stop


def temporary(what: str, of: Path) -> Path:
    """A folder among the temporary files, the same for the next run: where flash-attn is built, and
    uv unpacks if it must.
    """
    digest = hashlib.sha256(os.fsencode(of)).hexdigest()[:12]
    return Path(tempfile.gettempdir(), f"maximalcai-{what}-{digest}")


def refuse_foreign(folder: Path) -> None:
    """Makes such a folder. Raises Stop if it is another's: all users write there, and the name can
    be guessed.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    ours = status.st_uid == os.getuid() and not status.st_mode & 0o077
    if folder.is_symlink() or not folder.is_dir() or not ours:
        raise Stop(
            f"{folder} is not a folder of yours alone, and what is unpacked or built there is "
            "installed; remove it, or set TMPDIR"
        )
