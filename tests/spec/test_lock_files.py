"""A lock is refused for anything that lock.sh would not write, with the file, the line and the remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable

import pytest
from fixtures.commands import ROOT
from lockedenv.spec import locks

LOCK = (ROOT / "conda-lock.yml").read_text()
LINES = LOCK.splitlines()
FIRST = LINES.index("package:") + 2  # the number of the first package's line
SECOND_LINE = LINES[FIRST]


def once(old: str, new: str) -> Callable[[str], str]:
    """Puts a text in place of its first occurrence."""

    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


def first_match(old: str, new: str) -> Callable[[str], str]:
    """Puts a text in place of the first match of an expression."""

    def change(text: str) -> str:
        changed = re.sub(old, new, text, count=1, flags=re.M)
        assert changed != text
        return changed

    return change


def with_package_twice(text: str) -> str:
    """Another package's line in place of one, so that the count is right."""
    return text.replace(LINES[FIRST + 1], SECOND_LINE)


WRITES = "not as scripts/lock.sh writes"
MALFORMED = [
    ("half of it", lambda text: text[: len(text) // 2], "is cut short"),
    (
        "another version",
        once("version: 1\n", "version: 2\n"),
        "not a conda-lock file of version 1",
    ),
    (
        "a pip package",
        once('"manager": "conda"', '"manager": "pip"'),
        "they belong in locks/pip.txt",
    ),
    ("no JSON", once('"hash":', '"hash"'), f"conda-lock.yml:{FIRST}: {WRITES} it"),
    (
        "a merge conflict among the packages",
        once('- {"name"', '<<<<<<< HEAD\n- {"name"'),
        f"conda-lock.yml:{FIRST}: {WRITES}",
    ),
    (
        "a merge conflict in the header",
        once("metadata:\n", "<<<<<<< HEAD\nmetadata:\n=======\n"),
        "holds a merge conflict",
    ),
    (
        "a merge conflict at the end of the header",
        once("package:\n", ">>>>>>> main\npackage:\n"),
        "holds a merge conflict",
    ),
    (
        "a line more in the header",
        once("  channels:\n", "  more: 1\n  channels:\n"),
        "`package:`",
    ),
    (
        "a section more",
        once("metadata:\n", "custom: {}\nmetadata:\n"),
        "before `package:`",
    ),
    (
        "two platforms",
        once("  - linux-64\n", "  - linux-64\n  - osx-arm64\n"),
        "before `package:`",
    ),
    (
        "a channel with a password",
        once("used_env_vars: []", "used_env_vars: [TOKEN]"),
        "before `package:`",
    ),
    (
        "no channel",
        first_match(r"(  - url: .*\n    used.*\n)+", ""),
        "before `package:`",
    ),
    (
        "another comment",
        first_match(" bytes$", " byt"),
        f"conda-lock.yml:{FIRST}: {WRITES} it",
    ),
    (
        "no hashes",
        once('"hash": {', '"hash": [], "no": {'),
        f"conda-lock.yml:{FIRST}: {WRITES} it",
    ),
    (
        "a file of another package",
        first_match(r"linux-64/[^/]+\.conda", "linux-64/x.conda"),
        f"conda-lock.yml:{FIRST}: {WRITES}",
    ),
    (
        "a hash of other characters",
        first_match('"sha256": "....', '"sha256": "zzzz'),
        f"conda-lock.yml:{FIRST}: _openmp_mutex has a malformed hash",
    ),
    (
        "a hash of zeros",
        first_match('"sha256": "[0-9a-f]*"', f'"sha256": "{"0" * 64}"'),
        f"conda-lock.yml:{FIRST}: _openmp_mutex has a malformed hash",
    ),
    (
        "an md5 of f",
        first_match('"md5": "[0-9a-f]*"', f'"md5": "{"f" * 32}"'),
        f"conda-lock.yml:{FIRST}: _openmp_mutex has a malformed hash",
    ),
    (
        "no address",
        once("https://conda", "data://conda"),
        "has a malformed hash or address",
    ),
    (
        "another host",
        once("https://conda.anaconda.org/", "https://mirror.example/"),
        "comes from https://mirror.example/conda-forge, which is none of the lock's channels",
    ),
    (
        "a host that begins like the right one",
        once("https://conda.anaconda.org/", "https://conda.anaconda.org.evil.example/"),
        "which is none of the lock's channels",
    ),
    (
        "a channel more",
        once("org/conda-forge/", "org/main/"),
        "none of the lock's channels",
    ),
    (
        "a path that leaves the channel",
        once("conda-forge/linux-64/", "conda-forge/../evil/linux-64/"),
        "none of the lock's channels",
    ),
    (
        "another subdir",
        once("/linux-64/", "/osx-arm64/"),
        "is for osx-arm64, not for linux-64",
    ),
    (
        "another platform",
        once('"platform": "linux-64"', '"platform": "osx-arm64"'),
        "is for osx-arm64, not for linux-64",
    ),
    (
        "another category",
        once('"category": "main"', '"category": "dev"'),
        "is of the category 'dev'",
    ),
    (
        "optional",
        once('"optional": false', '"optional": true'),
        "is of the category 'main'",
    ),
    ("a package twice", with_package_twice, " twice"),
    (
        "another version than the file's",
        first_match('"version": "[^"]*"', '"version": "0"'),
        "is not the archive of",
    ),
    (
        "no md5",
        once('"md5"', '"md6"'),
        f"conda-lock.yml:{FIRST}: this package has no 'md5'",
    ),
    (
        "no url",
        once('"url"', '"uri"'),
        f"conda-lock.yml:{FIRST}: this package has no 'url'",
    ),
    ("a key more", once('"optional": false', '"optional": false, "x": 1'), WRITES),
    (
        "a key twice",
        once('"manager": "conda"', '"manager": "conda", "manager": "conda"'),
        WRITES,
    ),
    ("other spaces", once('{"name": ', '{"name":  '), WRITES),
    (
        "no hash of linux",
        once("    linux-64: ", "    osx-arm64: "),
        "not locked for linux-64",
    ),
    (
        "no platform linux",
        once("  - linux-64\n", "  - osx-arm64\n"),
        "not locked for linux-64",
    ),
    (
        "no packages' section",
        lambda text: text[: text.index("package:")],
        "no package section",
    ),
    (
        "no package",
        lambda text: text[: text.index("- {")] + "# 0 packages\n",
        "is cut short",
    ),
    ("a package less", first_match('- {"name": "tqdm".*\n', ""), "is cut short"),
    ("another count", first_match(r"^# \d+ packages", "# 7 packages"), "is cut short"),
    ("nothing", lambda text: "", "not a conda-lock file of version 1"),
]


@pytest.mark.parametrize(
    "title, change, message", MALFORMED, ids=[title for title, *_ in MALFORMED]
)
def test_a_malformed_lock_is_refused_with_the_remedy(
    title: str, change: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "conda-lock.yml"
    path.write_text(change(LOCK))
    with pytest.raises(locks.LockError, match=re.escape(message)) as error:
        locks.read_conda_lock(path)
    assert str(error.value).startswith(f"{path}:")
    assert f"; write it with scripts/lock.sh --environment {tmp_path}" in str(
        error.value
    )


def test_a_lock_of_the_repository_comes_back_from_git() -> None:
    for name in (
        "conda-lock.yml",
        "locks/pip.txt",
        "environments/current/requirements.txt",
    ):
        path = ROOT / name
        remedy = f"restore it with `git checkout -- {path}` or write it anew with scripts/lock.sh"
        assert (
            str(locks.LockError("is cut short", path))
            == f"{path}: is cut short; {remedy}"
        )


def test_an_environment_that_was_not_locked_is_told_how(tmp_path: Path) -> None:
    folder = tmp_path / "my own"
    for name in ("conda-lock.yml", "locks/pip.txt"):
        with pytest.raises(locks.LockError) as error:
            locks.read_seal(folder / name)
        how = f"write it with scripts/lock.sh --environment '{folder}'"
        assert str(error.value) == f"{folder / name}: is not there; {how}"


def test_a_lock_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "conda-lock.yml"
    ends = [match.end() for match in re.finditer("\n", LOCK)][:-1]
    before_newlines = [end - 1 for end in ends]
    for end in [*ends, *before_newlines, *range(0, len(LOCK) - 1, 499), len(LOCK) - 2]:
        path.write_text(LOCK[:end])
        with pytest.raises(locks.LockError):
            locks.read_conda_lock(path)


def test_a_lock_over_channels_by_their_address(tmp_path: Path) -> None:
    """As for an environment of one's own over a mirror."""
    path = tmp_path / "conda-lock.yml"
    text = LOCK.replace("https://conda.anaconda.org/", "https://mirror.example/conda/")
    for name in ("pytorch", "nvidia", "conda-forge"):
        text = text.replace(
            f"- url: {name}\n", f"- url: https://mirror.example/conda/{name}/\n"
        )
    path.write_text(text)
    lock = locks.read_conda_lock(path)
    assert lock.channels[0] == "https://mirror.example/conda/pytorch"
    assert {package.channel for package in lock.packages} == {
        "pytorch",
        "nvidia",
        "conda-forge",
    }


PIN = f"idna==3.20 --hash=sha256:{'ab' * 32}  # 69583 bytes, RECORD {'cd' * 32}\n"
MALFORMED_PINS = [
    (
        "nothing but a comment",
        "# nothing\n",
        "is cut short: it ends after 0 packages with '# nothing'",
    ),
    ("a bound", "numpy>=2\n", "pip.txt:1: not as scripts/lock.sh writes it"),
    ("a merge conflict", f"<<<<<<< HEAD\n{PIN}# 1 packages\n", "pip.txt:1: not as"),
    (
        "a merge conflict's end",
        f"{PIN}>>>>>>> main\n# 1 packages\n",
        "pip.txt:2: not as",
    ),
    ("a package twice", f"{PIN}{PIN}# 2 packages\n", "pip.txt:2: has idna twice"),
    (
        "twice by another spelling",
        f"{PIN}{PIN.replace('idna', 'IDNA')}# 2 packages\n",
        "has idna twice",
    ),
    (
        "a hash of zeros",
        f"{PIN.replace('ab' * 32, '0' * 64)}# 1 packages\n",
        "has a malformed hash",
    ),
    (
        "a RECORD of zeros",
        f"{PIN.replace('cd' * 32, '0' * 64)}# 1 packages\n",
        "a malformed hash",
    ),
    (
        "an index",
        f"--index-url https://index.example/simple\n{PIN}# 1 packages\n",
        "pip.txt:1: not as",
    ),
    (
        "an address",
        f"idna @ https://host.example/idna.whl\n{PIN}# 1 packages\n",
        "pip.txt:1: not as",
    ),
    ("another count", f"{PIN}# 2 packages\n", "is cut short"),
    ("a line after the count", f"{PIN}# 1 packages\n# more\n", "is cut short"),
]


@pytest.mark.parametrize(
    "title, text, message", MALFORMED_PINS, ids=[title for title, *_ in MALFORMED_PINS]
)
def test_a_malformed_pip_lock_is_refused(
    title: str, text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "pip.txt"
    path.write_text(text)
    with pytest.raises(locks.LockError, match=re.escape(message)):
        locks.read_pip_lock(path)


def test_a_pip_lock_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(locks.LockError, match="is not there; write it with"):
        locks.read_pip_lock(tmp_path / "pip.txt")


def test_a_pip_lock_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "pip.txt"
    path.write_text("# an environment without a pip layer\n# 0 packages\n")
    assert locks.read_pip_lock(path) == []


def test_a_lock_that_was_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "pip.txt"
    path.write_text(f"{PIN}# 1 packages\n")
    locks.read_pip_lock(path).clear()
    assert [package.version for package in locks.read_pip_lock(path)] == ["3.20"]
    path.write_text(f"{PIN}# 1 packages\n".replace("3.20", "3.19"))
    assert [package.version for package in locks.read_pip_lock(path)] == ["3.19"]
