"""The options of the test command, and where the fixtures are."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Generator, Iterator

import pytest

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent / "scripts"), str(TESTS)]

# They assert too, and import each other: pytest rewrites them all, whichever comes first.
pytest.register_assert_rewrite("fixtures")
pytest_plugins = [
    "fixtures.channel",
    "fixtures.conda_environment",
    "fixtures.folders",
    "fixtures.machine",
    "fixtures.real_environments",
]

# A test that uses one of these works on an installed environment; tests/run.sh --fast leaves it out.
INSTALLED = {
    "broken",
    "channel",
    "conda_environment",
    "current_environment",
    "machine",
    "pip_environment",
    "real_prefix",
}
# The longest files begin first, so that all workers end together (tests/run.sh: --no-loadscope-reorder).
LONGEST = (
    "test_checks_logic",
    "test_pip_backend",
    "test_conda_faults",
    "test_flash_cuda",
    "test_ranks_under_torchrun",
    "test_conda_backend",
    "test_added",
    "test_flash_commands",
    "test_reinstalled",
    "test_rebuild",
    "test_remedies",
    "test_mirror",
    "test_places",
    "test_lost_files",
    "test_killed",
)
collect_ignore = [
    "in_environment"
]  # run by test_checks_logic.py with the environment's own python


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        help="the long proofs too: many kills, a whole flash-attn build",
    )
    parser.addoption(
        "--no-skips",
        action="store_true",
        help="a test that cannot run on this machine has failed",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        reason = report.longrepr[2]  # type: ignore[index]
        report.outcome = "failed"
        report.longrepr = f"{reason}, and --no-skips was given"
    return report


def place_in_order(item: pytest.Item) -> int:
    if item.path.stem in LONGEST:
        return LONGEST.index(item.path.stem)
    return len(LONGEST)


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    items.sort(key=place_in_order)
    for item in items:
        if INSTALLED & set(getattr(item, "fixturenames", ())):
            item.add_marker("installed")
    if config.getoption("--long"):
        return
    left_out = [item for item in items if "long" in item.keywords]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if "long" not in item.keywords]


@pytest.fixture(autouse=True)
def variables_as_before() -> Iterator[None]:
    """The tests of a worker share its variables: the test that leaves one behind fails, not a later one."""

    def variables() -> dict[str, str]:
        return {
            name: value
            for name, value in os.environ.items()
            if name != "PYTEST_CURRENT_TEST"
        }

    before = variables()
    yield
    assert variables() == before
