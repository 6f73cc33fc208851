"""What the loader, a compiler or a shell would take in place of a locked file fails by its name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lockedenv.verify.checks import files
from lockedenv.verify.elf import read_dynamic
from lockedenv.verify.library_folders import LibraryFolders
from small_prefix import RPATH, RUNPATH, SITE, SmallPrefix, add_package, elf
from strays import Stray, assert_found, put_file, put_program


def link_libraries(small: SmallPrefix) -> None:
    (small.path.parent / "x86-64-v3").mkdir()
    (small.site / "demo/lib/glibc-hwcaps").symlink_to(small.path.parent)


def link_hooks(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "conda"
    (elsewhere / "activate.d").mkdir(parents=True)
    (small.path / "etc").mkdir()
    (small.path / "etc/conda").symlink_to(elsewhere)


def add_compiler(small: SmallPrefix) -> None:
    add_package(small.path, "later", "1.0", {"../../../bin/cc": b"#!/bin/sh\n"})
    (small.path / "bin/cc").chmod(0o755)


STRAYS = [
    Stray(
        "a library for this processor",
        put_file(f"{SITE}/demo/lib/glibc-hwcaps/x86-64-v3/libdemo.so.1"),
        "x86-64-v3/libdemo.so.1: no package has it, and the loader may take it",
    ),
    Stray(
        "a library for this processor, before glibc 2.37",
        put_file(f"{SITE}/nowhere/lib/tls/haswell/libother.so.2"),
        "haswell/libother.so.2: no package has it, and the loader may take it",
    ),
    Stray(
        "libraries for this processor, by a link",
        link_libraries,
        "demo/lib/glibc-hwcaps: no package has it, and the loader may take it",
    ),
    Stray(
        "a header",
        put_file(f"{SITE}/demo/include/x/include/types.h"),
        "demo/include/x/include/types.h: no package has it, and a compiler takes it before",
    ),
    Stray("nvidia-smi", put_program("nvidia-smi"), "bin/nvidia-smi: no package has it"),
    Stray("gcc", put_program("gcc"), "bin/gcc: no package has it, and it is started"),
    Stray("ptxas", put_program("ptxas"), "bin/ptxas: no package has it"),
    Stray("ninja", put_program("ninja"), "bin/ninja: no package has it"),
    Stray(
        "a compiler with a target in its name",
        put_program("x86_64-linux-gnu-g++-12"),
        "g++-12: no package has it, and it is started in place of",
    ),
    Stray("another python", put_program("python3.12"), "bin/python3.12: no package"),
    Stray("a program of the machine's", put_program("ls"), "bin/ls: no package has it"),
    Stray(
        "a library among locked ones",
        put_file(f"{SITE}/demo/lib/libz.so.1"),
        "libz.so.1: no package has it, and the loader may take it",
    ),
    Stray(
        "a library where a locked one looks, and no folder was",
        put_file(f"{SITE}/nowhere/lib/libother.so.2"),
        "libother.so.2: no package has it, and the loader may take it",
    ),
    Stray(
        "a hook that activate runs",
        put_file("etc/conda/activate.d/later.sh"),
        "activate.d/later.sh: no package has it, and a shell runs it",
    ),
    Stray(
        "a hook that deactivate runs",
        put_file("etc/conda/deactivate.d/later.sh"),
        "deactivate.d/later.sh: no package has it, and a shell runs it",
    ),
    Stray("a linked folder of hooks", link_hooks, "and a shell runs it"),
    Stray(
        "an added package's compiler",
        add_compiler,
        "bin/cc: is of later, and it is started in place of",
    ),
]


@pytest.mark.parametrize("stray", STRAYS, ids=[stray.name for stray in STRAYS])
def test_what_would_be_taken_first_or_run_is_a_failure_by_name(
    stray: Stray, small: SmallPrefix
) -> None:
    assert_found(files.strays, stray, small)


@pytest.mark.parametrize("name", ["gcc", "a hook that activate runs"])
def test_the_remedy_of_a_stray_mends_it(name: str, small: SmallPrefix) -> None:
    [stray] = [stray for stray in STRAYS if stray.name == name]
    stray.put(small)
    subprocess.run(files.strays(small.context()).remedy, shell=True, check=True)
    assert files.strays(small.context()).verdict == "pass"


@pytest.mark.parametrize("tag", [RPATH, RUNPATH])
def test_where_a_library_looks_is_read_from_its_dynamic_section(
    tag: int, tmp_path: Path
) -> None:
    library = tmp_path / "libloader.so"
    library.write_bytes(elf("libother.so.2", "$ORIGIN:/opt/lib", tag))
    dynamic = read_dynamic(library)
    assert dynamic
    assert dynamic.needed == ("libother.so.2",)
    folders = ("$ORIGIN", "/opt/lib")
    if tag == RPATH:
        assert dynamic.rpath == folders
        assert dynamic.runpath == ()
    else:
        assert dynamic.rpath == ()
        assert dynamic.runpath == folders
    for damaged in (b"", b"text", library.read_bytes()[:100]):
        library.write_bytes(damaged)
        found = read_dynamic(library)
        assert found is None or found.needed == ()


def test_a_folder_of_an_rpath_is_one_of_the_prefix_however_it_is_written(
    tmp_path: Path,
) -> None:
    small = SmallPrefix(tmp_path, {})
    inner = f"{small.path}/lib/inner"
    small.write(f"{SITE}/demo/_core.so", elf("libx.so", inner, RUNPATH))
    folders = LibraryFolders(small.path, {f"{SITE}/demo/_core.so"})
    assert folders.is_first("lib/inner/libx.so", linked_folder=False)
    assert not folders.is_first("lib/other/libx.so", linked_folder=False)
