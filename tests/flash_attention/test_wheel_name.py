"""Which wheel fits, by its name: as `packaging` judges, and by what flash-attn's project writes into its names."""

from __future__ import annotations

import itertools

import pytest
from flash_stand_ins import PREBUILT, TORCH
from lockedenv.install.flash_attention.wheel_name import (
    find_misfit,
    fits_platform,
    fits_python,
    parse_wheel_name,
)
from packaging import tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

GLIBC = "2.36"
PYTHONS = "cp311 cp310 cp312 cp39 cp32 cp31 cp3 py3 py2 py2.py3 py311 py312 py310 pp311 cp310.cp311".split()
ABIS = "cp311 cp310 abi3 none cp311d cp311.abi3 none.abi3".split()
PLATFORMS = (
    "any linux_x86_64 manylinux1_x86_64 manylinux2010_x86_64 manylinux2014_x86_64 "
    "manylinux_2_17_x86_64 manylinux_2_28_x86_64 manylinux_2_36_x86_64 manylinux_2_37_x86_64 "
    "manylinux_2_4_x86_64 manylinux_3_1_x86_64 musllinux_1_2_x86_64 linux_aarch64 "
    "manylinux_2_17_aarch64 win_amd64 macosx_11_0_arm64 linux_i686"
).split()


def platforms_of_glibc(minor: int) -> list[str]:
    """What an x86-64 Linux takes, as packaging lists it for this glibc: from its own oldest, 2.5, on."""
    found = [f"manylinux_2_{number}_x86_64" for number in range(minor, 4, -1)]
    found += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    return [*found, "linux_x86_64"]


@pytest.fixture(scope="module")
def supported() -> set[tags.Tag]:
    platforms = platforms_of_glibc(36)
    interpreter = tags.cpython_tags((3, 11), abis=["cp311"], platforms=platforms)
    compatible = tags.compatible_tags((3, 11), interpreter="cp311", platforms=platforms)
    return {*interpreter, *compatible}


def test_names_are_judged_as_packaging_judges_them(supported: set[tags.Tag]) -> None:
    """A name with a manylinux tag was refused, and one for aarch64 taken."""
    judged = 0
    for python, abi, platform in itertools.product(PYTHONS, ABIS, PLATFORMS):
        if platform == "manylinux_2_4_x86_64":
            continue  # older than packaging looks for; no wheel has it
        filename = f"flash_attn-2.8.3-{python}-{abi}-{platform}.whl"
        _, _, _, wheel_tags = parse_wheel_filename(filename)
        fits = bool(wheel_tags & supported)
        ours = find_misfit(filename, TORCH, GLIBC) is None
        assert ours == fits, filename
        judged += 1
    assert judged > 1500


@pytest.mark.parametrize(
    "filename",
    [
        "flash-attn.zip",
        "flash_attn-2.8.3.tar.gz",
        "flash_attn-2.8.3-cp311-cp311.whl",
        "../flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl",
        "flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl.part",
        "flash attn-2.8.3-cp311-cp311-linux_x86_64.whl",
    ],
)
def test_what_is_no_name_of_a_wheel_is_refused(filename: str) -> None:
    with pytest.raises(InvalidWheelFilename):
        parse_wheel_filename(filename)
    assert parse_wheel_name(filename) is None
    assert "is not the name of a flash-attn wheel" in str(
        find_misfit(filename, TORCH, GLIBC)
    )


@pytest.mark.parametrize(
    "name, said",
    [
        (PREBUILT, None),
        ("flash_attn-2.8.3.post2-cp311-cp311-linux_x86_64.whl", None),
        (
            "flash_attn-2.8.3-1-cp39-abi3-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
            None,
        ),
        (
            PREBUILT.replace("torch2.5", "torch2.6"),
            "torch 2.6, the environment has 2.5",
        ),
        (PREBUILT.replace("FALSE", "TRUE"), "C++ ABI TRUE, the environment has FALSE"),
        (PREBUILT.replace("cu12", "cu11"), "CUDA 11, the environment has 12"),
        (PREBUILT.replace("cp311", "cp310"), "Python cp310, the environment has cp311"),
        (
            "flash_attn-2.8.3-cp311-cp311-win_amd64.whl",
            "platform win_amd64, this machine is linux_x86_64 with glibc 2.36",
        ),
        (PREBUILT.replace("linux_x86_64", "linux_aarch64"), "platform linux_aarch64"),
        (
            PREBUILT.replace("linux_x", "manylinux_2_39_x"),
            "platform manylinux_2_39_x86_64",
        ),
        (
            "flash_attn-2.8.3-cp311-cp310-linux_x86_64.whl",
            "Python cp311 with the ABI cp310",
        ),
        (
            "xformers-2.8.3-cp311-cp311-linux_x86_64.whl",
            "is not the name of a flash-attn wheel",
        ),
    ],
)
def test_which_part_of_a_wheel_does_not_fit(name: str, said: str | None) -> None:
    misfit = find_misfit(name, TORCH, GLIBC)
    if said is None:
        assert misfit is None
    else:
        assert misfit
        assert said in misfit


def test_a_newer_interpreter_takes_what_is_stable() -> None:
    assert fits_python(("cp39",), ("abi3",), "cp312")
    assert not fits_python(("cp313",), ("abi3",), "cp312")
    assert fits_platform("manylinux_2_28_x86_64", "2.28")
    assert not fits_platform("manylinux_2_28_x86_64", "2.27")
