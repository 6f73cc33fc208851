"""What the numerical checks say of right and wrong kernels, in the real environments on the CPU.

tests/in_environment runs with the environment's own Python, which has torch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh

TESTS = ROOT / "tests/in_environment"
# What only the libraries of `current` can break; the other tests decide by the same code in both.
OF_CURRENT = (
    "documents or fork or bit_for_bit or see_ or flash_attention_4 or triton "
    "or system_cuda"
)


def run_tests(prefix: Path, *options: str) -> None:
    """Runs the tests of the checks in an environment, apart from the settings of this run."""
    command = [prefix / "bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--rootdir", TESTS, "--confcutdir", TESTS, "-c", "/dev/null"]
    environ = clean_environ(PYTHONPATH=str(ROOT / "scripts"))
    done = sh(*command, *options, TESTS, check=False, env=environ)
    assert done.returncode == 0, done.stdout


def test_the_checks_logic_on_the_cpu(pip_environment: Path) -> None:
    run_tests(pip_environment)


def test_flash_attention_4_on_the_cpu(current_environment: Path) -> None:
    run_tests(current_environment, "-k", "flash_attention_4")


@pytest.mark.long
def test_the_checks_logic_with_the_libraries_of_current(
    current_environment: Path,
) -> None:
    run_tests(current_environment, "-k", OF_CURRENT)
