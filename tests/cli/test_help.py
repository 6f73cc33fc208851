"""--help has the options that people use; --help-all has all of them, in groups."""

from __future__ import annotations

import re

import pytest
from lockedenv.cli import post_create, setup
from lockedenv.cli.options import OptionGroup
from lockedenv.cli.parser import Parser


def list_options(text: str) -> list[str]:
    """The options that a help describes, in its order."""
    return re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.M)


def read_help_all(parser: Parser, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--help-all"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_of_the_setup_lists_ten_options() -> None:
    assert list_options(setup.parser().format_help()) == [
        "--environment",
        "--prefix",
        "--offline",
        "--verbose",
        "--help-all",
        "--force",
        "--check-pod",
        "--download-only",
        "--uninstall",
        "--dry-run",
    ]


@pytest.mark.parametrize("make", [setup.parser, post_create.parser])
def test_help_all_lists_every_option_in_a_group(
    make: type[Parser], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = make()
    text = read_help_all(parser, capsys)
    for action in parser._actions:
        if "--help" not in action.option_strings:
            assert action.option_strings[-1] in list_options(text)
    for group in (
        OptionGroup.PLACES,
        OptionGroup.FLASH,
        OptionGroup.VERIFYING,
        OptionGroup.OUTPUT,
    ):
        assert f"\n{group.value}:\n" in text
