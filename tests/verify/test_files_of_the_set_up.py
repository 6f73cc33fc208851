"""What the set-up wrote or linked is there as it was; lines that people add to it are listed."""

from __future__ import annotations

import pytest
from lockedenv.prefix.activation import guard_text
from lockedenv.prefix.place import Prefix
from lockedenv.verify.checks import files
from small_prefix import SITE, SmallPrefix
from strays import Put, Stray, assert_found, put_file


def forbid_reading(small: SmallPrefix) -> None:
    (small.site / "single.py").chmod(0)


def link_out(path: str) -> Put:
    """Replaces a folder by a link to a copy of it elsewhere."""

    def put(small: SmallPrefix) -> None:
        elsewhere = small.path.parent / "elsewhere"
        (small.path / path).rename(elsewhere)
        (small.path / path).symlink_to(elsewhere)

    return put


STRAYS = [
    Stray("emptied activate", put_file("activate"), "activate: empty"),
    Stray(
        "a changed line of activate",
        put_file("activate", b"export A=2\n"),
        "activate: changed since it was installed",
    ),
    Stray("a file that nobody may read", forbid_reading, "single.py: cannot be read"),
    Stray(
        "site-packages replaced by a link",
        link_out(SITE),
        f"{SITE}: is a link now, to ",
    ),
    Stray(
        "emptied constraints",
        put_file("maximalcai-constraints.txt"),
        "maximalcai-constraints.txt: empty",
    ),
]


@pytest.mark.parametrize("stray", STRAYS, ids=[stray.name for stray in STRAYS])
def test_what_would_be_taken_first_or_run_is_a_failure_by_name(
    stray: Stray, small: SmallPrefix
) -> None:
    assert_found(files.present, stray, small)


def test_settings_that_people_add_to_pip_conf_are_listed(small: SmallPrefix) -> None:
    """Also between ours, where the file is another one byte for byte."""
    setting = guard_text(Prefix(small.path))
    small.write("pip.conf", setting.encode())
    small.take_inventory()
    edited = setting.replace("[install]", "[install]\nno-deps = false")
    small.write("pip.conf", edited.encode())
    result = files.present(small.context())
    assert result.verdict == "warn", result
    small.write("pip.conf", b"[install]\nno-deps = false\n")
    result = files.present(small.context())
    assert result.verdict == "fail", result
    assert "post_create.sh" in result.remedy, result


@pytest.mark.parametrize("place", ["after", "before"])
def test_lines_that_people_add_to_activate_are_listed(
    place: str, small: SmallPrefix
) -> None:
    content = b"export A=1\nexport HF_HOME=/workspace/hf\n"
    if place == "before":
        content = b"export HF_HOME=/workspace/hf\nexport A=1\n"
    small.write("activate", content)
    for check in (files.present, files.files):
        result = check(small.context())
        assert result.verdict == "warn", result
        assert "activate has lines that are not the set-up's" in result.summary
