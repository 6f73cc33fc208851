"""Files that people or programs put beside the locked ones, and how each is put there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from lockedenv.verify.checks import Check, Context, Result
from small_prefix import SmallPrefix, add_package

Put = Callable[[SmallPrefix], object]


@dataclass(frozen=True)
class Stray:
    """What `put` puts into a prefix; a check that passed then fails, and its report has the text."""

    name: str
    put: Put
    text: str


def put_file(path: str, content: bytes = b"") -> Put:
    """Puts a file there, in place of what is there."""
    return lambda small: small.write(path, content)


def put_program(name: str) -> Put:
    """Puts a program into `bin`."""
    return lambda small: small.write(f"bin/{name}", b"#!/bin/sh\n", 0o755)


def add_files(files: dict[str, bytes]) -> Put:
    """Adds a package with these files, as an installer does."""
    return lambda small: add_package(small.path, "later", "1.0", files)


def read_text(result: Result) -> str:
    """What a report prints of a result, without its remedy."""
    return "\n".join([result.summary, *result.details])


def assert_found(check: Check[Context], stray: Stray, small: SmallPrefix) -> None:
    """A check passes, and fails by name with a remedy once the stray is there."""
    assert check(small.context()).verdict == "pass", "before the stray"
    stray.put(small)
    result = check(small.context())
    assert result.verdict == "fail", result
    assert stray.text in read_text(result), result
    assert result.remedy, result
    assert result.action, result
