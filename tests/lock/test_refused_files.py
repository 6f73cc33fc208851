"""An environment.yml whose channels or sections cannot be locked is refused in one message with line, cause and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from specification_texts import HEAD, RefusedKind, assert_refused, with_dependencies

NO_CHANNELS = "dependencies: [numpy]\n"
CHANNELS = [
    RefusedKind(
        "defaults",
        "channels:\n  - defaults\n" + NO_CHANNELS,
        2,
        "its terms exclude",
        "conda-forge in",
    ),
    RefusedKind(
        "defaults by its address",
        "channels:\n  - https://repo.anaconda.com/pkgs/main\n" + NO_CHANNELS,
        2,
        "its terms exclude",
        "write conda-forge in its place",
    ),
    RefusedKind(
        "no channels", NO_CHANNELS, 0, "conda would take defaults", "- conda-forge"
    ),
    RefusedKind(
        "nodefaults alone",
        "channels: [nodefaults]\n" + NO_CHANNELS,
        0,
        "names no channel",
        "add",
    ),
    RefusedKind(
        "a channel with a password",
        "channels:\n  - https://me:secret@conda.example/x\n" + NO_CHANNELS,
        2,
        "the lock would publish",
        "take a channel that needs none",
    ),
    RefusedKind(
        "a channel with a token",
        "channels: ['https://conda.anaconda.org/t/ab-12/me']\n" + NO_CHANNELS,
        1,
        "the lock would publish",
        "take a channel that needs none",
    ),
    RefusedKind(
        "main",
        "channels: [main]\n" + NO_CHANNELS,
        1,
        "its terms exclude",
        "write conda-forge",
    ),
    RefusedKind(
        "Anaconda's channel by its address",
        "channels: ['https://conda.anaconda.org/anaconda']\n" + NO_CHANNELS,
        1,
        "its terms exclude",
        "write conda-forge",
    ),
    RefusedKind(
        "a channel with a question mark",
        "channels: ['https://x.example/c?token=ab']\n" + NO_CHANNELS,
        1,
        "the lock would publish",
        "take a channel that needs none",
    ),
    RefusedKind(
        "a folder as a channel",
        "channels: ['file:///srv/channel']\n" + NO_CHANNELS,
        1,
        "is a folder of this machine",
        "serve it over HTTP",
    ),
]

SECTIONS = [
    RefusedKind(
        "variables",
        HEAD + "variables:\n  A: b\ndependencies: [numpy]\n",
        3,
        "`variables:`",
        "remove it",
    ),
    RefusedKind(
        "other platforms",
        HEAD + "platforms: [osx-64]\ndependencies: [x]\n",
        3,
        "linux-64",
        "add it",
    ),
    RefusedKind(
        "no dependencies",
        HEAD,
        0,
        "it has no `dependencies:`",
        "conda environment file",
    ),
    RefusedKind(
        "dependencies as a word",
        HEAD + "dependencies: numpy\n",
        3,
        "has to be a list",
        "`- ` line",
    ),
    RefusedKind(
        "a requirements.txt",
        "numpy>=1\nscipy\n",
        1,
        "is not a conda environment file",
        "`channels:`",
    ),
    RefusedKind(
        "no YAML",
        HEAD + "dependencies:\n\t- numpy\n",
        4,
        "is no YAML",
        "mend this line",
    ),
    RefusedKind("nothing", "", 1, "is not a conda environment file", "`dependencies:`"),
    RefusedKind(
        "a section twice",
        HEAD + "dependencies: [numpy]\ndependencies: [scipy]\n",
        4,
        "has `dependencies:` twice",
        "into one section",
    ),
    RefusedKind(
        "channels twice",
        HEAD + "channels: [nvidia]\ndependencies: [scipy]\n",
        3,
        "has `channels:` twice",
        "into one section",
    ),
    RefusedKind(
        "a misspelt section",
        HEAD + "dependancies: [numpy]\n",
        3,
        "`dependancies:` is not carried into a lock",
        "did you mean dependencies?",
    ),
    RefusedKind(
        "a list as a key",
        HEAD + "? [a]\n: b\n",
        3,
        "a list before a colon",
        "write one name",
    ),
    RefusedKind(
        "a template as an entry",
        with_dependencies("- {{ numpy }}"),
        4,
        "a list before a colon",
        "write one name",
    ),
    RefusedKind(
        "an empty mapping", with_dependencies("- {}"), 4, "is empty", "remove this line"
    ),
    RefusedKind(
        "an empty entry",
        with_dependencies("- numpy", "-"),
        5,
        "is empty",
        "remove this line",
    ),
    RefusedKind(
        "lists without end",
        HEAD + "dependencies: " + "[" * 5000,
        0,
        "lists in lists without end",
        "it needs `channels:`",
    ),
    RefusedKind(
        "an anchor in itself",
        HEAD + "dependencies: &a [*a]\n",
        3,
        "has to be one name",
        "numpy>=1.24",
    ),
    RefusedKind(
        "tabs behind a name",
        with_dependencies("- numpy\t>=1"),
        4,
        "is no YAML",
        "mend this line",
    ),
    RefusedKind(
        "two documents",
        with_dependencies("- x") + "---\n",
        5,
        "another document",
        "mend this line",
    ),
    RefusedKind(
        "a character of no text",
        with_dependencies("- num\0py"),
        4,
        "it has the character U+0000",
        "remove it",
    ),
    RefusedKind(
        "a list in a list",
        with_dependencies("- [numpy]"),
        4,
        "one name with its version",
        "numpy>=1.24",
    ),
    RefusedKind(
        "a selector of other words",
        with_dependencies("- numpy  # [linux and not osx]"),
        4,
        "the selector [linux and not osx] is not understood",
        "take one of",
    ),
    RefusedKind(
        "a mapping under pip",
        with_dependencies("- pip: {x: 1}"),
        4,
        "has to be a list",
        "`- ` line",
    ),
]
KINDS = [*CHANNELS, *SECTIONS]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.title for kind in KINDS])
def test_a_kind_that_is_refused_in_one_message(
    kind: RefusedKind, tmp_path: Path
) -> None:
    assert_refused(kind, tmp_path)
