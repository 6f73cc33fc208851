"""What runs at every start of Python, and is of no locked package, fails by its name."""

from __future__ import annotations

import io
import subprocess

import pytest
from lockedenv.errors import printable
from lockedenv.spec.level import Level
from lockedenv.verify.checks import files
from lockedenv.verify.report import CheckReport, Scope
from small_prefix import SITE, SmallPrefix, add_package
from strays import Stray, add_files, put_file, read_text


def start_in_another_folder(small: SmallPrefix) -> None:
    folder = small.path.parent / "src"
    folder.mkdir()
    (folder / "sitecustomize.py").touch()
    add_package(small.path, "later", "1.0", {"later.pth": f"{folder}\n".encode()})


STRAYS = [
    Stray(
        "an added package's .pth file to a folder with sitecustomize",
        start_in_another_folder,
        "later.pth: is of later, and it runs at every start",
    ),
    Stray(
        "sitecustomize",
        put_file(f"{SITE}/sitecustomize.py"),
        "sitecustomize.py: no package has it, and it runs at every start",
    ),
    Stray(
        "usercustomize as a package",
        put_file(f"{SITE}/usercustomize/__init__.py"),
        "and it runs at every start",
    ),
    Stray(
        "a .pth file",
        put_file(f"{SITE}/zz.pth", b"/somewhere\n"),
        "zz.pth: no package has it",
    ),
    Stray(
        "an added package's .pth file with code",
        add_files({"later.pth": b"import os\n"}),
        "later.pth: is of later, and it runs at every start",
    ),
    Stray(
        "pyvenv.cfg beside the interpreter",
        put_file("bin/pyvenv.cfg"),
        "bin/pyvenv.cfg: no package has it",
    ),
]


@pytest.mark.parametrize("stray", STRAYS, ids=[stray.name for stray in STRAYS])
def test_what_would_be_taken_first_or_run_is_a_failure_by_name(
    stray: Stray, small: SmallPrefix
) -> None:
    assert files.startup(small.context()).verdict == "pass"
    stray.put(small)
    result = files.startup(small.context())
    assert result.verdict == "fail", result
    assert stray.text in read_text(result), result
    assert result.remedy
    assert result.action


@pytest.mark.parametrize("name", ["a .pth file"])
def test_the_remedy_of_a_stray_mends_it(name: str, small: SmallPrefix) -> None:
    [stray] = [stray for stray in STRAYS if stray.name == name]
    stray.put(small)
    subprocess.run(files.startup(small.context()).remedy, shell=True, check=True)
    assert files.startup(small.context()).verdict == "pass"


def test_a_linked_package_beside_condas_standard_library_runs_first(
    small: SmallPrefix,
) -> None:
    """Python looks there before it looks into site-packages."""
    small.become_condas()
    elsewhere = small.path.parent / "single"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").touch()
    (small.path / "lib/python3.11/single").symlink_to(elsewhere)
    result = files.startup(small.context())
    expected = "lib/python3.11/single: no package has it, and it runs at every start"
    assert expected in read_text(result)


def test_a_line_of_a_pth_file_that_is_no_path_stops_no_check(
    small: SmallPrefix,
) -> None:
    lines = b"d" * 5000 + b"\n\0\n"
    add_package(small.path, "later", "1.0", {"later.pth": lines})
    assert files.startup(small.context()).verdict == "pass"


@pytest.mark.parametrize(
    "name", ["a\nverified: no check failed.pth", "a\x1b[2J'b\\.pth", "\udcff.pth"]
)
def test_a_name_that_would_change_the_screen_is_escaped_and_the_remedy_removes_it(
    name: str, small: SmallPrefix
) -> None:
    (small.site / name).write_text("import os\n")
    context = small.context()
    result = files.startup(context)
    result.check = "startup"
    out = io.StringIO()
    report = CheckReport(out, grouped=True)
    report.begin(context, Scope(Level.QUICK, ("startup",), False))
    report.result(result)
    report.summary([result], 1.0)
    for text in (result.summary, result.remedy, *out.getvalue().splitlines()):
        assert text.isprintable(), text
    assert f"{SITE}/{printable(name)}: no package has it" in result.summary
    subprocess.run(["bash", "-c", result.remedy], check=True)
    assert files.startup(small.context()).verdict == "pass"
