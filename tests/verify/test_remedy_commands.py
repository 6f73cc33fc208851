"""Every command that a check's remedy names is one that our scripts take, for a prefix that is named."""

from __future__ import annotations

import re
import shlex
from types import ModuleType

import pytest
from lockedenv.cli import post_create, setup
from lockedenv.cli import verify_options as verifier
from lockedenv.verify.checklist import CHECKS
from lockedenv.verify.checks import compilers, data, flash_attention, quantization

COMMAND = re.compile(r"scripts/(\w+\.(?:sh|py))([^;,:()]*)")
PARSERS = {
    "setup_runpod_environment.sh": setup.parser,
    "post_create.sh": post_create.parser,
    "verify_environment.py": verifier.parser,
}


def find_commands(text: str) -> list[list[str]]:
    """The words of each command of ours in a text, the script's name first."""
    return [[match[1], *shlex.split(match[2])] for match in COMMAND.finditer(text)]


def refuse_bad_command(words: list[str]) -> None:
    script, *options = words
    # argparse says what it does not take, and exits.
    PARSERS[script]().parse_args(options)
    if script != "verify_environment.py":
        assert "--prefix" in options, words


@pytest.mark.parametrize("module", [compilers, data, flash_attention, quantization])
def test_the_remedies_that_a_module_has_in_common_can_be_run(
    module: ModuleType,
) -> None:
    found = []
    for name in ("REINSTALL", "REPAIR", "REBUILD", "FALLBACK"):
        found += find_commands(getattr(module, name, ""))
    assert found
    for words in found:
        refuse_bad_command(words)


def test_the_remedies_of_the_checks_can_be_run() -> None:
    found = []
    for check in CHECKS:
        found += find_commands(check.remedy)
    assert len(found) >= 3
    for words in found:
        refuse_bad_command(words)
