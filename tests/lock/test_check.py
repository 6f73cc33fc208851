"""lock.sh --check sees every lock that is not what lock.sh would write, and needs no network for it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from fixtures.commands import ROOT, apart, sh
from fixtures.lock_damage import FILES, Change, copy_locks, replaced, resealed
from lockedenv.lock import check
from lockedenv.spec.environment import Environment

CONDA = "conda-lock.yml"
STALE: list[tuple[str, Change, str]] = [
    (
        "a higher bound for a conda package",
        replaced("environment.yml", "scipy>=1.11.0", "scipy>=1.12.0"),
        "has changed since it was locked",
    ),
    (
        "a higher bound for a pip package",
        replaced("environment.yml", "peft>=0.6.0", "peft>=99"),
        "asked for is peft>=99",
    ),
    (
        "a package more",
        replaced(
            "environment.yml", "datasets>=2.14.0", "datasets>=2.14.0\n      - trl"
        ),
        "has trl not at all",
    ),
    (
        "another machine",
        replaced("locks/virtual-packages.yml", '"2.35"', '"2.36"'),
        "has changed since it was locked",
    ),
    (
        "a tool more",
        replaced("pyproject.toml", '"vermin"', '"vermin", "ruff"'),
        "tools.txt: has ruff not at all",
    ),
    (
        "a contributor's tool more",
        replaced("pyproject.toml", '"sphinx"', '"sphinx", "ruff"'),
        "requirements-dev.txt: has ruff not at all",
    ),
    (
        "another flash-attn",
        replaced("locks/flash-attn.in", "flash-attn==2.8.3 ", "flash-attn>=3 "),
        "asked for is flash-attn>=3",
    ),
    (
        "another prebuilt wheel",
        replaced("locks/flash-attn.in", "sha256:....", "sha256:0000"),
        "has another prebuilt wheel",
    ),
    (
        "another version of what conda has",
        resealed(
            "requirements.txt",
            replaced("requirements.txt", "numpy==[0-9.]+", "numpy==2.0.0"),
        ),
        "has numpy 2.0.0, conda-lock.yml has",
    ),
    (
        "a malformed hash",
        replaced("requirements.txt", "(accelerate==.*sha256:).", r"\1x"),
        "not as scripts/lock.sh writes it",
    ),
    (
        "a package of both layers removed from one",
        resealed("requirements.txt", replaced("requirements.txt", "peft==.*\n", "")),
        "requirements.txt: lacks peft of locks/pip.txt",
    ),
    (
        "a conda package removed from the wheels",
        resealed(
            "requirements.txt", replaced("requirements.txt", "statsmodels==.*\n", "")
        ),
        "requirements.txt: lacks statsmodels, which environment.yml asks for",
    ),
    (
        "a dependency removed from the wheels",
        replaced(
            "requirements.txt",
            "(mpmath==.*\n)((.*\n)*)# 75 packages",
            r"\2# 74 packages",
        ),
        "was edited after lock.sh has written it",
    ),
    (
        "a conda package removed from conda's lock",
        resealed(CONDA, replaced(CONDA, '- {"name": "tqdm".*\n', "")),
        "conda-lock.yml: lacks tqdm, which environment.yml asks for",
    ),
    (
        "another hash in one of two layers",
        resealed(
            "locks/pip.txt",
            replaced("locks/pip.txt", "(peft==.*sha256:)....", r"\g<1>0000"),
        ),
        "has another peft than locks/pip.txt",
    ),
    (
        "another RECORD in one of two layers",
        resealed(
            "locks/pip.txt",
            replaced("locks/pip.txt", "(peft==.*RECORD )....", r"\g<1>0000"),
        ),
        "has another peft than locks/pip.txt",
    ),
    (
        "another content hash",
        replaced(CONDA, "linux-64: [0-9a-f]{8}", "linux-64: 00000000"),
        "was edited after lock.sh has written it",
    ),
    (
        "a hash of zeros",
        resealed(
            CONDA,
            replaced(CONDA, '"sha256": "[0-9a-f]{64}"', f'"sha256": "{"0" * 64}"'),
        ),
        "has a malformed hash",
    ),
    (
        "another hash",
        replaced(CONDA, '"sha256": "....', '"sha256": "1234'),
        "was edited after lock.sh has written it",
    ),
    (
        "another host",
        resealed(
            CONDA, replaced(CONDA, "conda.anaconda.org/nvidia", "mirror.example/nvidia")
        ),
        "comes from https://mirror.example/nvidia, which is none of the lock's channels",
    ),
    (
        "another channel",
        resealed(
            CONDA,
            replaced(CONDA, "org/conda-forge/noarch/tqdm", "org/main/noarch/tqdm"),
        ),
        "which is none of the lock's channels",
    ),
    (
        "another tool's hash",
        replaced("locks/tools.txt", "(black==.*sha256:)....", r"\g<1>1234"),
        "tools.txt: was edited after lock.sh has written it",
    ),
]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository's root, taken for the repository itself."""
    monkeypatch.setattr(check, "ROOT", tmp_path)
    return copy_locks(tmp_path)


