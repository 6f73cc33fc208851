"""The places that a user has without naming them: home, the cache, a pod's volume."""

from __future__ import annotations

import os
from pathlib import Path

from lockedenv.errors import Stop

# RunPod's persistent volume; the container disk, faster, is lost with the pod.
POD_VOLUME = Path("/workspace")


def home() -> Path:
    """The user's home. Raises Stop where there is none to be known."""
    try:
        return Path.home()
    except RuntimeError:
        # HOME is not set, and the user is in no passwd file, as with `docker run --user 1234`.
        raise Stop(
            "HOME is not set; set it, or name both places with --prefix and --cache"
        ) from None


def default_cache() -> Path:
    """Where downloads are kept: on a pod's persistent volume, else in the user's cache folder."""
    is_pod = bool(os.environ.get("RUNPOD_POD_ID")) or os.path.ismount(POD_VOLUME)
    if is_pod and os.access(POD_VOLUME, os.W_OK):
        return POD_VOLUME / ".cache/maximalcai"
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if folder:
        return Path(folder) / "maximalcai"
    return home() / ".cache/maximalcai"
