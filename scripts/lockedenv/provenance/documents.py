"""Documents from outside: read once, within limits, and turned into values of known types.

A manifest or a certificate may come from anybody. It is read from a regular file or a pipe of at
most LIMIT bytes; every number in it is finite; a missing or wrong field is named.
"""

from __future__ import annotations

import json
import math
import os
import select
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, TypeVar

from lockedenv.errors import UsageError, printable

LIMIT = 16_000_000  # bytes; a certificate has 50,000, a manifest of 200 packages 60,000
DIGITS = 18  # of a whole number: more does not fit into 64 bits
PIPE_SECONDS = 60.0  # in which a pipe must have sent all
SILENT_SECONDS = 10.0  # after which a pipe that sends nothing is left
STANDARD_INPUT = "-"
REMEDY = "make one with --manifest FILE or --certificate FILE"

Parsed = TypeVar("Parsed")


class DocumentError(UsageError):
    """A document cannot be read or compared; the message names file, problem and remedy."""


class ShapeError(ValueError):
    """A document is not of its kind; the message says which field, and why."""


class _Refused(Exception):
    """What a path leads to is not read; the message says why."""


def read_document(path: Path) -> "Fields":
    """The JSON object in a file, or on standard input for "-". Raises DocumentError."""
    try:
        content = _read_bounded(path)
    except OSError as error:
        raise DocumentError(
            f"{path}: cannot be read ({error.strerror or error}); name a readable file"
        ) from None
    except _Refused as error:
        raise DocumentError(f"{path}: cannot be read ({error}); {REMEDY}") from None
    try:
        document = json.loads(
            content.decode("utf-8"),
            parse_int=_parse_whole,
            parse_float=_parse_number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_parse_object,
        )
    except RecursionError:
        raise _not_a_document(path, "it is nested too deeply") from None
    except ValueError as error:  # JSON's, UTF-8's, or one of the parsers below
        raise _not_a_document(path, str(error)) from None
    if not isinstance(document, dict):
        raise _not_a_document(path, "it is not a JSON object")
    return Fields(document)


def parse_document(
    path: str,
    kind: str,
    option: str,
    fields: "Fields",
    parse: Callable[["Fields"], Parsed],
) -> Parsed:
    """What `parse` makes of a document. `kind` and `option`: for the message of DocumentError."""
    try:
        return parse(fields)
    except ShapeError as error:
        raise DocumentError(
            f"{path}: is not a {kind} ({error}); make one with {option} FILE"
        ) from None


@dataclass(frozen=True)
class Fields:
    """A JSON object and its place in the document, such as "packages[3]"; empty for the whole.

    Each method gives the value of one field, or raises ShapeError, which names it.
    """

    values: Mapping[str, Any]
    place: str = ""

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return name in self.values

    def text(self, name: str) -> str:
        """A string."""
        value = self._find(name)
        if not isinstance(value, str):
            raise ShapeError(f"`{self._name(name)}` is not a string")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string, or None for null."""
        if self._find(name) is None:
            return None
        return self.text(name)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of these strings."""
        value = self.text(name)
        if value not in choices:
            raise ShapeError(f"`{self._name(name)}` is not one of {', '.join(choices)}")
        return value

    def whole(self, name: str, least: int, most: int) -> int:
        """A whole number within two bounds."""
        value = self._find(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ShapeError(f"`{self._name(name)}` is not a whole number")
        if not least <= value <= most:
            raise ShapeError(f"`{self._name(name)}` is not between {least} and {most}")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self._find(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ShapeError(f"`{self._name(name)}` is not a number")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        items = self._list(name)
        indexed = Fields(dict(enumerate_names(items)), self._name(name))
        return tuple(indexed.number(index) for index in indexed.values)

    def object(self, name: str) -> "Fields":
        """An object."""
        value = self._find(name)
        if not isinstance(value, dict):
            raise ShapeError(f"`{self._name(name)}` is not an object")
        return Fields(value, self._name(name))

    def objects(self, name: str) -> "list[Fields]":
        """A list of objects."""
        items = self._list(name)
        indexed = Fields(dict(enumerate_names(items)), self._name(name))
        return [indexed.object(index) for index in indexed.values]

    def texts(self, name: str) -> dict[str, str]:
        """An object whose values are all strings."""
        inner = self.object(name)
        return {key: inner.text(key) for key in inner.values}

    def shown(self, name: str) -> dict[str, str]:
        """An object of plain values, as they are shown: a string as it is, null as None."""
        inner = self.object(name)
        found = {}
        for key, value in inner.values.items():
            if isinstance(value, (dict, list)):
                raise ShapeError(f"`{inner._name(key)}` is not a plain value")
            found[key] = str(value)
        return found

    def list_of_any(self, name: str) -> tuple[Any, ...]:
        """A list whose items are not looked at."""
        return tuple(self._list(name))

    def _list(self, name: str) -> list[Any]:
        value = self._find(name)
        if not isinstance(value, list):
            raise ShapeError(f"`{self._name(name)}` is not a list")
        return value

    def _find(self, name: str) -> Any:
        if name not in self.values:
            raise ShapeError(f"`{self._name(name)}` is missing")
        return self.values[name]

    def _name(self, name: str) -> str:
        if not self.place:
            return printable(name)
        if name.startswith("["):
            return f"{self.place}{name}"
        return f"{self.place}.{printable(name)}"


def enumerate_names(items: list[Any]) -> Iterator[tuple[str, Any]]:
    """(name, item) of a list's items; a name is such as "[3]"."""
    for index, item in enumerate(items):
        yield f"[{index}]", item


def _read_bounded(path: Path) -> bytes:
    """The bytes of a regular file or a pipe. Raises OSError, and _Refused, which says why."""
    if str(path) == STANDARD_INPUT:
        return _read_descriptor(0)
    _refuse_device(
        os.stat(path).st_mode
    )  # before it is opened: to open some devices is to act
    # O_NONBLOCK: opening a pipe without a writer would wait for one.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return _read_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _refuse_device(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise _Refused("it is a folder")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise _Refused("it is not a regular file or a pipe")


def _read_descriptor(descriptor: int) -> bytes:
    _refuse_device(os.fstat(descriptor).st_mode)
    deadline = time.monotonic() + PIPE_SECONDS
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    content = bytearray()
    while True:
        patience = min(SILENT_SECONDS, deadline - time.monotonic())
        if patience <= 0 or not poll.poll(patience * 1000):
            raise _Refused("the pipe did not send all in time")
        block = os.read(descriptor, 1 << 20)
        if not block:
            return bytes(content)
        content += block
        if len(content) > LIMIT:
            raise _Refused(f"it has more than {LIMIT:,} bytes")


def _parse_whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ShapeError(f"the number {text[:DIGITS]}... is too large")
    return int(text)


def _parse_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ShapeError(f"the number {text[:DIGITS]} is too large")
    return number


def _refuse_constant(text: str) -> float:
    raise ShapeError(f"{text} is not a number")


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. A name that comes twice is refused: readers differ in which of both they take."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ShapeError("an object has a field twice")
    return values


def _not_a_document(path: Path, problem: str) -> DocumentError:
    return DocumentError(
        f"{path}: is not a session manifest or certificate ({printable(problem)}); {REMEDY}"
    )
