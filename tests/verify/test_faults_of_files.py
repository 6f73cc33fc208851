"""Files that are not as they were installed: each fault is seen and named."""

from __future__ import annotations

import shutil

import pytest
from breaking import (
    FILES,
    SITE,
    STRAYS,
    Fault,
    assert_seen,
    both,
    flip,
    link,
    owned_by,
    write,
)
from fixtures.conda_environment import CondaEnvironment

FAULTS = [
    Fault(
        "file truncated",
        "files",
        "tqdm/std.py: changed since it was installed",
        write(f"{SITE}/tqdm/std.py", lambda c: c[:50]),
        {},
        FILES,
    ),
    Fault(
        "file emptied",
        "files",
        "tqdm/std.py: empty",
        write(f"{SITE}/tqdm/std.py", lambda c: b""),
        {},
        FILES,
    ),
    Fault(
        "one byte flipped in a conda file",
        "files",
        "tqdm/std.py: changed",
        write(f"{SITE}/tqdm/std.py", flip),
        {},
        FILES,
    ),
    Fault(
        "one byte flipped in a wheel's file",
        "files",
        "idna/core.py: changed",
        write(f"{SITE}/idna/core.py", flip),
        {},
        FILES,
    ),
    Fault(
        "an added package's file in a locked one's place",
        "files",
        "idna/core.py: changed since it was installed",
        both(write(f"{SITE}/idna/core.py", flip), owned_by("zzz", "idna/core.py")),
        {},
        FILES,
    ),
    Fault(
        "an added package's file in a conda one's place",
        "files",
        "tqdm/std.py: changed since it was installed",
        both(write(f"{SITE}/tqdm/std.py", flip), owned_by("aaa", "tqdm/std.py")),
        {},
        FILES,
    ),
    Fault(
        "an added package's module before a locked one",
        "strays",
        "idna/core/__init__.py: is of zzz, and Python takes it in place of lib/python3.11/site-packages/idna/core.py",
        both(
            write(f"{SITE}/idna/core/__init__.py", lambda c: b""),
            owned_by("zzz", "idna/core/__init__.py"),
        ),
        {},
        STRAYS,
    ),
    Fault(
        "a library of no package before a locked module",
        "strays",
        "idna/codec.abi3.so: no package has it, and Python takes it in place of",
        write(f"{SITE}/idna/codec.abi3.so", lambda c: b""),
        {},
        STRAYS,
    ),
    Fault(
        "shared library deleted",
        "files",
        "lib/libcublas.so.12.4.5.8: missing",
        lambda env: (env.prefix / "lib/libcublas.so.12.4.5.8").unlink(),
        {},
        FILES,
    ),
    Fault(
        "a link redirected",
        "files",
        "lib/libcublas.so.12: links to libcufft.so.11.2.1.3 now",
        link("lib/libcublas.so.12", "libcufft.so.11.2.1.3"),
        {},
        FILES,
    ),
    Fault(
        "a link deleted",
        "files",
        "lib/libcublas.so.12: missing",
        lambda env: (env.prefix / "lib/libcublas.so.12").unlink(),
        {},
        FILES,
    ),
    Fault(
        "a link replaced by a file",
        "files",
        "lib/libcublas.so.12: no longer a link",
        write("lib/libcublas.so.12", lambda c: c),
        {},
        FILES,
    ),
    Fault(
        "an entry point edited",
        "files",
        "bin/pip: changed since it was installed",
        write("bin/pip", flip),
        {},
        FILES,
    ),
    Fault(
        "an entry point deleted",
        "files",
        "bin/pip: missing",
        lambda env: (env.prefix / "bin/pip").unlink(),
        {},
        FILES,
    ),
    Fault(
        "sitecustomize",
        "startup",
        "sitecustomize.py: no package has it, and it runs at every start",
        write(f"{SITE}/sitecustomize.py", lambda _: b"pass"),
    ),
    Fault(
        "usercustomize beside the standard library",
        "startup",
        "lib/python3.11/usercustomize.py: no package",
        write("lib/python3.11/usercustomize.py", lambda _: b"pass"),
    ),
    Fault(
        "a .pth file",
        "startup",
        "zz.pth: no package has it",
        write(f"{SITE}/zz.pth", lambda _: b"import os"),
    ),
    Fault(
        "a .pth file edited",
        "startup",
        "changed since it was installed (its size), and may run at every start",
        lambda env: next((env.prefix / SITE).glob("*.pth")).write_text("import os"),
    ),
    Fault(
        "a zip before the standard library",
        "startup",
        "lib/python311.zip: no package has it",
        write("lib/python311.zip", lambda _: b"PK"),
    ),
    Fault(
        "a module in the standard library's folder",
        "startup",
        "lib/python3.11/tqdm.py: no package",
        write("lib/python3.11/tqdm.py", lambda _: b"pass"),
    ),
    Fault(
        "sitecustomize among the built extensions",
        "startup",
        "lib-dynload/sitecustomize.py: no package",
        write("lib/python3.11/lib-dynload/sitecustomize.py", lambda _: b"pass"),
    ),
    Fault(
        "pyvenv.cfg",
        "startup",
        "pyvenv.cfg: no package has it",
        write("pyvenv.cfg", lambda _: b"home = /elsewhere\n"),
    ),
    Fault(
        "a package's folder removed",
        "present",
        "tqdm/__init__.py: missing",
        lambda env: shutil.rmtree(env.prefix / SITE / "tqdm"),
    ),
    Fault(
        "the inventory deleted, and a file edited",
        "present",
        "idna/core.py: changed since it was installed",
        both(
            lambda env: (env.prefix / "maximalcai-inventory.json").unlink(),
            write(f"{SITE}/idna/core.py", flip),
        ),
    ),
    Fault(
        "a program that nobody may start",
        "present",
        "bin/pip: no program any more",
        lambda env: (env.prefix / "bin/pip").chmod(0o644),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_seen_and_named_by_its_check_alone(
    fault: Fault, broken: CondaEnvironment
) -> None:
    assert_seen(fault, broken)
