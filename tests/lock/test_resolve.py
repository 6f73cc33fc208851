"""Which file of a package is locked, and what a tool that fails is said to have said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from lockedenv.errors import Stop
from lockedenv.lock.resolve import list_wheel_files, pin, rank_wheel
from lockedenv.lock.solve import (
    _wrap_solver,
    name_packages,
    read_problems,
    read_solver_sizes,
)
from lockedenv.lock.tools import run_tool


@pytest.mark.parametrize(
    "filename, fits",
    [
        (
            "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
            True,
        ),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_34_x86_64.whl", False),
        ("numpy-2.4.6-cp312-cp312-manylinux_2_28_x86_64.whl", False),
        ("x-1-cp311-cp311-macosx_14_0_arm64.whl", False),
        ("x-1-cp38-abi3-manylinux2014_x86_64.whl", True),
        ("x-1-cp311-cp311-manylinux_2_28_aarch64.whl", False),
        ("no-wheel.whl", False),
    ],
)
def test_a_wheel_fits_python_3_11_on_glibc_2_28_or_not(
    filename: str, fits: bool
) -> None:
    assert (rank_wheel(filename, "3.11") is not None) is fits


def wheel(name: str, digit: str, size: int) -> dict[str, Any]:
    return {
        "url": f"https://index.example/{name}",
        "size": size,
        "hashes": {"sha256": digit * 64},
    }


@pytest.fixture
def entry() -> dict[str, Any]:
    wheels = [
        wheel("x-1-py3-none-any.whl", "a", 1),
        wheel("x-1-cp311-cp311-manylinux_2_17_x86_64.whl", "b", 2),
        wheel("x-1-cp311-cp311-manylinux_2_40_x86_64.whl", "c", 3),
    ]
    return {"name": "x", "version": "1", "wheels": wheels}


def test_the_best_fitting_wheel_is_locked(entry: dict[str, Any]) -> None:
    assert pin(entry, "3.11").sha256 == "b" * 64
    assert pin(entry, "3.12").sha256 == "a" * 64
    files = list_wheel_files([entry], "3.11")
    assert files["b" * 64].url.endswith("manylinux_2_17_x86_64.whl")


def test_without_a_fitting_wheel_the_source_is_locked(entry: dict[str, Any]) -> None:
    entry["wheels"] = entry["wheels"][2:]
    with pytest.raises(Stop, match="no wheel for Python 3.11"):
        pin(entry, "3.11")
    entry["sdist"] = wheel("x-1.tar.gz", "d", 4)
    assert pin(entry, "3.11").sha256 == "d" * 64
    assert list_wheel_files([entry], "3.11") == {}, "a source has no RECORD"


def test_the_sizes_are_what_the_solver_says() -> None:
    plan = (
        '{"actions": {"FETCH": [{"url": "https://a/b-1-0.conda", "size": 3},'
        ' {"url": "https://a/c-1-0.conda", "size": null}, {"url": "https://a/d-1-0.conda"}], "LINK": []}}'
    )
    sizes = read_solver_sizes(f"warning: printed before\n{plan}\n")
    assert sizes == {"https://a/b-1-0.conda": 3}


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "no JSON",
        "{",
        "[]",
        '[{"name": "a"}]',
        "{}",
        '{"actions": null}',
        '{"actions": {}}',
    ],
)
def test_a_solver_that_says_no_sizes(printed: str) -> None:
    assert read_solver_sizes(printed) == {}


@pytest.mark.parametrize(
    "printed, problems",
    [
        (
            '{"solver_problems": ["nothing provides\\n  requested x"], "success": false}',
            ["nothing provides requested x"],
        ),
        (
            'log\n{"error": "E", "message": "No candidates for x"}\n',
            ["No candidates for x"],
        ),
        ('{"actions": {}, "success": true}', []),
        ("killed", []),
        ("{}", []),
    ],
)
def test_why_a_solver_found_nothing(printed: str, problems: list[str]) -> None:
    assert read_problems(printed) == problems


def test_the_path_of_a_solver_is_taken_as_it_is(tmp_path: Path) -> None:
    """Quotes, a dollar sign, a command in it: nothing of it is expanded."""
    folder = tmp_path / 'it\'s "$(touch harm)" $HOME'
    folder.mkdir()
    solver = folder / "solver"
    solver.write_text('#!/bin/sh\necho "solved $*"\n')
    solver.chmod(0o755)
    work = tmp_path / "work $(touch harm)"
    work.mkdir()
    wrapper = _wrap_solver(work, str(solver))
    assert run_tool(str(wrapper), "a b").strip() == "solved a b"
    [kept] = work.glob("solver.??????")
    assert kept.read_text().strip() == "solved a b"
    assert not [*tmp_path.rglob("harm")]
    assert not Path("harm").exists()


def test_a_tool_that_fails_is_told_with_its_reason_and_without_its_traceback() -> None:
    program = "import json, sys; print('no candidates for scipy', file=sys.stderr); json.loads('x')"
    expected = r"(?s)-c failed \(1\):\nno candidates for scipy\n.*JSONDecodeError: Expecting value"
    with pytest.raises(Stop, match=expected) as error:
        run_tool(sys.executable, "-c", program)
    assert "decoder.py" not in str(error.value)
    with pytest.raises(
        Stop, match=r"no-such-tool x failed \(None\):\nNo such file or directory"
    ):
        run_tool("no-such-tool", "x")


def test_a_solver_that_names_no_package_is_given_the_names() -> None:
    names = ["python", "no-such-package"]
    said = name_packages("unsupported request", names)
    assert said == "unsupported request (asked for: python, no-such-package)"
    named = "nothing provides no-such-package"
    assert name_packages(named, names) == named
