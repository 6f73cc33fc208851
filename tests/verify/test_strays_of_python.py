"""What Python would take or import in place of a locked file, or beside one, fails by its name."""

from __future__ import annotations

import pytest
from lockedenv.verify.checks import files
from small_prefix import SITE, SmallPrefix
from strays import Put, Stray, add_files, assert_found, put_file


def link_package(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "single"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").touch()
    (small.site / "single").symlink_to(elsewhere)


def link_beside_programs(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "json"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").touch()
    (small.path / "bin/json").symlink_to(elsewhere)


def link_back_end(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "other"
    elsewhere.mkdir()
    (small.site / "triton/backends").mkdir(parents=True)
    (small.site / "triton/backends/other").symlink_to(elsewhere)


def link_record(name: str) -> Put:
    """Puts a link to the record of a package that torch imports, under this name."""

    def put(small: SmallPrefix) -> None:
        elsewhere = small.path.parent / "record"
        elsewhere.mkdir()
        metadata = "Metadata-Version: 2.1\nName: other\nVersion: 1.0\n"
        (elsewhere / "METADATA").write_text(metadata)
        plug_in = "[torch.backends]\nother = other:load\n"
        (elsewhere / "entry_points.txt").write_text(plug_in)
        (small.site / name).symlink_to(elsewhere)

    return put


def link_bytecode(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "bytecode"
    elsewhere.mkdir()
    (elsewhere / "core.cpython-311.pyc").touch()
    (small.site / "demo/__pycache__").symlink_to(elsewhere)


PLUG_IN = b"[torch.backends]\nlater = later:load\n"
STRAYS = [
    Stray(
        "an extension module beside __init__.py",
        put_file(f"{SITE}/demo/__init__.cpython-311-x86_64-linux-gnu.so"),
        f"and Python takes it in place of {SITE}/demo/__init__.py",
    ),
    Stray(
        "an extension module beside a module",
        put_file(f"{SITE}/single.abi3.so"),
        f"single.abi3.so: no package has it, and Python takes it in place of {SITE}/single.py",
    ),
    Stray(
        "a package before a module",
        put_file(f"{SITE}/demo/core/__init__.py"),
        f"and Python takes it in place of {SITE}/demo/core.py",
    ),
    Stray(
        "a linked package before a module",
        link_package,
        f"and Python takes it in place of {SITE}/single.py",
    ),
    Stray(
        "a module before a package without __init__",
        put_file(f"{SITE}/ns.py"),
        f"and Python takes it in place of {SITE}/ns/",
    ),
    Stray(
        "an __init__ in a package without one",
        put_file(f"{SITE}/ns/__init__.py"),
        f"and Python takes it in place of {SITE}/ns/",
    ),
    Stray(
        "a module beside the programs",
        put_file("bin/json.py"),
        "and Python takes it in place of the standard library's json",
    ),
    Stray(
        "a locked package's name beside the programs",
        put_file("bin/demo.py"),
        f"and Python takes it in place of {SITE}/demo/__init__.py",
    ),
    Stray(
        "a linked package beside the programs",
        link_beside_programs,
        "bin/json: no package has it, and Python takes it in place of the standard library's json",
    ),
    Stray(
        "a back end of triton's",
        put_file(f"{SITE}/triton/backends/other/compiler.py"),
        "other/compiler.py: no package has it, and a locked package imports whatever lies in this",
    ),
    Stray(
        "a linked back end of triton's",
        link_back_end,
        "triton/backends/other: no package has it, and a locked package imports whatever lies",
    ),
    Stray(
        "an added package's back end of torch.compile",
        add_files({"torch/_dynamo/backends/later.py": b""}),
        "torch/_dynamo/backends/later.py: is of later, and a locked package imports whatever lies",
    ),
    Stray(
        "an added package that torch imports",
        add_files({"later-1.0.dist-info/entry_points.txt": PLUG_IN}),
        "entry_points.txt: is of later, and what it names runs whenever a locked package is",
    ),
    Stray(
        "a locked package's new entry points",
        put_file(
            f"{SITE}/demo-1.0.dist-info/entry_points.txt",
            b" [bitsandbytes.backends] \na = b:c\n",
        ),
        "demo-1.0.dist-info/entry_points.txt: no package has it, and what it names runs",
    ),
    Stray(
        "a linked record of a package that torch imports",
        link_record("other-1.0.dist-info"),
        "other-1.0.dist-info: no package has it, and what it names runs whenever",
    ),
    Stray(
        "a record in capitals of a package that torch imports",
        link_record("other-1.0.DIST-INFO"),
        "other-1.0.DIST-INFO: no package has it, and what it names runs whenever",
    ),
    Stray(
        "a linked folder of bytecode",
        link_bytecode,
        "demo/__pycache__: no package has it, and Python takes bytecode from where it leads",
    ),
    Stray(
        "an added package's module before a locked one",
        add_files({"single/__init__.py": b""}),
        f"is of later, and Python takes it in place of {SITE}/single.py",
    ),
]


@pytest.mark.parametrize("stray", STRAYS, ids=[stray.name for stray in STRAYS])
def test_what_would_be_taken_first_or_run_is_a_failure_by_name(
    stray: Stray, small: SmallPrefix
) -> None:
    assert_found(files.strays, stray, small)


def test_a_linked_record_that_names_no_plug_in_is_listed(small: SmallPrefix) -> None:
    """An own checkout's, linked by hand: without entry points, or with others."""
    elsewhere = small.path.parent / "record"
    elsewhere.mkdir()
    (small.site / "mine-1.0.dist-info").symlink_to(elsewhere)
    assert files.strays(small.context()).verdict == "pass"
    (elsewhere / "entry_points.txt").write_text("[console_scripts]\nmine = mine:main\n")
    assert files.strays(small.context()).verdict == "pass"


def test_a_module_inside_a_locked_package_is_a_warning(small: SmallPrefix) -> None:
    small.write(f"{SITE}/demo/new.py")
    result = files.strays(small.context())
    assert result.verdict == "warn"
    assert "demo/new.py: no package has it, beside locked files" in result.summary