def test_a_copy_is_current(copy: Path) -> None:
    assert check.find_stale(Environment(copy)) == []


@pytest.mark.parametrize(
    "title, change, reason", STALE, ids=[title for title, *_ in STALE]
)
def test_what_is_stale_is_seen(
    title: str, change: Change, reason: str, copy: Path
) -> None:
    change(copy)
    reasons = "\n".join(check.find_stale(Environment(copy)))
    assert reason in reasons, reasons or "taken for current"


@pytest.mark.parametrize(
    "old, new",
    [
        ("# The interpreter", "# Python"),
        ("  - numpy>=1.24.0\n", "  - numpy>=1.24.0  # the newest\n"),
        ("\n  # Numbers", "\n\n\n  # Numbers"),
    ],
)
def test_a_comment_does_not_make_a_lock_stale(old: str, new: str, copy: Path) -> None:
    replaced("environment.yml", old, new)(copy)
    assert check.find_stale(Environment(copy)) == []


def test_check_solves_nothing_and_reaches_nothing() -> None:
    """lock.sh --check in a network namespace without a network, with no solver on PATH."""
    environ = {
        "PATH": "/usr/bin:/bin:" + str(Path(shutil.which("conda-lock") or "").parent)
    }
    offline = [*apart("--net"), ROOT / "scripts/lock.sh", "--check"]
    assert "the locks are current" in sh(*offline, env=environ).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the repository with its scripts."""
    (tmp_path / "docs").mkdir()
    for name in (*FILES, "docs/TECHNICAL_SETUP.md", "README.md"):
        shutil.copy2(ROOT / name, tmp_path / name)
    for name in ("locks", "scripts"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    return tmp_path


def test_the_command_says_what_is_stale(clone: Path) -> None:
    replaced("environment.yml", "scipy>=1.11.0", "scipy>=1.12.0")(clone)
    done = sh(clone / "scripts/lock.sh", "--check", check=False)
    assert done.returncode == 1
    assert "environment.yml or locks/virtual-packages.yml has changed" in done.stdout
    assert "run scripts/lock.sh" in done.stdout


def test_the_command_says_that_the_table_of_versions_is_stale(clone: Path) -> None:
    done = sh(clone / "scripts/lock.sh", "--check", check=False)
    assert done.returncode == 1
    for document in ("docs/TECHNICAL_SETUP.md", "README.md"):
        assert (
            f"{document}: its table of versions is not that of the locks" in done.stdout
        )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--update", "tokenizers"],
            r"no environment.yml asks for it; asked for are: accelerate",
        ),
        (["--update", "scipi"], r"did you mean scipy\?"),
        (["--environment", "defualt"], r"did you mean default\?"),
    ],
)
def test_a_name_that_is_not_known_is_wrong_usage(
    options: list[str], message: str, clone: Path
) -> None:
    environ = {**os.environ, "CONDA_LOCK_SOLVER": "/bin/true"}
    done = sh(clone / "scripts/lock.sh", *options, check=False, env=environ)
    assert done.returncode == 2, done.stdout
    assert re.search(message, done.stdout)


def test_what_locking_needs_is_said_up_front(clone: Path) -> None:
    tools = clone / "bin"
    tools.mkdir()
    (tools / "conda-lock").symlink_to(shutil.which("conda-lock") or "")
    done = sh(
        clone / "scripts/lock.sh", check=False, env={"PATH": f"{tools}:/usr/bin:/bin"}
    )
    assert done.returncode == 1
    missing, how = done.stdout.split("comes with: ")
    assert "uv, micromamba 2.5.0 not on PATH; all that locking needs " in missing
    for part in (
        "conda env create -f",
        "pip install conda-lock==4.0.3 uv",
        "bin/micromamba",
    ):
        assert part in how
    mine = ["--environment", clone]
    done = sh(
        clone / "scripts/lock.sh", *mine, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 2
    missing, how_again = done.stdout.split("comes with: ")
    assert missing.startswith("lock.sh: conda-lock is not on PATH")
    assert "micromamba" in missing
    assert how_again == how, "one line, whichever is missing"


def test_a_conda_lock_in_an_old_python_is_named(clone: Path) -> None:
    tools = clone / "old/bin"
    tools.mkdir(parents=True)
    for name, text in (
        ("conda-lock", ""),
        ("python", "echo ModuleNotFoundError >&2; exit 1"),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    environ = {"PATH": f"{tools}:/usr/bin:/bin"}
    done = sh(clone / "scripts/lock.sh", "--check", check=False, env=environ)
    assert done.returncode == 2
    assert f"{tools}/conda-lock runs in a Python without tomllib" in done.stdout
    assert len(done.stdout.splitlines()) == 1
