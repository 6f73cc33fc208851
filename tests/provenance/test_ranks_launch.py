"""Which rank this is: variables that make no sense are named, and nothing is started with them."""

from __future__ import annotations

import sys

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.errors import Stop
from lockedenv.provenance.ranks.launch import Launch, choose_gpu, read_launch

VERIFY = ROOT / "scripts/verify_environment.py"
RIGHT = {"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "GROUP_RANK": "0"}


def test_what_torchrun_sets_is_read() -> None:
    assert read_launch(RIGHT) == Launch(rank=3, world=16, local_rank=1, group=0)
    assert read_launch({"RANK": "0", "WORLD_SIZE": "1"}).is_first_of_node


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("LOCAL_RANK", "x", "LOCAL_RANK is 'x', which is not a number of a rank"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK is '-1'"),
        ("GROUP_RANK", "", "GROUP_RANK is ''"),
        ("RANK", "1.0", "RANK is '1.0'"),
        ("RANK", "٣", "RANK is "),
        ("RANK", "1" + "0" * 400, "RANK is '1000"),
        ("RANK", "16", "RANK is 16, and WORLD_SIZE 16"),
        ("WORLD_SIZE", "0", "RANK is 3, and WORLD_SIZE 0"),
        ("WORLD_SIZE", "999999999", "WORLD_SIZE is 999999999, and at most 16384 ranks"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(Stop) as error:
        read_launch({**RIGHT, name: value})
    text = str(error.value)
    assert said in text
    assert "run it under torchrun" in text or "a part of the job" in text
    assert len(text) < 300


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_the_command_ends_in_one_message(name: str) -> None:
    environ = {**clean_environ(), **RIGHT, name: "x"}
    done = sh(sys.executable, VERIFY, "--distributed", check=False, env=environ)
    assert done.returncode == 1
    assert f"the ranks cannot meet: {name} is 'x'" in done.stdout
    assert "Traceback" not in done.stdout
    assert "open an issue" not in done.stdout


def test_each_rank_has_the_gpu_that_its_launcher_shows_it() -> None:
    launch = read_launch({**RIGHT, "LOCAL_RANK": "2"})
    assert choose_gpu(launch, "") == "2"
    assert choose_gpu(launch, "4,5,6,7") == "6"
    assert choose_gpu(launch, "GPU-abcd") == "GPU-abcd"
