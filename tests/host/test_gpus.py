"""What says that there should be a GPU, and what nvidia-smi says of those that are there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from fixtures.gpu_stand_ins import make_smi
from lockedenv.errors import Stop
from lockedenv.host import gpus as host_gpus
from lockedenv.host.gpus import GpuError, Trouble, find_gpus, read_gpu_facts
from lockedenv.host.process import CommandResult
from lockedenv.spec.drivers import find_old_driver

NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)
NOTHING = {"SAYS": "No devices were found", "EXIT": "6"}
INFOROM = "WARNING: infoROM is corrupted at gpu 0000:84:00.0"


def environ_with(answers: dict[str, str] | None, folder: Path) -> dict[str, str]:
    """An environment whose PATH has a stand-in of nvidia-smi with these answers; none for None."""
    if answers is None:
        folder.mkdir(parents=True, exist_ok=True)
        return {"PATH": str(folder)}
    return make_smi(folder, **answers)


@dataclass(frozen=True)
class Missed:
    """A GPU that should be there, by signs on the disk or variables, and what nvidia-smi answers.

    Without answers there is no nvidia-smi.
    """

    name: str
    trouble: Trouble
    message: str
    answers: dict[str, str] | None
    signs: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


MISSED = [
    Missed(
        "rented and no nvidia-smi",
        Trouble.NO_PROGRAM,
        r"no nvidia-smi \(RUNPOD_GPU_COUNT=2\); start the container",
        None,
        environ={"RUNPOD_GPU_COUNT": "2"},
    ),
    Missed(
        "device and no nvidia-smi",
        Trouble.NO_PROGRAM,
        r"no nvidia-smi \(\S+/dev/nvidia0\)",
        None,
        signs=("dev/nvidia0",),
    ),
    Missed(
        "driver and no nvidia-smi",
        Trouble.NO_PROGRAM,
        "no nvidia-smi",
        None,
        signs=("proc/driver/nvidia/gpus/0000:1b:00.0",),
    ),
    Missed(
        "rented and none found",
        Trouble.NO_DEVICES,
        r"nvidia-smi finds no GPU, .* \(RUNPOD_GPU_COUNT=1\); the GPU has failed",
        NOTHING,
        environ={"RUNPOD_GPU_COUNT": "1"},
    ),
    Missed(
        "device and none found",
        Trouble.NO_DEVICES,
        r"finds no GPU, and there should be one \(\S+/dev/nvidia3\)",
        NOTHING,
        signs=("dev/nvidia3",),
    ),
    Missed(
        "none found",
        Trouble.NO_DEVICES,
        r"finds no GPU, and there should be one \(its driver is here\)",
        NOTHING,
    ),
    Missed(
        "nothing said", Trouble.NO_DEVICES, "finds no GPU", {"SAYS": " ", "EXIT": "0"}
    ),
    Missed(
        "seven of eight",
        Trouble.FEWER,
        "nvidia-smi shows 7 of the 8 GPUs that RUNPOD_GPU_COUNT promises; take another",
        {"GPUS": "7"},
        environ={"RUNPOD_GPU_COUNT": "8"},
    ),
    Missed(
        "login node",
        Trouble.NO_DRIVER,
        "nvidia-smi fails: NVIDIA-SMI has failed .* take another pod",
        {"SAYS": NO_DRIVER, "EXIT": "9"},
    ),
    Missed(
        "GPU and no driver",
        Trouble.FAILS,
        "nvidia-smi fails: NVIDIA-SMI has failed .* take another pod",
        {"SAYS": NO_DRIVER, "EXIT": "9"},
        signs=("dev/nvidia0",),
    ),
    Missed(
        "rented and no driver",
        Trouble.FAILS,
        "take another pod",
        {"SAYS": NO_DRIVER, "EXIT": "9"},
        environ={"RUNPOD_GPU_COUNT": "1"},
    ),
    Missed(
        "fallen off the bus",
        Trouble.FAILS,
        r"nvidia-smi fails: .* \(exit 15\); take another pod",
        {"EXIT": "15"},
    ),
    Missed(
        "mismatch",
        Trouble.FAILS,
        "Driver/library version mismatch",
        {
            "SAYS": "Failed to initialize NVML: Driver/library version mismatch",
            "EXIT": "18",
        },
    ),
    Missed(
        "crashed",
        Trouble.UNREADABLE,
        "which is not a GPU",
        {"NAME": "ERR!", "CAPABILITY": "[N/A]"},
    ),
    Missed(
        "lost",
        Trouble.FAILS,
        "Unable to determine the device handle",
        {
            "SAYS": "Unable to determine the device handle for GPU 0000:0A:00.0: Unknown Error"
        },
    ),
]


@pytest.mark.parametrize("missed", MISSED, ids=[missed.name for missed in MISSED])
def test_a_gpu_that_should_be_there_is_missed(missed: Missed, tmp_path: Path) -> None:
    for sign in missed.signs:
        (tmp_path / "root" / sign).mkdir(parents=True)
    there = {**missed.environ, **environ_with(missed.answers, tmp_path / "bin")}
    with pytest.raises(GpuError, match=missed.message) as caught:
        find_gpus(tmp_path / "root", there)
    assert caught.value.trouble is missed.trouble
    assert str(caught.value) == f"{caught.value.problem}; {caught.value.remedy}"
    facts = read_gpu_facts(tmp_path / "root", there)
    assert facts.gpus == ()
    assert isinstance(facts.error, Stop)


def test_a_login_node_is_told_how_it_is_set_up(tmp_path: Path) -> None:
    environ = make_smi(tmp_path / "bin", SAYS=NO_DRIVER, EXIT="9")
    error = read_gpu_facts(tmp_path, environ).error
    assert error is not None
    assert "--arch 90 --flash-attn none --any-pod" in error.remedy


def test_a_machine_without_any_sign_of_a_gpu_is_healthy(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    # It stays where a container sees the driver and no GPU.
    (tmp_path / "dev/nvidiactl").touch()
    none = environ_with(None, tmp_path / "none")
    for rented in ({}, {"RUNPOD_GPU_COUNT": "0"}, {"RUNPOD_GPU_COUNT": ""}):
        assert find_gpus(tmp_path, {**rented, **none}) == []
    assert find_gpus(tmp_path, {"RUNPOD_GPU_COUNT": "?", **none}) == []
    with pytest.raises(GpuError, match="RUNPOD_GPU_COUNT=9999"):
        find_gpus(tmp_path, {"RUNPOD_GPU_COUNT": "9" * 400, **none})


def test_a_machine_with_all_of_its_gpus_is_healthy(tmp_path: Path) -> None:
    environ = {"RUNPOD_GPU_COUNT": "2", "CUDA_VISIBLE_DEVICES": "0"}
    environ.update(make_smi(tmp_path / "bin", GPUS="2"))
    assert [found.arch for found in find_gpus(tmp_path, environ)] == ["90", "90"]


@pytest.mark.parametrize(
    "memory", ["[Insufficient Permissions]", "[N/A]", "[Not Supported]"]
)
def test_a_gpu_that_does_not_tell_its_memory_is_a_gpu(
    memory: str, tmp_path: Path
) -> None:
    [found] = find_gpus(
        tmp_path, make_smi(tmp_path / "bin", MEMORY=memory, MIG="Enabled")
    )
    assert found.memory == 0
    assert found.mig
    assert found.capability == "9.0"


@pytest.mark.parametrize("count", ["1", "8"])
def test_rows_beside_a_warning_of_the_inforom_are_used(
    count: str, tmp_path: Path
) -> None:
    """Exit 14: https://github.com/pytorch/pytorch/pull/87464"""
    facts = read_gpu_facts(
        tmp_path, make_smi(tmp_path / "bin", GPUS=count, WARNING=INFOROM, EXIT="14")
    )
    assert facts.error is None
    assert len(facts.gpus) == int(count)
    assert facts.warnings == (INFOROM,)


