"""Small environments of the pip backend: real records and files, made in milliseconds, for the tests of this folder."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from pathlib import Path
from typing import Callable

from lockedenv.prefix.inventory import Package, write_inventory
from lockedenv.prefix.lifecycle import (
    finish_installation,
    make_successor,
    record_verdict,
)
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.mark import read_mark
from lockedenv.prefix.place import Prefix
from lockedenv.spec.layers import BackendName, Layer
from lockedenv.spec.level import Level

SITE = "lib/python3.11/site-packages"
IDNA = Package("idna", "3.10", "a" * 64, Layer.PIP)
FILES = {
    "idna/__init__.py": b"one\n",
    "idna/core.py": b"two\n",
    "../../../bin/idna": b"#!x\n",
}


def add_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """Puts a wheel's files into an environment, as an installer does: RECORD alone has no hash in it."""
    site = folder / SITE
    info = site / f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    rows = []
    for path, content in {**files, f"{info.name}/METADATA": metadata.encode()}.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
        encoded = (
            base64.urlsafe_b64encode(hashlib.sha256(content).digest())
            .decode()
            .rstrip("=")
        )
        rows.append(f"{path},sha256={encoded},{len(content)}")
    rows.append(f"{info.name}/RECORD,,")
    (info / "RECORD").write_text("\n".join(rows))


def fill(folder: Path) -> Path:
    """Makes a folder an environment with one locked package."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (folder / "lib64").symlink_to("lib")
    (folder / "activate").write_text("export A=1\n")
    (folder / "pip.conf").write_text("[install]\n")
    add_wheel(folder, "idna", "3.10", FILES)
    (folder / "bin/idna").chmod(0o755)
    return folder


def install(
    prefix: Prefix, say: Callable[[str], None] = print, locks: str = "a"
) -> Prefix:
    """Makes an environment at a prefix, installed and not yet verified, as the set-up does."""
    with make_successor(prefix, BackendName.PIP, "default", say) as new:
        fill(new.path)
        taken = take_inventory(new.path, [IDNA], with_interpreter=False)
        write_inventory(new.path, taken)
        finish_installation(new, "default", locks)
    return new


def verified(prefix: Prefix, passed: bool = True) -> Prefix:
    """The environment, after its verdict was written into its mark."""
    mark = read_mark(prefix.path)
    assert mark is not None, "an installed environment has a mark"
    record_verdict(prefix.path, Level.QUICK, passed, mark.made)
    return prefix


def put_own_files(folder: Path) -> dict[str, str]:
    """What people put into an environment; gives where it must be found afterwards."""
    (folder / "results").mkdir()
    (folder / "results/loss.csv").write_text("years of work")
    (folder / "results/empty").mkdir()
    (folder / "data").symlink_to("/nowhere")
    (folder / SITE / "idna/mine.py").write_text("mine")
    (folder / SITE / "idna/core.py").write_text("two, edited\n")
    (folder / "activate").write_text("export MINE=1\n")
    (folder / "pip.conf.old").write_text("[global]\n")
    (folder / "lib64").unlink()
    (folder / "lib64").symlink_to("elsewhere")
    return {
        "results/loss.csv": "years of work",
        "data": "-> /nowhere",
        f"{SITE}/idna/mine.py": "mine",
        f"{SITE}/idna/core.py": "two, edited\n",
        "activate": "export MINE=1\n",
        "pip.conf.old": "[global]\n",
        "lib64": "-> elsewhere",
    }


def record_without_hash(folder: Path, info: str, *paths: str) -> None:
    """Adds files to a package's RECORD, as an installer does that gives them no hash."""
    with (folder / SITE / info / "RECORD").open("a") as record:
        for path in paths:
            record.write(f"\n{path},,")


def contents(folder: Path) -> dict[str, str]:
    """Every file and link below a folder with what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = path.read_text(errors="replace")
    return found
