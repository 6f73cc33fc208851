"""Takes the wheel of a key from the cache, or builds it: find_or_build.py CACHE PREFIX ARCHIVE.

The compilers are stand-ins, and so are the lock and the torch; the rest is what a set-up does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fixtures.listener import Listener
from flash_stand_ins import TORCH
from lockedenv import ROOT
from lockedenv.host.locking import holding
from lockedenv.install.flash_attention import sources, toolchain
from lockedenv.install.flash_attention.sources import (
    BuiltFromSource,
    CachedWheel,
    Wanted,
)
from lockedenv.install.request import FlashRequest, Installation
from lockedenv.prefix.place import Prefix
from lockedenv.spec.environment import Environment

cache, prefix, archive = map(Path, sys.argv[1:])
USR = Path("/usr")
TOOLS = toolchain.Toolchain(USR, "12.4", USR / "bin/gcc", USR / "bin/g++", "12.2", USR)
toolchain.find_toolchain = lambda *arguments: TOOLS
sources.bring_source = lambda *arguments: archive

job = Installation(
    environment=Environment(ROOT),
    prefix=Prefix(prefix),
    cache=cache,
    flash=FlashRequest(mode="build"),
)
wanted = Wanted(job, TORCH, ("90",))
wanted.cache.mkdir(parents=True, exist_ok=True)
with holding(wanted.cache / f"{wanted.key}.lock", "the wheel", print):
    wheel = CachedWheel().bring(wanted, Listener())
    if wheel:
        print("cached")
    else:
        wheel = BuiltFromSource().bring(wanted, Listener())
        print(wheel and wheel.path.name)
