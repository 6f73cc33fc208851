"""The digest of a RECORD is the same in the wheel and wherever an installer put it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fixtures.commands import ROOT, sh
from lockedenv.spec.locks import PipPackage, read_pip_lock
from lockedenv.spec.wheel_record import record_digest

IN_THE_WHEEL = """\
pack/__init__.py,sha256=aaa,10
"pack/a,b.txt",sha256=bbb,20
pack-1.data/purelib/other.py,sha256=ccc,30
pack-1.data/platlib/other/deep.so,sha256=ddd,40
pack-1.data/scripts/pack,sha256=eee,50
pack-1.data/data/bin/tool,sha256=fff,60
pack-1.data/data/share/man/pack.1,sha256=ggg,70
pack-1.data/headers/pack.h,sha256=hhh,80
pack-1.data/data/lib/python3.11/site-packages/late.pth,sha256=iii,90
pack-1.dist-info/METADATA,sha256=jjj,100
pack-1.dist-info/RECORD,,
"""
IN_A_PREFIX = """\
../../../bin/pack,sha256=changed,51
../../../bin/tool,sha256=fff,60
../../../bin/entry-point,sha256=written,52
../../../share/man/pack.1,sha256=ggg,70
../../../include/site/python3.11/pack/pack.h,sha256=hhh,80
late.pth,sha256=iii,90
other.py,sha256=ccc,30
other/deep.so,sha256=ddd,40
"pack/a,b.txt",sha256=bbb,20
pack/__init__.py,sha256=aaa,10
pack/__pycache__/__init__.cpython-311.pyc,,
pack/__pycache__/x.cpython-311.pyc,sha256=zzz,1
pack-1.dist-info/INSTALLER,sha256=kkk,4
pack-1.dist-info/METADATA,sha256=jjj,100
pack-1.dist-info/RECORD,,
pack-1.dist-info/REQUESTED,sha256=lll,0
pack-1.dist-info/direct_url.json,sha256=mmm,5
pack-1.dist-info/uv_cache.json,sha256=nnn,6
"""


def test_the_digest_does_not_depend_on_the_installer() -> None:
    assert record_digest(IN_THE_WHEEL) == record_digest(IN_A_PREFIX)


@pytest.mark.parametrize(
    "old, new",
    [
        ("pack/__init__.py,sha256=aaa,10", "pack/__init__.py,sha256=aab,10"),
        ("pack/__init__.py,sha256=aaa,10", "pack/__init__.py,sha256=aaa,11"),
        ("pack/__init__.py,sha256=aaa,10\n", ""),
        ("pack/__init__.py", "pack/deeper/__init__.py"),
        ("other.py", "more.pyc"),
        ("pack.1,sha256=ggg", "pack.1,sha256=ggh"),
        (
            "pack-1.dist-info/METADATA,sha256=jjj",
            "pack-1.dist-info/METADATA,sha256=jjk",
        ),
        ("late.pth,sha256=iii,90", "late.pth,,"),
    ],
)
def test_the_digest_sees_every_change_of_a_file(old: str, new: str) -> None:
    changed = IN_A_PREFIX.replace(old, new)
    assert changed != IN_A_PREFIX
    assert record_digest(changed) != record_digest(IN_THE_WHEEL)


def test_a_file_more_changes_the_digest() -> None:
    assert record_digest(IN_A_PREFIX + "hook.pth,sha256=x,1\n") != record_digest(
        IN_THE_WHEEL
    )


@pytest.fixture(scope="module")
def small_wheels() -> list[PipPackage]:
    """Locked packages that are small: a plain one, one with a script, one with a compiled module."""
    names = ("idna", "tqdm", "markupsafe")
    return [
        pin for pin in read_pip_lock(ROOT / "requirements.txt") if pin.name in names
    ]


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_the_locked_digest_is_that_of_the_installed_wheel(
    installer: str, small_wheels: list[PipPackage], tmp_path: Path
) -> None:
    assert len(small_wheels) == 3
    asked = tmp_path / "asked.txt"
    lines = [
        f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n"
        for pin in small_wheels
    ]
    asked.write_text("".join(lines))
    prefix = tmp_path / "env"
    sh(sys.executable, "-m", "venv", prefix)
    commands = {
        "uv": ["uv", "pip", "install", "--python", prefix / "bin/python"],
        "pip": [prefix / "bin/python", "-m", "pip", "install"],
    }
    sh(*commands[installer], "--require-hashes", "--no-deps", "--quiet", "-r", asked)
    for pin in small_wheels:
        [record] = prefix.glob(
            f"lib/python*/site-packages/{pin.name}-*.dist-info/RECORD"
        )
        assert record_digest(record.read_text()) == pin.record_sha256, pin.name


def test_every_locked_wheel_has_the_digest_of_its_record() -> None:
    for path in [
        *ROOT.rglob("requirements*.txt"),
        *ROOT.rglob("locks/pip.txt"),
        ROOT / "locks/tools.txt",
    ]:
        lacking = [pin.name for pin in read_pip_lock(path) if not pin.record_sha256]
        assert lacking == [], f"{path} has no digest of the RECORD of {lacking}"