def test_a_warning_without_rows_is_no_answer(tmp_path: Path) -> None:
    environ = make_smi(tmp_path / "bin", SAYS=INFOROM, EXIT="14")
    with pytest.raises(GpuError, match="infoROM is corrupted"):
        find_gpus(tmp_path, environ)


def test_an_old_driver_is_named(tmp_path: Path) -> None:
    """https://github.com/huggingface/candle/issues/733"""
    answers = {
        "DRIVER": "470.182.03",
        "NAME": "Tesla V100-SXM2-16GB",
        "UNKNOWN": "compute_cap",
    }
    asked = tmp_path / "asked"
    environ = make_smi(tmp_path / "bin", ASKED=str(asked), **answers)
    with pytest.raises(GpuError) as caught:
        find_gpus(tmp_path, environ)
    assert caught.value.trouble is Trouble.OLD_DRIVER
    assert "the driver 470.182.03 of Tesla V100-SXM2-16GB is too old" in str(
        caught.value
    )
    assert "a pod cannot upgrade it: take another pod" in str(caught.value)
    queries = asked.read_text().splitlines()
    assert len(queries) == 2
    assert "compute_cap" not in queries[1]


def test_an_old_nvidia_smi_beside_a_new_driver_is_named(tmp_path: Path) -> None:
    """https://github.com/canonical/inference-snaps/issues/89"""
    environ = make_smi(tmp_path / "bin", DRIVER="580.95.05", UNKNOWN="compute_cap")
    with pytest.raises(
        GpuError, match="older than the driver 580.95.05 .* first on PATH"
    ):
        find_gpus(tmp_path, environ)


def test_a_driver_too_old_for_the_locked_cuda_is_found() -> None:
    new = host_gpus.Gpu("NVIDIA H100", "550.54.14", 0, "9.0", "GPU-1", False)
    old = host_gpus.Gpu("NVIDIA A100", "515.65.01", 0, "8.0", "GPU-2", False)
    assert find_old_driver([new], "12.4") is None
    found = find_old_driver([new, old], "12.4")
    assert found is not None
    assert found.problem == (
        "the driver 515.65.01 of NVIDIA A100 is older than 525.60.13, the oldest for CUDA 12.4"
    )
    assert "filtering for CUDA 12.4 or newer" in found.remedy


def test_an_nvidia_smi_that_hangs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*command: Any, **options: Any) -> CommandResult:
        return CommandResult(None, error="no answer within 60 s")

    monkeypatch.setattr("lockedenv.host.nvidia_smi.ask", hang)
    with pytest.raises(
        GpuError, match="does not answer .no answer within 60 s.; the GPU or its"
    ):
        find_gpus(tmp_path, make_smi(tmp_path / "bin"))


def test_a_dead_gpu_fails_the_verifier_unless_gpus_are_off(tmp_path: Path) -> None:
    program = ROOT / "scripts/verify_environment.py"
    smi = make_smi(tmp_path / "bin", **NOTHING)
    environ = {**clean_environ(), **smi, "RUNPOD_GPU_COUNT": "1"}
    environ["PATH"] = f"{tmp_path / 'bin'}:{clean_environ()['PATH']}"
    command = [sys.executable, program, "--only", "driver,gpu-state"]
    done = sh(*command, check=False, env=environ)
    assert done.returncode == 1
    assert "FAIL  driver           nvidia-smi finds no GPU" in done.stdout, done.stdout
    assert "SKIP" not in done.stdout
    done = sh(*command, "--gpu", "off", check=False, env=environ)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("SKIP") == 2, done.stdout
