"""Builds the source in a folder with a prefix's pip: build_flash_attn.py FOLDER SOURCE WORK PREFIX."""

from __future__ import annotations

import sys
from pathlib import Path

from fixtures.listener import Listener
from lockedenv.errors import Stop
from lockedenv.install.flash_attention.build import BuildJob, build_wheel
from lockedenv.install.flash_attention.toolchain import Toolchain

folder, source, work, prefix = map(Path, sys.argv[1:])
tools = Toolchain(
    folder, "12.4", Path("/usr/bin/gcc"), Path("/usr/bin/g++"), "12.2", folder
)
job = BuildJob(source, work, prefix, tools, ("90",), 1, folder / "log")
try:
    build_wheel(job, Listener())
except Stop as error:
    print(error)
