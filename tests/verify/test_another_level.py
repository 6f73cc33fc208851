"""A level more is a line in spec/level.py: what was said of the levels before it is not lost."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.commands import ROOT, clean_environ, sh

PROGRAM = Path(__file__).parent / "programs/use_a_deep_level.py"
LAST = '    FULL = "full"\n'


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the code does that has a level "deep" after "full"."""
    folder = tmp_path_factory.mktemp("deep")
    shutil.copytree(ROOT / "scripts/lockedenv", folder / "scripts/lockedenv")
    for name in ("conda-lock.yml", "requirements.txt", "locks"):
        (folder / name).symlink_to(ROOT / name)
    levels = folder / "scripts/lockedenv/spec/level.py"
    text = levels.read_text()
    assert text.count(LAST) == 1
    levels.write_text(text.replace(LAST, f'{LAST}    DEEP = "deep"\n'))
    prefixes = folder / "prefixes"
    prefixes.mkdir()
    environ = clean_environ(PYTHONPATH=str(folder / "scripts"))
    ran = sh(sys.executable, "-B", PROGRAM, prefixes, env=environ)
    return json.loads(ran.stdout)


def test_it_can_be_asked_for_and_the_usual_level_stays(deep: Any) -> None:
    assert deep["asked for"] == "deep"
    assert deep["usual"] == "full"


def test_it_has_the_checks_of_the_levels_before_it_and_its_own(deep: Any) -> None:
    selected = deep["selected"]
    assert selected["deep"][:-3] == selected["full"]
    assert selected["deep"][-3:] == ["deep-child", "deep-each", "deep-here"]
    assert set(selected["quick"]) < set(selected["full"])


def test_its_checks_are_named_in_the_line_of_their_group(deep: Any) -> None:
    line = "PASS  files      files is right; passed: deep-child"
    assert line in deep["full report"]
    assert line in deep["deep report"]


def test_the_verdict_names_a_level_that_is_not_the_usual_one(deep: Any) -> None:
    assert deep["full report"][-1] == "verified: no check failed"
    assert deep["deep report"][-1] == "verified: no check failed (deep level)"


def test_what_passed_at_it_passed_at_the_full_level(deep: Any) -> None:
    assert deep["deep passed"]
    assert deep["deep alone passed"]


def test_what_failed_at_it_or_at_the_full_level_later_did_not(deep: Any) -> None:
    assert not deep["deep failed"]
    assert not deep["full failed after deep"]
    assert not deep["quick passed"]
