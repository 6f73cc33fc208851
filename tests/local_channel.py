"""A small local conda channel of real packages, and a lock over it: the conda path for real where no channel answers.

The interpreter at hand becomes the python package, wheels from PyPI become noarch packages; torch, MKL and CUDA are
stand-ins with the names, versions and builds of the lock, because the quick level only reads records.
"""

from __future__ import annotations

import configparser
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Dict, List

import rattler
from rattler_build import ArchiveType, assemble_package

WHEELS = ["pip", "setuptools", "packaging", "tqdm", "numpy", "uv"]
STAND_INS = {
    ("pytorch", "pytorch", "2.5.1", "py3.11_cuda12.4_cudnn9.1.0_0"): {
        "lib/python3.11/site-packages/torch/__init__.py": "__version__ = '2.5.1'\n",
        "lib/python3.11/site-packages/torch-2.5.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.5.1\n",
        "lib/python3.11/site-packages/torch-2.5.1.dist-info/RECORD": "torch/__init__.py,,\n",
        "lib/python3.11/site-packages/torch-2.5.1.dist-info/INSTALLER": "conda\n",
        "lib/python3.11/site-packages/torch-2.5.1.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: cp311-cp311-linux_x86_64\n",
    },
    ("nvidia", "libcublas", "12.4.5.8", "0"): {
        "lib/libcublas.so.12.4.5.8": "cublas",
        "lib/libcublas.so.12": "->libcublas.so.12.4.5.8",
    },
    ("nvidia", "libcufft", "11.2.1.3", "0"): {"lib/libcufft.so.11.2.1.3": "cufft"},
    ("conda-forge", "mkl", "2022.1.0", "h84fe81f_915"): {"lib/libmkl_rt.so.2": "mkl"},
    ("conda-forge", "libblas", "3.9.0", "16_linux64_mkl"): {"lib/libblas.so.3": "->libmkl_rt.so.2"},
    ("conda-forge", "llvm-openmp", "15.0.7", "h0cdce71_0"): {
        "lib/libomp.so": "openmp",
        "lib/libiomp5.so": "->libomp.so",
    },
    ("conda-forge", "_openmp_mutex", "4.5", "7_kmp_llvm"): {"lib/libgomp.so.1": "->libomp.so"},
}


# What Debian's sysconfig says of where packages go, and what python.org's says; conda's is as the latter.
DEBIAN = {
    r"    '(deb_system|posix_local)': \{.*?\n        \},\n": "",
    ", 'posix_local', 'deb_system'": "",
    "'prefix': prefix_scheme": "'prefix': 'posix_prefix'",
}


def _python_files(target: Path) -> None:
    base = Path(sys.base_prefix)
    not_needed = "site-packages dist-packages test idlelib lib2to3 turtledemo ensurepip config-3* EXTERNALLY-MANAGED *.opt-*.pyc"
    theirs = "distutils _distutils_system_mod.py sitecustomize.py"  # setuptools has the first, the others are Debian's
    leave_out = shutil.ignore_patterns(*not_needed.split(), *theirs.split())
    shutil.copytree(
        base / "lib/python3.11", target / "lib/python3.11", ignore=leave_out, symlinks=False
    )
    module = target / "lib/python3.11/sysconfig.py"
    for old, new in DEBIAN.items():
        module.write_text(re.sub(old, new, module.read_text(), flags=re.S))
    for compiled in target.glob(
        "lib/python3.11/**/*.pyc"
    ):  # as conda's package has them, whatever the times of the sources
        content, source = (
            compiled.read_bytes(),
            compiled.parent.parent / f"{compiled.name.split('.')[0]}.py",
        )
        if source == module or not source.exists():
            compiled.unlink()
        else:  # PEP 552: a hash that is not compared
            compiled.write_bytes(content[:4] + b"\1\0\0\0" + bytes(8) + content[16:])
    for library in base.glob("lib/libpython3.11.so.*"):
        subprocess.run(
            ["strip", "--strip-debug", "-o", target / "lib" / library.name, library], check=True
        )
    (target / "bin").mkdir()
    program = target / "bin/python3.11"
    shutil.copy2(os.path.realpath(sys.executable), program)
    program.write_bytes(
        program.read_bytes().replace(b"dist-packages", b"site-packages")
    )  # site.py is frozen into Debian's
    for link in ("python", "python3"):
        (target / "bin" / link).symlink_to("python3.11")


