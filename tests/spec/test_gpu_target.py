"""What kernels are compiled for where there is no GPU: an H100, or what is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from lockedenv.spec.gpu_target import (
    H100,
    find_foreign_assembler,
    find_target,
    parse_target,
    target_variables,
)


@pytest.mark.parametrize("text", ["90", "sm_90", "sm_90a", " SM90 "])
def test_a_target_as_people_write_it(text: str) -> None:
    assert parse_target(text) == H100


@pytest.mark.parametrize("text", ["", "9", "9.0", "H100", "sm_90x"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(ValueError, match="write 90 or sm_90 for an H100"):
        parse_target(text)


def test_the_target_is_an_h100_unless_another_is_asked_for() -> None:
    assert find_target({}) == H100
    assert find_target({"FLASH_ATTENTION_ARCH": "sm_120"}).name == "sm_120"


def test_the_variables_of_a_target() -> None:
    assert target_variables(H100) == {
        "FLASH_ATTENTION_ARCH": "sm_90",
        "CUTE_DSL_ARCH": "sm_90a",
        "FLASH_ATTENTION_NUM_SMS": "132",
    }
    assert target_variables(parse_target("80"))["CUTE_DSL_ARCH"] == "sm_80"


@pytest.mark.parametrize("variable", ["TRITON_PTXAS_PATH", "CUTE_DSL_PTXAS_PATH"])
def test_an_assembler_of_a_system_cuda_is_foreign(
    variable: str, tmp_path: Path
) -> None:
    assert (
        find_foreign_assembler(tmp_path, {variable: "/usr/local/cuda/bin/ptxas"})
        == variable
    )
    assert find_foreign_assembler(tmp_path, {variable: f"{tmp_path}/lib/ptxas"}) is None
    assert find_foreign_assembler(tmp_path, {variable: ""}) is None
