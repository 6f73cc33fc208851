"""The mark of a prefix, PREFIX/maximalcai.json: who made the folder, from which locks, and its
state.

The file is validated once, when it is read. Fields that a later version adds are kept in `other`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Mapping

from lockedenv.errors import Stop
from lockedenv.host.files import FileRefused, read_regular, write_atomically
from lockedenv.spec.environment import MARK
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level

LIMIT = 4_000_000  # bytes; a mark has a few thousand


class MadeBy(Enum):
    """Who made the folder; only what the set-up made may ever be removed."""

    SETUP = "setup"
    PEOPLE = "you"


class State(Enum):
    """How far the work on a prefix has come."""

    MAKING = "making"
    INSTALLED = "installed"
    REMOVING = "removing"


@dataclass(frozen=True)
class RecordedVerdict:
    """The outcome of one whole verification; `added`: packages that were not in the lock."""

    passed: bool
    time: str = ""
    added: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """The content of PREFIX/maximalcai.json.

    `path`: where the folder was made. `id`: random, of this environment alone. `made`: the time in
    ns. `locks`: the digest of the locks that it was made from. `lacking`: what was asked for and is
    not installed, as sentences to show. `missing_packages`: the list of the user's own packages
    that could not be installed again. `clone`: the folder of the code that last worked on it.
    `cache`: that of the run that made it, where compiled kernels lie; empty for the usual one.
    `manifest`: the sha256 of the manifest that the set-up wrote, empty where it is not known.
    `pod`: what was found of the machine.
    """

    made_by: MadeBy
    state: State
    path: str = ""
    id: str = ""
    backend: BackendName | None = None
    made: int = 0
    environment: str = "default"
    locks: str = ""
    verdicts: Mapping[Level, RecordedVerdict] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    missing_packages: str = ""
    clone: str = ""
    cache: str = ""
    manifest: str = ""
    pod: tuple[Mapping[str, Any], ...] = ()
    other: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the last verification at each level passed."""
        passed = [verdict.passed for verdict in self.verdicts.values()]
        return bool(passed) and all(passed)

    @property
    def verified(self) -> bool:
        """The same, and whether everything that was asked for is installed."""
        return self.passed and not self.lacking and not self.missing_packages

    def passed_at(self, level: Level) -> RecordedVerdict | None:
        """The verdict that says that all of a level passed; None where none says so.

        It is the one of the level itself, or else of the next level that includes it and was
        verified: a level that passed has replaced those that it includes.
        """
        for other in Level:
            verdict = self.verdicts.get(other)
            if verdict is not None and other.includes(level):
                return verdict if verdict.passed else None
        return None

    def with_verdict(self, level: Level, verdict: RecordedVerdict) -> "Mark":
        """The mark after a verification; one that passed replaces those that looked at less."""
        verdicts = {**self.verdicts, level: verdict}
        if verdict.passed:
            for other in self.verdicts:
                if other is not level and level.includes(other):
                    del verdicts[other]
        return replace(self, verdicts=verdicts)


class MarkError(Stop):
    """A mark is damaged; the message names the file and the remedy."""

    def __init__(self, path: Path, problem: str) -> None:
        folder = path.parent
        super().__init__(
            f"{path} is damaged: {problem}. Nothing in {folder} will be changed; move it away and "
            f"run again: mv {folder} {folder}.damaged"
        )


def read_mark(folder: Path) -> Mark | None:
    """The mark in a folder; None if there is none. Raises MarkError for one that cannot be read."""
    path = folder / MARK
    try:
        document = json.loads(read_regular(path, LIMIT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MarkError(path, error.strerror or str(error)) from None
    except FileRefused as error:
        raise MarkError(path, str(error)) from None
    except (ValueError, RecursionError):
        raise MarkError(path, "it is not JSON") from None
    try:
        return parse_mark(document)
    except (ValueError, TypeError) as error:
        raise MarkError(path, str(error)) from None


def write_mark(folder: Path, mark: Mark) -> None:
    """Writes the mark; the file is whole at every moment."""
    write_atomically(folder / MARK, mark_text(mark))


def mark_text(mark: Mark) -> str:
    """The text of the file of a mark."""
    return json.dumps(mark_document(mark), indent=1) + "\n"


def parse_mark(document: object) -> Mark:
    """A mark from its JSON. Raises ValueError or TypeError, whose text is the problem."""
    if not isinstance(document, dict):
        raise TypeError("it is not a JSON object")
    fields = dict(document)
    made_by = MadeBy.SETUP if fields.pop("made_by", "") == "setup" else MadeBy.PEOPLE
    state = _parse_state(fields.pop("state", State.MAKING.value))
    return Mark(
        made_by=made_by,
        state=state,
        path=_take(fields, "path", str, ""),
        id=_take(fields, "id", str, ""),
        backend=_parse_backend(_take(fields, "backend", str, "")),
        made=_take(fields, "made", int, 0),
        environment=_take(fields, "environment", str, "default"),
        locks=_take(fields, "locks", str, ""),
        verdicts=_parse_verdicts(_take(fields, "verdicts", dict, {})),
        lacking=_take_texts(fields, "lacking"),
        missing_packages=_take(fields, "missing_packages", str, ""),
        clone=_take(fields, "clone", str, ""),
        cache=_take(fields, "cache", str, ""),
        manifest=_take(fields, "manifest", str, ""),
        pod=tuple(_take(fields, "pod", list, [])),
        other=fields,
    )


def mark_document(mark: Mark) -> dict[str, Any]:
    """The JSON of a mark."""
    verdicts = {}
    for level, verdict in mark.verdicts.items():
        verdicts[level.value] = {
            "passed": verdict.passed,
            "time": verdict.time,
            "added": list(verdict.added),
        }
    return {
        **mark.other,
        "made_by": mark.made_by.value,
        "path": mark.path,
        "id": mark.id,
        "backend": str(mark.backend or ""),
        "state": mark.state.value,
        "made": mark.made,
        "environment": mark.environment,
        "locks": mark.locks,
        "verdicts": verdicts,
        "lacking": list(mark.lacking),
        "missing_packages": mark.missing_packages,
        "clone": mark.clone,
        "cache": mark.cache,
        "manifest": mark.manifest,
        "pod": list(mark.pod),
    }


def _parse_state(value: object) -> State:
    for state in State:
        if state.value == value:
            return state
    raise ValueError(f"`state` is {value!r}")


def _parse_backend(text: str) -> BackendName | None:
    for backend in BackendName:
        if backend.value == text:
            return backend
    if text:
        raise ValueError(f"`backend` is {text!r}")
    return None


def _parse_verdicts(found: Mapping[str, Any]) -> dict[Level, RecordedVerdict]:
    verdicts = {}
    for level in Level:
        verdict = found.get(level.value)
        if verdict is None:
            continue
        if not isinstance(verdict, dict):
            raise TypeError(f"the verdict of the {level.value} level is not an object")
        verdicts[level] = RecordedVerdict(
            passed=verdict.get("passed") is True,
            time=str(verdict.get("time", "")),
            added=_take_texts(dict(verdict), "added"),
        )
    return verdicts


def _take(fields: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    """Removes a field and gives its value. Raises TypeError for one of another kind."""
    value = fields.pop(name, None)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"`{name}` is not of the kind {kind.__name__}")
    return value


def _take_texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    values = _take(fields, name, list, [])
    if not all(isinstance(value, str) for value in values):
        raise TypeError(f"`{name}` is not a list of texts")
    return tuple(values)