def _assemble(
    channel: Path, subdir: str, work: Path, name: str, version: str, build: str, **options: Any
) -> None:
    assemble_package(
        name=name,
        version=version,
        target_platform=subdir,
        build_string=build,
        output_dir=channel / subdir,
        files_dir=work,
        compression_level=1,
        **options,
    )


def _add_entry_points(archive: Path, wheels: Path) -> None:
    """Gives a noarch package the entry points that its wheel has; conda makes scripts of them when it installs it."""
    parser, content = configparser.ConfigParser(), archive.read_bytes()
    parser.read(wheels)
    points = [
        f"{name} = {where}"
        for name, where in (parser.items("console_scripts") if "console_scripts" in parser else [])
    ]
    link = json.dumps(
        {"noarch": {"type": "python", "entry_points": points}, "package_metadata_version": 1}
    ).encode()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as old,
        tarfile.open(archive, "w:bz2", compresslevel=1) as new,
    ):
        for member in old:
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
        member = tarfile.TarInfo("info/link.json")
        member.size = len(link)
        new.addfile(member, io.BytesIO(link))


def build_channels(root: Path, wheels: Dict[str, Path], work: Path) -> List[Dict[str, Any]]:
    """Makes the channels pytorch, nvidia and conda-forge under `root`; gives conda-lock's entries for all they hold."""
    for channel in ("pytorch", "nvidia", "conda-forge"):
        for subdir in ("linux-64", "noarch"):
            (root / channel / subdir).mkdir(parents=True)
    _python_files(work / "python")
    version = ".".join(map(str, sys.version_info[:3]))
    _assemble(
        root / "conda-forge", "linux-64", work / "python", "python", version, "local_0_cpython"
    )
    for name, wheel in wheels.items():
        folder = work / name
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site-packages")
        scripts = next(folder.glob("site-packages/*.data/scripts"), None)
        binary = scripts is not None  # uv: a program, not a library
        if scripts:
            shutil.move(str(scripts), folder / "bin")
            for program in (folder / "bin").iterdir():
                program.chmod(0o755)
        info = next(folder.glob("site-packages/*.dist-info"))
        (info / "INSTALLER").write_text("conda\n")
        if binary or name == "numpy":
            (folder / "lib/python3.11").mkdir(parents=True)
            shutil.move(str(folder / "site-packages"), folder / "lib/python3.11/site-packages")
        version = wheel.name.split("-")[1]
        if binary or name == "numpy":
            _assemble(
                root / "conda-forge",
                "linux-64",
                folder,
                name,
                version,
                "py311_0",
                depends=["python 3.11.*"],
            )
        else:
            options: Dict[str, Any] = {
                "depends": ["python"],
                "noarch": "python",
                "archive_type": ArchiveType.TarBz2,
            }
            _assemble(root / "conda-forge", "noarch", folder, name, version, "py_0", **options)
            _add_entry_points(
                root / f"conda-forge/noarch/{name}-{version}-py_0.tar.bz2",
                info / "entry_points.txt",
            )
    for number, ((channel, name, version, build), files) in enumerate(STAND_INS.items()):
        folder = work / f"stand-in-{number}"
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if content.startswith("->"):
                (folder / path).symlink_to(content[2:])
            else:
                (folder / path).write_text(content)
        needs = ["python 3.11.*"] if name == "pytorch" else []
        _assemble(root / channel, "linux-64", folder, name, version, build, depends=needs)
    entries = []
    for channel in ("pytorch", "nvidia", "conda-forge"):
        for archive in sorted(
            [*(root / channel).glob("*/*.conda"), *(root / channel).glob("*/*.tar.bz2")]
        ):
            entries.append(entry(archive))
    return entries


def entry(archive: Path) -> Dict[str, Any]:
    """conda-lock's entry for an archive of a local channel; the address is filled in by `write_lock`."""
    index = rattler.IndexJson.from_package_archive(archive)
    content = archive.read_bytes()
    return {
        "name": index.name.normalized,
        "version": str(index.version),
        "manager": "conda",
        "platform": "linux-64",
        "dependencies": {spec.split()[0]: " ".join(spec.split()[1:]) for spec in index.depends},
        "url": "/".join(archive.parts[-3:]),
        "hash": {
            "md5": hashlib.md5(content).hexdigest(),
            "sha256": hashlib.sha256(content).hexdigest(),
        },
        "category": "main",
        "optional": False,
        "size": len(content),
    }
