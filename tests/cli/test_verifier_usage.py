"""Wrong usage of the verifier: one line and exit status 2, before anything is checked or written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.cli.verify import as_utf8

VERIFIER = ROOT / "scripts/verify_environment.py"


@pytest.mark.parametrize(
    "options, said",
    [
        (["--manifest", ""], "argument --manifest: its value is empty"),
        (["--report="], "argument --report: its value is empty"),
        (["--only", ","], "--only ,: names no check; --list has the names"),
        (
            ["--only", "files", "--skip", "files"],
            "--only and --skip leave no check to run",
        ),
        (
            ["--json", "a", "--manifest", "a"],
            "a: two documents cannot be written to one file",
        ),
        (["--manifest", "-"], "- is standard output for --json alone: name a file"),
        (["--levle", "quick"], "did you mean --level?"),
    ],
)
def test_wrong_usage_is_one_line_and_nothing_is_written(
    options: list[str], said: str, tmp_path: Path
) -> None:
    done = sh(
        sys.executable,
        VERIFIER,
        *options,
        check=False,
        cwd=tmp_path,
        env=clean_environ(),
    )
    assert done.returncode == 2, done.stdout
    assert said in done.stdout
    assert len(done.stdout.splitlines()) == 1, done.stdout
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_utf8_can_be_written_into_a_report() -> None:
    """It ended in a UnicodeEncodeError after the verdict, and there was no report."""
    name = b"r\xffs.txt".decode(errors="surrogateescape")
    text = as_utf8(f"beyond the lock: {name}")
    assert text.encode() == b"beyond the lock: r\\udcffs.txt"
