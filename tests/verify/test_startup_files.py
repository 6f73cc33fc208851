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
from strays import Stray, add_files, assert_found, put_file, read_text


def start_in_another_folder(small: SmallPrefix) -> None:
    folder = small.path.parent / "src"
    folder.mkdir()
    (folder / "sitecustomize.py").touch()
    add_package(small.path, "later", "1.0", {"later.pth": f"{folder}\n".encode()})


EDITABLE = "__editable__.later-1.0.pth"
FINDER = "__editable___later_1_0_finder"
EDITABLE_LINE = f"import {FINDER}; {FINDER}.install()".encode()
COVERAGE_CODE = (
    rb'import os\n\nif os.getenv("COVERAGE_PROCESS_START") or '
    rb'os.getenv("COVERAGE_PROCESS_CONFIG"):\n try:\n  import coverage\n except:\n  pass\n'
    rb' else:\n  coverage.process_startup(slug="pth")'
)
COVERAGE_7_13_0 = rb"import sys; exec('\n\n\n\n\n\n" + COVERAGE_CODE + rb"\n')" + b"\n"
COVERAGE_7_17_5 = b"import sys; exec('" + COVERAGE_CODE + b"')\n"
PYTEST_COV_6 = (
    rb"import os, sys;exec('if \'COV_CORE_SOURCE\' in os.environ:\n try:\n"
    rb"  from pytest_cov.embed import init\n  init()\n except Exception as exc:\n"
    rb'  sys.stderr.write(\n   "pytest-cov: Failed to setup subprocess coverage. "\n'
    rb'   "Environ: {0!r} "\n   "Exception: {1!r}\\n".format(\n'
    rb"    dict((k, v) for k, v in os.environ.items() if k.startswith(\'COV_CORE\')),\n"
    rb"    exc\n   )\n  )\n')"
)


def editable(mapping: str, line: bytes = EDITABLE_LINE) -> dict[str, bytes]:
    """What setuptools puts into site-packages for an editable install with its import finder."""
    text = (
        "from __future__ import annotations\nimport sys\n"
        f"MAPPING: dict[str, str] = {mapping}\n"
        "NAMESPACES: dict[str, list[str]] = {}\nraise SystemExit\n"
    )
    return {EDITABLE: line, f"{FINDER}.py": text.encode()}


STRAYS = [
    Stray(
        "an editable install that maps a locked package",
        add_files(editable("{'mine': '/src/mine', 'demo': '/src/demo'}")),
        f"{EDITABLE}: is of later, and its editable install gives Python its own module "
        f"for the locked {SITE}/demo/__init__.py",
    ),
    Stray(
        "an editable install that maps a module of a locked package",
        add_files(editable("{'demo.core': '/src/core'}")),
        f"for the locked {SITE}/demo/core.py",
    ),
    Stray(
        "an editable install that maps a locked namespace",
        add_files(editable("{'ns': '/src/ns'}")),
        f"for the locked {SITE}/ns/",
    ),
    Stray(
        "an editable install that maps sitecustomize",
        add_files(editable("{'sitecustomize': '/src/sitecustomize'}")),
        f"{EDITABLE}: is of later, and it runs at every start",
    ),
    Stray(
        "an editable install with a line more",
        add_files(editable("{'mine': '/src'}", EDITABLE_LINE + b"\nimport os")),
        f"{EDITABLE}: is of later, and it runs at every start",
    ),
    Stray(
        "an editable install whose mapping is no text",
        add_files(editable("dict(mine=open('/src'))")),
        f"{EDITABLE}: is of later, and it runs at every start",
    ),
    Stray(
        "an editable install whose mapping is too deep",
        add_files(editable("{" + "(" * 50_000)),
        f"{EDITABLE}: is of later, and it runs at every start",
    ),
    Stray(
        "an editable install without its finder",
        add_files({EDITABLE: EDITABLE_LINE}),
        f"{EDITABLE}: is of later, and it runs at every start",
    ),
    Stray(
        "coverage's text in another package",
        add_files({"a1_coverage.pth": COVERAGE_7_17_5}),
        "a1_coverage.pth: is of later, and it runs at every start",
    ),
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
        "an added package's code behind a carriage return",
        add_files({"later.pth": b"# x\rimport os\r"}),
        "later.pth: is of later, and it runs at every start of Python",
    ),
    Stray(
        "an added package's code behind a byte order mark",
        add_files({"later.pth": b"\xef\xbb\xbfimport os\n"}),
        "later.pth: is of later, and it runs at every start of Python",
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
    assert_found(files.startup, stray, small)


@pytest.mark.parametrize("name", ["a .pth file"])
def test_the_remedy_of_a_stray_mends_it(name: str, small: SmallPrefix) -> None:
    [stray] = [stray for stray in STRAYS if stray.name == name]
    stray.put(small)
    subprocess.run(files.startup(small.context()).remedy, shell=True, check=True)
    assert files.startup(small.context()).verdict == "pass"


def test_an_editable_install_of_a_project_of_yours_is_named_and_no_failure(
    small: SmallPrefix,
) -> None:
    add_package(small.path, "later", "1.0", editable("{'mine': '/src/mine'}"))
    result = files.startup(small.context())
    assert result.verdict == "warn", result
    assert result.summary == f"{SITE}/{EDITABLE}: editable install of later"
    assert result.remedy.startswith("if you did not install it: ")
    assert result.remedy.endswith(" uninstall -y later")
    assert files.strays(small.context()).verdict == "pass"


def test_an_editable_finder_is_read_and_never_run(small: SmallPrefix) -> None:
    ran = small.path.parent / "ran"
    mapping = f"{{'mine': open({str(ran)!r}, 'w')}}"
    add_package(small.path, "later", "1.0", editable(mapping))
    assert files.startup(small.context()).verdict == "fail"
    assert not ran.exists()


def test_an_editable_finder_that_is_of_no_package_fails(small: SmallPrefix) -> None:
    for name, content in editable("{'mine': '/src/mine'}").items():
        (small.site / name).write_bytes(content)
    result = files.startup(small.context())
    assert result.verdict == "fail"
    assert f"{EDITABLE}: no package has it" in read_text(result)


@pytest.mark.parametrize(
    "name, version, text, said",
    [
        ("coverage", "7.13.0", COVERAGE_7_13_0, "coverage's start-up file"),
        ("coverage", "7.17.5", COVERAGE_7_17_5, "coverage's start-up file"),
        ("pytest-cov", "6.3.0", PYTEST_COV_6, "pytest-cov's start-up file"),
    ],
)
def test_a_start_up_file_with_a_known_text_is_no_failure_in_any_version(
    name: str, version: str, text: bytes, said: str, small: SmallPrefix
) -> None:
    add_package(small.path, name, version, {"a1.pth": text})
    result = files.startup(small.context())
    assert result.verdict == "warn", result
    assert f"{SITE}/a1.pth: {said}" in result.summary
    (small.site / "a1.pth").write_bytes(text + b"import os\n")
    assert files.startup(small.context()).verdict == "fail"


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
