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


SCRIPTS = ["setup_runpod_environment.sh", "post_create.sh", "lock.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_path_without_the_systems_programs_is_named_with_the_remedy(
    script: str, option: str
) -> None:
    """bash said it in two lines of its own, and named no remedy."""
    path = ROOT / "scripts" / script
    environ = clean_environ(PATH="/nonexistent")
    done = sh("/bin/bash", path, option, check=False, env=environ)
    assert done.returncode == 1
    [line] = done.stdout.splitlines()
    assert line.startswith(f"{script}: PATH=/nonexistent has no readlink")
    assert line.endswith("export PATH=$PATH:/usr/local/bin:/usr/bin:/bin")


# It refuses, as pyenv's shims do.
SHIM = '#!/bin/bash\ncd "$PWD" || exit 1\nPATH=$PATH_BEHIND exec python3 "$@"\n'


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_current_folder_that_was_removed_is_named_with_the_remedy(
    script: str, tmp_path: Path
) -> None:
    """It said that python3 3.9 or newer is to be installed."""
    shims = tmp_path / "shims"
    shims.mkdir()
    for name in ("python", "python3", "conda-lock"):
        (shims / name).write_text(SHIM)
        (shims / name).chmod(0o755)
    environ = clean_environ(PATH_BEHIND=os.environ["PATH"])
    environ["PATH"] = f"{shims}:{os.environ['PATH']}"
    removed = tmp_path / "removed"
    start = (
        f'mkdir "$0" && cd "$0" && rmdir "$0" && "{ROOT}/scripts/{script}" --version'
    )
    done = sh("bash", "-c", start, removed, check=False, env=environ)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    # bash's own, before the script begins.
    told = [line for line in lines if not line.startswith("shell-init:")]
    [line] = told
    assert line.startswith(f"{script}: the current folder was removed")
    assert line.endswith("go to another one: cd ~")
