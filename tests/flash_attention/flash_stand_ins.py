"""What the tests of flash-attn share: a torch, wheels of plain Python under its name, and a reporter that keeps."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from fixtures.commands import sh
from lockedenv.host.gpus import Gpu
from lockedenv.install.flash_attention.target import Torch

PREBUILT = "flash_attn-2.8.3+cu12torch2.5cxx11abiFALSE-cp311-cp311-linux_x86_64.whl"
TORCH = Torch("2.5.1", "12.4", False, "cp311", "linux_x86_64")
RIGHT = "__version__ = '2.8.3'\nflash_attn_func = None\n"


def make_gpus(*capabilities: str, mig: bool = False) -> list[Gpu]:
    """GPUs of these compute capabilities, such as "9.0"."""
    gpus = []
    for number, capability in enumerate(capabilities):
        gpus.append(
            Gpu("NVIDIA GPU", "550.54.14", 80 << 30, capability, f"GPU-{number}", mig)
        )
    return gpus


def make_flash_attn(folder: Path, python: Path, version: str, code: str) -> Path:
    """A wheel of flash-attn's name and modules, of plain Python."""
    folder.mkdir()
    (folder / "flash_attn.py").write_text(code)
    (folder / "flash_attn_2_cuda.py").write_text("")
    (folder / "setup.py").write_text(
        "from setuptools import setup\n"
        f"setup(name='flash_attn', version='{version}',\n"
        "      py_modules=['flash_attn', 'flash_attn_2_cuda'])\n"
    )
    options = [
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder / "built",
    ]
    sh(python, "-m", "pip", "wheel", *options, folder)
    return next((folder / "built").glob("*.whl"))


def pack_as(wheel: Path, target: Path) -> Path:
    """A wheel of plain Python under the name of a compiled one; its RECORD is of what is in it."""
    with zipfile.ZipFile(wheel) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    [tags] = [name for name in contents if name.endswith(".dist-info/WHEEL")]
    before = record_row(tags, contents[tags])
    contents[tags] = contents[tags].replace(
        b"Tag: py3-none-any", b"Tag: cp311-cp311-linux_x86_64"
    )
    record = tags.replace("/WHEEL", "/RECORD")
    assert before in contents[record]
    contents[record] = contents[record].replace(
        before, record_row(tags, contents[tags])
    )
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return target


def record_row(name: str, content: bytes) -> bytes:
    """The row of RECORD for a file."""
    digest = (
        base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    )
    return f"{name},sha256={digest},{len(content)}".encode()


def make_wheel(path: Path, files: dict[str, str]) -> Path:
    """A wheel with these files, and a RECORD without hashes: enough for what only lists it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path
