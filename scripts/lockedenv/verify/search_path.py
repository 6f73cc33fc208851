"""Which libraries on LD_LIBRARY_PATH the loader takes in place of
those that the environment loads now."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lockedenv.verify.elf import Dynamic, read_dynamic, resolve_origin

# Where the loader looks after all else: ld.so(8), and Debian's multiarch folders.
SYSTEM = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)
# Below each folder that it searches, the loader looks here first for what fits the processor:
# ld.so(8).
HWCAPS = "glibc-hwcaps/*"
# Before glibc 2.37 also here, in any combination: sysdeps/x86/dl-hwcap.h.
LEGACY_HWCAPS = frozenset({"tls", "haswell", "xeon_phi", "avx512_1", "x86_64"})
# The driver's libraries come from the host, into whatever folder the container's runtime names.
DRIVER = re.compile(r"lib(cuda|cudadebugger|nvidia-.*|nvcuvid|nvoptix)\.so.*")
# What of NVIDIA's is taken was found by experiment, with versions: variables._find_other_version.
BY_EXPERIMENT = re.compile(r"lib(cu|nv|npp|nccl|cupti).*\.so.*")


@dataclass(frozen=True)
class Taken:
    """A library on LD_LIBRARY_PATH, and the library of the environment that loads it."""

    path: Path
    loaded_by: str


def find_taken(
    prefix: Path, libraries: Iterable[str], folders: Iterable[Path]
) -> list[Taken]:
    """The libraries of `folders` that the loader takes for one of
    `libraries` (paths in the prefix).

    DT_RPATH comes before LD_LIBRARY_PATH, DT_RUNPATH and the system's folders come after it. One
    that is loaded through an RPATH anywhere serves the whole process.
    """
    candidates = _list_candidates(prefix, folders)
    if not candidates:
        return []
    needed_by: dict[str, str] = {}
    protected: set[str] = set()
    for library in libraries:
        dynamic = read_dynamic(prefix / library)
        if dynamic is None:
            continue
        for name in dynamic.needed:
            if name not in candidates:
                continue
            needed_by.setdefault(name, library)
            if _is_in_rpath(prefix / library, dynamic, name):
                protected.add(name)
    found = []
    for name, library in needed_by.items():
        if name not in protected and not _is_the_systems(candidates[name]):
            found.append(Taken(candidates[name], library))
    return sorted(found, key=lambda taken: str(taken.path))


def _list_candidates(prefix: Path, folders: Iterable[Path]) -> dict[str, Path]:
    """Name -> the first library of that name, without the prefix's own and the driver's."""
    candidates: dict[str, Path] = {}
    own = prefix.resolve()
    for folder in folders:
        place = folder.resolve()
        if own in (place, *place.parents) or not place.is_dir():
            continue
        for path in [
            *sorted(folder.glob(f"{HWCAPS}/*.so*")),
            *sorted(folder.glob("*.so*")),
        ]:
            by_rule = DRIVER.fullmatch(path.name) or BY_EXPERIMENT.fullmatch(path.name)
            if not by_rule:
                candidates.setdefault(path.name, path)
    return candidates


def find_searched_folder(folder: str) -> str:
    """The folder for which the loader looks into this one: itself, or one above it."""
    searched = folder.partition("/glibc-hwcaps")[0]
    while os.path.basename(searched) in LEGACY_HWCAPS:
        searched = os.path.dirname(searched)
    return searched


def _is_in_rpath(library: Path, dynamic: Dynamic, name: str) -> bool:
    for folder in dynamic.rpath:
        origin = str(library.parent)
        place = resolve_origin(folder, origin)
        if os.path.exists(os.path.join(place, name)):
            return True
    return False


def _is_the_systems(path: Path) -> bool:
    """Whether it is the very file that would be found without LD_LIBRARY_PATH."""
    real = os.path.realpath(path)
    for folder in SYSTEM:
        if os.path.realpath(os.path.join(folder, path.name)) == real:
            return True
    return False
