"""Start-up files of added packages whose text is known: what each of them is.

A .pth file with code runs at every start of Python, so one of an added package is a failure. The
texts of this table do nothing that changes what is locked. They are compared as a whole: a line
more is another text.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from lockedenv.host.files import FileRefused, read_regular

TEXT_LIMIT = 100_000  # bytes of a .pth file
FINDER_LIMIT = 1_000_000  # bytes of a finder's module


@dataclass(frozen=True)
class KnownText:
    """The text of a .pth file, without white space at its ends, and what it is.

    `package`: the only one that brings it.
    """

    package: str
    text: re.Pattern[bytes]
    meaning: str


# setuptools/command/editable_wheel.py, since setuptools 64: `_EditableFinder` with the name of the
# module that `get_implementation` writes beside the .pth file.
EDITABLE = re.compile(rb"import (__editable___[A-Za-z0-9_]+_finder); ?\1\.install\(\)")
MAPPING = re.compile(rb"^MAPPING(?:: *[^=\n]*)? = (.*)$", re.M)

KNOWN_TEXTS = (
    # coverage/pth_file.py, since coverage 7.13; 7.13.0 has empty lines before it.
    KnownText(
        "coverage",
        re.compile(
            rb"import sys; exec\('(?:\\n)*"
            + re.escape(
                rb"import os\n\n"
                rb'if os.getenv("COVERAGE_PROCESS_START") '
                rb'or os.getenv("COVERAGE_PROCESS_CONFIG"):\n'
                rb" try:\n  import coverage\n except:\n  pass\n else:\n"
                rb'  coverage.process_startup(slug="pth")'
            )
            + rb"(?:\\n)*'\)"
        ),
        "coverage's start-up file, which measures where COVERAGE_PROCESS_START is set",
    ),
    # src/pytest-cov.embed and setup.py of pytest-cov 5 and 6.
    KnownText(
        "pytest-cov",
        re.compile(
            re.escape(
                rb"import os, sys;exec('if \'COV_CORE_SOURCE\' in os.environ:\n try:\n"
                rb"  from pytest_cov.embed import init\n  init()\n"
                rb" except Exception as exc:\n  sys.stderr.write(\n"
                rb'   "pytest-cov: Failed to setup subprocess coverage. "\n'
                rb'   "Environ: {0!r} "\n   "Exception: {1!r}\\n".format(\n'
                rb"    dict((k, v) for k, v in os.environ.items() "
                rb"if k.startswith(\'COV_CORE\')),\n    exc\n   )\n  )\n')"
            )
        ),
        "pytest-cov's start-up file, which measures where COV_CORE_SOURCE is set",
    ),
)


def find_known_text(place: Path, package: str) -> str:
    """What a .pth file of an added package is, by its text; empty for an unknown one."""
    text = _read(place, TEXT_LIMIT).strip()
    for known in KNOWN_TEXTS:
        if known.package == package and known.text.fullmatch(text):
            return known.meaning
    return ""


def find_editable_finder(place: Path) -> str:
    """The module that a .pth file starts, if its text is setuptools' editable one; else empty."""
    match = EDITABLE.fullmatch(_read(place, TEXT_LIMIT).strip())
    if match is None:
        return ""
    return match[1].decode("ascii")


def read_mapped_modules(finder: Path) -> list[str] | None:
    """The names of the modules that an editable finder maps; None if they cannot be read.

    The finder is not run.
    """
    found = MAPPING.findall(_read(finder, FINDER_LIMIT))
    if len(found) != 1:
        return None
    try:
        mapping = ast.literal_eval(found[0].decode("utf-8"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(mapping, dict):
        return None
    if not all(isinstance(name, str) for name in mapping):
        return None
    return list(mapping)


def _read(place: Path, limit: int) -> bytes:
    """The content of a file; empty if it cannot be read."""
    try:
        return read_regular(place, limit)
    except (OSError, FileRefused):
        return b""
