"""The mark of a prefix: validated once, and what is damaged is named with its remedy."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lockedenv.errors import Stop
from lockedenv.prefix.mark import (
    LIMIT,
    MadeBy,
    Mark,
    MarkError,
    RecordedVerdict,
    State,
    read_mark,
    write_mark,
)
from lockedenv.spec.environment import MARK
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level


def test_a_mark_comes_back_as_it_was_written(tmp_path: Path) -> None:
    mark = Mark(
        made_by=MadeBy.SETUP,
        state=State.INSTALLED,
        path="/env",
        id="a1",
        backend=BackendName.PIP,
        made=7,
        locks="d",
        cache="/cache",
        verdicts={Level.QUICK: RecordedVerdict(True, "now", ("six==1.16.0",))},
        lacking=("flash-attn is missing",),
        missing_packages="/env.txt",
        pod=({"check": "pod-host"},),
        other={"of_a_later_version": [1]},
    )
    write_mark(tmp_path, mark)
    assert read_mark(tmp_path) == mark


def test_a_folder_without_a_mark_and_a_folder_that_is_not_there_have_none(
    tmp_path: Path,
) -> None:
    assert read_mark(tmp_path) is None
    assert read_mark(tmp_path / "gone") is None


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "it is not JSON"),
        ("[]", "it is not a JSON object"),
        (
            '{"state": "installed", "verdicts": []}',
            "`verdicts` is not of the kind dict",
        ),
        ('{"state": "finished"}', "`state` is 'finished'"),
        ('{"state": "installed", "lacking": [1]}', "`lacking` is not a list of texts"),
        ('{"made": 1' + "0" * 10_000 + "}", "it is not JSON"),
        ('{"made": true}', "`made` is not of the kind int"),
        ("[" * 100_000, "it is not JSON"),
        ('{"verdicts": {"full": 1}}', "the verdict of the full level is not an object"),
    ],
    ids=lambda value: value[:30],
)
def test_a_damaged_mark_names_file_and_remedy(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / MARK).write_text(text)
    with pytest.raises(MarkError) as caught:
        read_mark(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / MARK} is damaged: {said}" in message
    assert f"mv {tmp_path} {tmp_path}.damaged" in message
    assert isinstance(caught.value, Stop)


def test_a_pipe_a_device_and_an_endless_mark_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / MARK
    os.mkfifo(path)
    with pytest.raises(MarkError, match="it is not a regular file"):
        read_mark(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(MarkError, match="it is not a regular file"):
        read_mark(tmp_path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(MarkError, match="it has more than 4,000,000 bytes"):
        read_mark(tmp_path)


def test_a_mark_of_version_2_0_is_read(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "made_by": "setup",
        "path": "/env",
        "backend": "pip",
        "state": "installed",
        "made": 1795867150701961533,
        "activate": "10df",
        "verdicts": {"quick": {"passed": True, "time": "t", "added": []}},
        "lacking": [],
    }
    (tmp_path / MARK).write_text(json.dumps(document))
    mark = read_mark(tmp_path)
    assert mark is not None
    assert mark.verified
    assert mark.id == ""
    assert mark.other == {"activate": "10df"}


def test_a_passed_full_level_ends_an_earlier_failure_of_the_quick_one() -> None:
    """The old failure outlived it, so that the old environment never came back."""
    mark = Mark(MadeBy.SETUP, State.INSTALLED)
    failed = mark.with_verdict(Level.QUICK, RecordedVerdict(False))
    assert not failed.verified
    assert failed.with_verdict(Level.FULL, RecordedVerdict(True)).verified


def test_a_passed_quick_level_does_not_end_a_failure_of_the_full_one() -> None:
    mark = Mark(MadeBy.SETUP, State.INSTALLED).with_verdict(
        Level.FULL, RecordedVerdict(False)
    )
    assert not mark.with_verdict(Level.QUICK, RecordedVerdict(True)).verified


def test_what_passed_at_a_level_is_what_passed_at_it_or_at_one_that_includes_it() -> (
    None
):
    mark = Mark(MadeBy.SETUP, State.INSTALLED)
    good = RecordedVerdict(True, "now", ("six==1.16.0",))
    bad = RecordedVerdict(False)
    assert mark.passed_at(Level.QUICK) is None
    full = mark.with_verdict(Level.FULL, good)
    assert full.passed_at(Level.FULL) == good
    assert full.passed_at(Level.QUICK) == good
    assert full.with_verdict(Level.FULL, bad).passed_at(Level.QUICK) is None
    quick = mark.with_verdict(Level.QUICK, good)
    assert quick.passed_at(Level.FULL) is None
    failed_later = full.with_verdict(Level.QUICK, bad)
    assert failed_later.passed_at(Level.QUICK) is None
    assert failed_later.passed_at(Level.FULL) == good


def test_what_lacks_something_is_not_verified() -> None:
    mark = Mark(MadeBy.SETUP, State.INSTALLED).with_verdict(
        Level.FULL, RecordedVerdict(True)
    )
    assert mark.verified
    assert not replace(mark, lacking=("flash-attn",)).verified
    assert not replace(mark, missing_packages="/list.txt").verified
    assert not replace(mark, verdicts={}).verified
