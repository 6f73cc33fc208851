"""The scripts start whatever the machine's variables say to Python, and what is given without a value is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh

SETUP = ROOT / "scripts/setup_runpod_environment.sh"


@pytest.mark.parametrize(
    "variable",
    [
        "PYTHONHOME=/nowhere",
        "PYTHONIOENCODING=bogus",
        "PYTHONHASHSEED=x",
        "PYTHONMALLOC=x",
        "PYTHONUTF8=2",
        "PYTHONINSPECT=1",
        "PYTHONPLATLIBDIR=lib128",
    ],
)
@pytest.mark.parametrize("script", ["setup_runpod_environment.sh", "post_create.sh"])
def test_a_variable_of_pythons_does_not_keep_a_script_from_starting(
    script: str, variable: str
) -> None:
    """It ended in "needs python3 3.9 or newer to start; install it with: apt-get install python3"."""
    name, _, value = variable.partition("=")
    done = sh(
        ROOT / "scripts" / script, "--version", env=clean_environ(**{name: value})
    )
    assert done.stdout.startswith("maximalcai "), done.stdout


@pytest.mark.parametrize(
    "option", ["--prefix", "--cache", "--offline", "--wheel", "--environment"]
)
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_an_option_with_an_empty_value_is_wrong_usage(
    option: str, form: str, tmp_path: Path
) -> None:
    """--offline "$DIR" with an empty DIR went on as if it had not been given, over the network."""
    words = [option, ""] if form == "two words" else [f"{option}="]
    done = sh(
        SETUP, *words, "--dry-run", check=False, cwd=tmp_path, env=clean_environ()
    )
    assert done.returncode == 2
    assert f"argument {option}: its value is empty" in done.stdout


@pytest.mark.parametrize("arch", ["²", "90;rm -rf", "sm_90", "9" * 50, ",", "x"])
def test_what_is_no_compute_capability_is_wrong_usage(
    arch: str, tmp_path: Path
) -> None:
    command = [SETUP, "--backend", "pip", "--prefix", tmp_path / "env", "--dry-run"]
    done = sh(*command, "--arch", arch, check=False, env=clean_environ())
    assert done.returncode == 2
    assert "give compute capabilities, such as 90" in done.stdout


def test_an_address_of_other_bytes_than_utf_8_is_no_crash(tmp_path: Path) -> None:
    """It ended in UnicodeEncodeError and "please open an issue"."""
    command = [SETUP, "--backend", "pip", "--prefix", tmp_path / "env", "--dry-run"]
    done = sh(
        *command,
        "--mirror",
        os.fsdecode(b"http://127.0.0.1:9/\xff"),
        env=clean_environ(),
    )
    assert "this was a dry run" in done.stdout, done.stdout
    done = sh(*command, "--offline", "http://[bad", check=False, env=clean_environ())
    assert done.returncode == 1, done.stdout
    assert "^" not in done.stdout, done.stdout
