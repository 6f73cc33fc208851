"""What the two scripts that install are asked for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import List, Optional

from lockedenv.console import Stop
from lockedenv.install import flash_plan
from lockedenv.machine import default_cache
from lockedenv.prefix import Prefix


class Options(argparse.Namespace):
    """The parsed options. `offline` is a folder made by --download-only; `level` None: what the prefix's past asks for."""

    target: Prefix
    cache: Path
    offline: Optional[Path]

    @property
    def mirrors(self) -> List[str]:
        return [mirror for mirror in self.mirror.split(",") if mirror]

    def settle(self, path: Path) -> None:
        """Makes the paths absolute, with `path` as the prefix. Raises Stop for options that contradict each other."""
        if self.sha256 and not self.wheel:
            raise Stop("--sha256 is the hash of --wheel; give both")
        if self.offline and not self.offline.is_dir():
            raise Stop(f"--offline {self.offline}: is not a folder; make it with --download-only {self.offline}")
        if self.jobs < 0:
            raise Stop(f"--jobs {self.jobs}: give a positive number")
        flash_plan.architectures([], self.arch)
        self.offline = self.offline.resolve() if self.offline else None
        self.cache = (self.cache.expanduser() if self.cache else default_cache()).resolve()
        self.target = Prefix(path.expanduser().resolve())  # through a link: what it points to


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that both scripts have."""
    add = parser.add_argument
    add("--prefix", type=Path, metavar="DIR", help="the environment (default: see above)")
    add("--cache", type=Path, metavar="DIR", help="where downloads and built wheels are kept "
        "(default: /workspace/.cache/maximalcai on a pod, otherwise ~/.cache/maximalcai)")  # fmt: skip
    add("--offline", type=Path, metavar="DIR", help="take everything from a folder made by --download-only")
    add("--arch", default="", metavar="LIST", help="build flash-attn for these: 90 is an H100, 80 an A100 "
        "(default: the GPUs present; none: not built)")  # fmt: skip
    add("--jobs", type=int, default=0, metavar="N", help="compile jobs (default: by CPUs and free memory)")
    add("--wheel", default="", metavar="FILE|URL", help="install this flash-attn wheel instead of building")
    add("--sha256", default="", metavar="HEX", help="the hash of --wheel")
    add("--no-flash-attn", action="store_true", help="leave flash-attn out")
    add("--level", choices=["quick", "full"], help="how much is verified (default: full, until that has passed)")
    add("--quiet", action="store_true", help="print the verdict and errors only")


def add_setup_options(parser: argparse.ArgumentParser) -> None:
    """The options of the set-up alone."""
    add = parser.add_argument
    add("--backend", choices=["auto", "conda", "pip"], default="auto",
        help="auto: conda where its channels answer, otherwise PyPI's wheels of the same versions")  # fmt: skip
    add("--mirror", default=os.environ.get("MAXIMALCAI_MIRROR", ""), metavar="URL,...",
        help="fetch conda archives from here first (default: $MAXIMALCAI_MIRROR); any is safe")  # fmt: skip
    add("--download-only", type=Path, metavar="DIR", help="collect everything in DIR, and install nothing")
    add("--force", action="store_true", help="rebuild a finished environment; the old one stays until it is verified")
    add("--keep-extras", action="store_true", help="install the packages that you added into the rebuilt environment too")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
