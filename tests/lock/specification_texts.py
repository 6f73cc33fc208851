"""Texts of an environment.yml, and what is said of one that is refused."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from lockedenv.lock.specification import SpecificationError, read_specification

HEAD = "name: mine\nchannels: [conda-forge]\n"


@dataclass(frozen=True)
class RefusedKind:
    """An environment.yml that is refused: where, why, and with which remedy."""

    title: str
    text: str
    line: int  # 0: the message names the file alone
    cause: str
    remedy: str

    @property
    def start(self) -> str:
        """How the message begins."""
        if self.line:
            return f"environment.yml:{self.line}: "
        return "environment.yml: "


def write(folder: Path, text: str) -> Path:
    path = folder / "environment.yml"
    path.write_text(textwrap.dedent(text))
    return path


def with_dependencies(*lines: str) -> str:
    return HEAD + "dependencies:\n" + "".join(f"  {line}\n" for line in lines)


def with_pip(*lines: str) -> str:
    below_pip = [f"    {line}" for line in lines]
    return with_dependencies("- python=3.12", "- pip:", *below_pip)


def read_refusal(path: Path) -> str:
    """The message with which a file is refused, without the folder that it lies in."""
    with pytest.raises(SpecificationError) as error:
        read_specification(path)
    return str(error.value).replace(str(path), "environment.yml")


def assert_refused(kind: RefusedKind, folder: Path) -> None:
    """An environment.yml is refused in one message, with place, cause and remedy."""
    message = read_refusal(write(folder, kind.text))
    assert message.startswith(kind.start), message
    assert kind.cause in message, message
    assert kind.remedy in message, message
