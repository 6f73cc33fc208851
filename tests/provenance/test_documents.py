"""Documents from outside: whatever they are, one message names the file and what to do."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, Callable

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.provenance import documents
from lockedenv.provenance.certificate.document import certificate_from
from lockedenv.provenance.documents import DocumentError, Fields, read_document
from lockedenv.provenance.manifest import manifest_from, read_manifest
from sample_documents import (
    RELEASED,
    make_manifest,
    places_in,
    replaced,
    write_manifest,
)

VERIFY = ROOT / "scripts/verify_environment.py"
BROKEN = {
    "empty": ("", "Expecting value"),
    "half": ('{"schema_version"', "Expecting ':'"),
    "a list": ("[]", "it is not a JSON object"),
    "nested": ("[" * 200_000, "it is nested too deeply"),
    "nested objects": ('{"a":' * 200_000, "it is nested too deeply"),
    "1e400": ('{"schema_version": 1e400}', "the number 1e400 is too large"),
    "10^400": (f'{{"schema_version": 1{"0" * 400}}}', "is too large"),
    "10^5000": (f'{{"schema_version": 1{"0" * 5000}}}', "is too large"),
    "NaN": ('{"schema_version": NaN}', "NaN is not a number"),
    "Infinity": ('{"schema_version": -Infinity}', "-Infinity is not a number"),
    "a name twice": ('{"a": 1, "a": 2}', "an object has a field twice"),
    "true": ('{"schema_version": true}', "`schema_version` is not a whole number"),
    "a string": ('{"schema_version": "2"}', "`schema_version` is not a whole number"),
    "no version": ("{}", "`schema_version` is missing"),
    "another version": (
        '{"schema_version": 9}',
        "is of schema version 9, this reads 1 and 2",
    ),
    "task": ('{"schema_version": 1, "task": []}', "`task` is not an object"),
    "terminal": (
        '{"schema_version": 2, "backend": "\\u001b[2J"}',
        "`backend` is not one of",
    ),
}
# What a field may hold instead: nothing of this may end in a traceback.
OTHER_VALUES: "list[Any]" = [
    None,
    True,
    -1,
    10**17,
    1.5,
    "x",
    "",
    [],
    [1],
    [[]],
    {},
    {"x": {}},
    {"x": 1},
]


def refused(*options: Any, **settings: Any) -> str:
    """What the verifier says of options that it refuses as wrong usage."""
    environ = clean_environ()
    done = sh(sys.executable, VERIFY, *options, check=False, env=environ, **settings)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    assert "open an issue" not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_document_is_refused_with_its_name(
    name: str, tmp_path: Path
) -> None:
    content, problem = BROKEN[name]
    path = tmp_path / "bad.json"
    path.write_text(content)
    text = refused("--compare", path)
    assert f"{path}: is " in text
    assert problem in text
    assert (
        "make one with --" in text or "compare it with the clone that made it" in text
    )


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(
        DocumentError, match="bad.json: is not a session manifest or certificate"
    ):
        read_document(path)


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "/proc/self", "/nowhere/at/all.json"]
)
def test_devices_and_folders_are_not_read(path: str) -> None:
    assert f"{path}: cannot be read (" in refused("--compare", path)


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(10 * documents.LIMIT)
    with pytest.raises(DocumentError, match="it has more than 16,000,000 bytes"):
        read_document(path)


def test_a_pipe_is_read_and_waited_for_no_longer_than_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = json.dumps(make_manifest().document())
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    assert read_manifest(pipe) == read_manifest(
        write_manifest(tmp_path / "m.json", make_manifest())
    )
    writer.join()
    monkeypatch.setattr(documents, "SILENT_SECONDS", 0.1)
    with pytest.raises(
        DocumentError, match="pipe: cannot be read .the pipe did not send all"
    ):
        read_document(pipe)


def test_standard_input_is_a_document_too(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.json", make_manifest())
    environ = clean_environ()
    command = [sys.executable, VERIFY, "--compare", "-", path]
    done = sh(*command, check=False, env=environ, input=path.read_text())
    assert done.returncode == 0
    assert done.stdout.startswith(f"- and {path}: the same environment")


def small_document(kind: str) -> "tuple[dict[str, Any], Callable[[str, Fields], Any]]":
    """A right document with one row or package, and what parses it."""
    if kind == "manifest":
        return make_manifest().document(), manifest_from
    document = json.loads(RELEASED.read_text())
    first = next(iter(document["rows"]))
    return {**document, "rows": {first: document["rows"][first]}}, certificate_from


@pytest.mark.parametrize("kind", ["manifest", "certificate"])
def test_no_value_at_any_place_ends_in_anything_but_one_message(kind: str) -> None:
    """Each field is replaced by values of every other kind."""
    document, parse = small_document(kind)
    parse("good.json", Fields(document))
    refusals = 0
    for place in places_in(document):
        for value in OTHER_VALUES:
            if place:
                try:
                    parse("bad.json", Fields(replaced(document, place, value)))
                except DocumentError as error:
                    refusals += 1
                    assert str(error).startswith("bad.json: is "), (place, value)
    assert refusals > 200


@pytest.mark.parametrize("kind", ["manifest", "certificate"])
def test_a_field_that_is_missing_is_named(kind: str) -> None:
    document, parse = small_document(kind)
    for name in document:
        if name != "task":  # without it, it is no certificate
            rest = {key: value for key, value in document.items() if key != name}
            with pytest.raises(
                DocumentError, match=f"bad.json: is not a .*`{name}` is "
            ):
                parse("bad.json", Fields(rest))


def test_what_a_document_says_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Control characters and line breaks of a file would forge the verdict."""
    forged = "x\n\x1b[2Jboth: the same environment"
    then = write_manifest(
        tmp_path / "a.json", make_manifest(variables={"HF_HOME": forged})
    )
    now = write_manifest(tmp_path / "b.json", make_manifest())
    done = sh(
        sys.executable, VERIFY, "--compare", then, now, check=False, env=clean_environ()
    )
    assert "\x1b" not in done.stdout
    assert "\nboth:" not in done.stdout
    assert "x\\n\\x1b[2Jboth: the same environment" in done.stdout
