"""The note of version 2.0 about an environment that it made: PREFIX/maximalcai-installed.json.

It is read where an environment has no inventory yet, and never written. It is removed when the
inventory is written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

from lockedenv.host.files import read_json

NOTE = "maximalcai-installed.json"
SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Note:
    """`files`: path -> sha256 of what no package brought; `links`: path -> target; `wheels`: name
    -> sha256.

    `records`: name -> sha256 of a wheel's RECORD. `conda`: the names of conda packages.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    wheels: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, str] = field(default_factory=dict)
    conda: frozenset[str] = frozenset()

    @property
    def names(self) -> set[str]:
        """The packages that were locked when it was made; empty where that is not known."""
        return {*self.records, *self.conda}


def read_note(prefix: Path) -> Note:
    """The note in a prefix; an empty one where there is none.

    Fields and values of another form are left out.
    """
    document = read_json(prefix / NOTE)
    return Note(
        files=_hashes(document.get("files")),
        links=_texts(document.get("links")),
        wheels=_hashes(document.get("wheels")),
        records=_hashes(document.get("records")),
        conda=frozenset(_texts(document.get("conda"))),
    )


def _texts(value: Any) -> dict[str, str]:
    found = {}
    if isinstance(value, dict):
        for name, text in value.items():
            if isinstance(text, str):
                found[name] = text
    return found


def _hashes(value: Any) -> dict[str, str]:
    found = {}
    for name, text in _texts(value).items():
        if SHA256.fullmatch(text):
            found[name] = text
    return found
