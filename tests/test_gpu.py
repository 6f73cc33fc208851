"""GPUs without one: what says that there should be one, several at once, what nvidia-smi says, LD_LIBRARY_PATH by experiment."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Dict, List

import pytest
from conftest import clean_environ, sh
from lockedenv.host import machine
from lockedenv.host.machine import MachineError
from lockedenv.verify import child
from lockedenv.verify.checklist import CHECKS, find_check
from lockedenv.verify.checks import Check, Result, failed, gpu, passed, skipped, warned, within
from lockedenv.verify.checks.surroundings import compile_problem, misleading

H100 = "NVIDIA H100 80GB HBM3"
NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that it is running."


def nvidia_smi(folder: Path, script: str = "") -> Dict[str, str]:
    """An environment whose PATH has this nvidia-smi; none without a script."""
    folder.mkdir(parents=True, exist_ok=True)
    if script:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "nvidia-smi").chmod(0o755)
    return {"PATH": str(folder)}


def rows(count: int) -> str:
    return f"for i in {' '.join(map(str, range(count)))}; do echo '{H100}, 550.54.14, 81559, 9.0, GPU-1, Disabled'; done"


NOTHING = "echo 'No devices were found'; exit 6"


@pytest.mark.parametrize(
    "signs, environ, script, said",
    [
        (
            [],
            {"RUNPOD_GPU_COUNT": "2"},
            "",
            r"no nvidia-smi \(RUNPOD_GPU_COUNT=2\); start the container",
        ),
        (["dev/nvidia0"], {}, "", r"no nvidia-smi \(\S+/dev/nvidia0\)"),
        (["proc/driver/nvidia/gpus/0000:1b:00.0"], {}, "", "no nvidia-smi"),
        (
            [],
            {"RUNPOD_GPU_COUNT": "1"},
            NOTHING,
            r"nvidia-smi finds no GPU, .* \(RUNPOD_GPU_COUNT=1\); the GPU has failed",
        ),
        (
            ["dev/nvidia3"],
            {},
            NOTHING,
            r"finds no GPU, and there should be one \(\S+/dev/nvidia3\)",
        ),
        ([], {}, NOTHING, r"finds no GPU, and there should be one \(its driver is here\)"),
        ([], {}, f"echo '{NOTHING}' >&2; exit 6", "finds no GPU"),
        (
            [],
            {"RUNPOD_GPU_COUNT": "8"},
            rows(7),
            "nvidia-smi shows 7 of the 8 GPUs that RUNPOD_GPU_COUNT promises; take another",
        ),
        (
            [],
            {},
            f'echo "{NO_DRIVER}"; exit 9',
            "nvidia-smi fails: NVIDIA-SMI has failed .* take another pod",
        ),
    ],
)
def test_a_gpu_that_should_be_there_is_missed(
    signs: List[str], environ: Any, script: str, said: str, tmp_path: Path
) -> None:
    for sign in signs:
        (tmp_path / "root" / sign).mkdir(parents=True)
    with pytest.raises(MachineError, match=said):
        machine.gpus(tmp_path / "root", {**environ, **nvidia_smi(tmp_path / "bin", script)})


def test_a_machine_without_any_sign_of_a_gpu_is_healthy_and_so_is_one_with_all_of_its_gpus(
    tmp_path: Path,
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()  # stays where a container sees the driver and no GPU
    for environ in (
        {},
        {"RUNPOD_GPU_COUNT": "0"},
        {"RUNPOD_GPU_COUNT": ""},
        {"RUNPOD_GPU_COUNT": "?"},
    ):
        assert machine.gpus(tmp_path, {**environ, **nvidia_smi(tmp_path / "none")}) == []
    environ = {
        "RUNPOD_GPU_COUNT": "2",
        "CUDA_VISIBLE_DEVICES": "0",
        **nvidia_smi(tmp_path / "bin", rows(2)),
    }
    assert [found.arch for found in machine.gpus(tmp_path, environ)] == ["90", "90"]


def test_a_dead_gpu_fails_the_verifier_unless_gpus_are_off(tmp_path: Path) -> None:
    program = Path(machine.__file__).parents[2] / "verify_environment.py"
    environ = {**clean_environ(), "RUNPOD_GPU_COUNT": "1"}
    environ["PATH"] = f"{nvidia_smi(tmp_path / 'bin', NOTHING)['PATH']}:{environ['PATH']}"
    done = sh(sys.executable, program, "--only", "driver,gpu-state", check=False, env=environ)
    assert (
        done.returncode == 1 and "FAIL  driver           nvidia-smi finds no GPU" in done.stdout
    ), done.stdout
    assert "SKIP" not in done.stdout
    done = sh(
        sys.executable,
        program,
        "--only",
        "driver,gpu-state",
        "--gpu",
        "off",
        check=False,
        env=environ,
    )
    assert done.returncode == 0 and done.stdout.count("SKIP") == 2, done.stdout


FIELDS = [f for f in gpu.QUERIES["gpu"] if "throttle" not in f]
WELL, ROWS = "0, Not Active, Not Active, Not Active, 16, 16", list(gpu.QUERIES["remapped-rows"])


def state(text: str, remapped: str = "No, No") -> Result:
    return gpu.state_verdict({"gpu": (FIELDS, text), "remapped-rows": (ROWS, remapped)})


@pytest.mark.parametrize("value", ["[N/A]", "[Not Supported]", "[n/a]", "0"])
def test_what_a_gpu_does_not_say_is_no_fault(value: str) -> None:
    assert state(WELL.replace("0", value, 1)).verdict == "pass"
    assert state(WELL, f"{value}, {value}").verdict == "pass"
    assert state(f"{WELL}\n{WELL}", "0, 0\n0, 0").verdict == "pass"


@pytest.mark.parametrize(
    "value, remedy", [("[GPU requires reset]", "must be reset"), ("[Unknown Error]", "is failing")]
)
@pytest.mark.parametrize("place", range(6))
def test_any_other_silence_is_a_failure(value: str, remedy: str, place: int) -> None:
    result = state(
        f"{WELL}\n" + ", ".join([*WELL.split(", ")[:place], value, *WELL.split(", ")[place + 1 :]])
    )
    assert (
        result.verdict == "fail"
        and result.summary.startswith("GPU 1: ")
        and value in result.summary
    )
    assert remedy in result.remedy and "take another pod" in result.remedy


def test_states_of_memory_slowdown_and_link() -> None:
    for remapped in ("Yes, No", "1, 0"):
        result = state(WELL, remapped)
        assert (
            result.verdict == "fail"
            and "memory rows wait for a reset to be remapped" in result.summary
        )
        assert "must be reset, which a pod cannot do: take another pod" in result.remedy
    result = state(f"{WELL}\n{WELL}", "No, No\nNo, Yes")
    assert (
        result.verdict == "fail" and "GPU 1: memory rows cannot be remapped: Yes" in result.summary
    )
    assert "is failing" in result.remedy
    failing = state(WELL.replace("0", "3", 1).replace("Not Active", "Active", 1))
    assert failing.verdict == "fail" and "uncorrected memory errors: 3" in failing.summary
    assert failing.details == ["GPU 0: hardware slowdown: Active"]
    braked = state(WELL + "\n" + WELL.replace("Not Active", "Active", 1).replace("16,", "8,", 1))
    assert braked.verdict == "warn" and "GPU 1: hardware slowdown: Active" in braked.summary
    assert "PCIe link has 8 of 16 lanes" in braked.details[0]


class Machine:
    """As much of a Context as the GPU's checks ask for."""

    device, gpu_mode = "cuda", "auto"


def test_a_field_that_the_driver_does_not_know_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """echo "$1" >> "$0.asked"
case "$1" in
  *clocks_event_reasons.hw_slowdown*) echo 'Field "clocks_event_reasons.hw_slowdown" is not a valid field to query.'; exit 2;;
  *clocks_event_reasons.hw_thermal*) echo 'Field "clocks_event_reasons.hw_thermal_slowdown" is not a valid field to query.'; exit 2;;
  *clocks_event_reasons.sw_th*) echo 'Field "clocks_event_reasons.sw_thermal_slowdown" is not a valid field to query.' >&2; exit 2;;
  *remapped_rows.failure*) echo 'Field "remapped_rows.failure" is not a valid field to query.'; exit 2;;
  *remapped*) echo Yes;;
  *) echo '0, Not Active, Not Active, Active, 16, 16';;
esac"""
    nvidia_smi(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = gpu.gpu_state(Machine())
    assert (
        result.verdict == "fail"
        and "GPU 0: memory rows wait for a reset to be remapped: Yes" in result.summary
    )
    assert result.details == ["GPU 0: thermal slowdown: Active"]
    asked = (tmp_path / "nvidia-smi.asked").read_text().splitlines()
    assert (
        len(asked) == 6
        and "clocks_throttle_reasons.hw_slowdown" in asked[3]
        and "event" not in asked[3]
    )


def test_nvidia_smi_that_fails_or_is_gone_is_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nvidia-smi does not answer: No such file" in gpu.gpu_state(Machine()).summary
    nvidia_smi(tmp_path, "echo sorry; exit 3")
    assert "nvidia-smi does not say: sorry" in gpu.gpu_state(Machine()).summary


@pytest.mark.parametrize(
    "speeds, verdict, said",
    [
        (
            [(H100, 700, 2.6)],
            "pass",
            "GPU 0, NVIDIA H100 80GB HBM3: bf16 product 700 TFLOP/s, copy 2.60 TB/s: 88% and 87% of the measured",
        ),
        ([(H100, 500, 2.9)], "warn", "63% and 97% of the measured reference"),
        (
            [(H100, 700, 2.6), (H100, 690, 2.7)],
            "pass",
            "GPU 1, NVIDIA H100 80GB HBM3: bf16 product 690 .* the slowest of 2 at work together",
        ),
        ([(H100, 700, 2.7), (H100, 580, 2.7)], "warn", "^GPU 1, .* 83% of what the other GPUs do$"),
        (
            [(H100, 700, 2.7), (H100, 690, 2.2), (H100, 710, 2.6)],
            "warn",
            "^GPU 1, .* 83% of what the other GPUs do$",
        ),
        ([(H100, 700, 2.7), ("NVIDIA L4", 70, 0.25)], "pass", "no reference figure for this GPU"),
        ([("NVIDIA H200", 700, 4.0)], "pass", "71% and 83% of the maker's peak"),
        ([("NVIDIA H200", 550, 4.0)], "warn", "56% and 83% of the maker's peak"),
        ([("NVIDIA H200", 700, 3.0)], "warn", "71% and 62% of the maker's peak"),
        ([("NVIDIA A100-SXM4-80GB", 240, 1.7)], "pass", "77% and 83% of the maker's peak"),
        ([(f"{H100} MIG 1g.10gb", 90, 0.3)], "pass", "no reference figure for this GPU"),
    ],
)
def test_speeds(speeds: Any, verdict: str, said: str) -> None:
    result = gpu.speed_verdict(speeds)
    assert result.verdict == verdict and re.search(said, result.summary), result.summary
    assert (
        len(result.measured) == 2 * len(speeds)
        and result.measured["GPU 0 bf16_tflop_per_s"] == speeds[0][1]
    )


def test_the_measured_gpu_passes_by_its_makers_peak_too() -> None:
    assert 798 / 989 > gpu.FLOORS[gpu.PEAK][0] > 0.5 and 3.0 / 3.35 > gpu.FLOORS[gpu.PEAK][1] > 0.6


def test_results_of_several_gpus_are_one() -> None:
    good = [passed("loss 1.0", loss=1.0), passed("loss 1.1", loss=1.1)]
    assert child.merged(good[:1]) == good[0]
    both = child.merged(good)
    assert both.summary == "on each of 2 GPUs; GPU 0: loss 1.0"
    assert both.measured == {"GPU 0 loss": 1.0, "GPU 1 loss": 1.1}
    bad = child.merged([*good, failed("loss 9.0", "take another pod", ["a detail"], loss=9.0)])
    assert (bad.verdict, bad.summary, bad.remedy, bad.details) == (
        "fail",
        "GPU 2: loss 9.0",
        "take another pod",
        ["a detail"],
    )
    assert child.merged([good[0], warned("hm", "look")]).summary == "GPU 1: hm"
    assert child.merged([good[0], skipped("no g++")]).verdict == "skip"


class Torch(types.ModuleType):
    """torch.cuda with a number of GPUs, of which one is current."""

    def __init__(self, count: int) -> None:
        super().__init__("torch")
        self.current = 0
        self.cuda = types.SimpleNamespace(
            device_count=lambda: count, set_device=lambda index: setattr(self, "current", index)
        )


def test_a_check_runs_on_each_gpu_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, seen = Torch(3), []
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work(device: str) -> Result:
        Path("model").mkdir()
        seen.append(torch.current)
        if fault and torch.current == 1:
            raise RuntimeError("illegal  memory access")
        return passed(f"on {device}")

    check = Check("work", "it works", work, remedy="another pod", child=True, each_gpu=True)
    fault = False
    assert child.outcome(check, "cuda").summary == "on each of 3 GPUs; GPU 0: on cuda" and seen == [
        0,
        1,
        2,
    ]
    fault = True
    result = child.outcome(check, "cuda")
    assert (result.verdict, result.summary) == (
        "fail",
        "GPU 1: RuntimeError: illegal memory access",
    ) and seen[3:] == [0, 1]
    monkeypatch.chdir(tmp_path)
    fault = False
    assert (
        child.outcome(check, "cpu").summary == "on cpu" and Path("model").exists()
    ), "once, where it was started"
    monkeypatch.setitem(sys.modules, "torch", Torch(0))
    none = child.outcome(check, "cuda")
    assert (none.verdict, none.summary) == ("fail", "torch finds no GPU")


def test_which_checks_run_on_each_gpu() -> None:
    each = {check.name for check in CHECKS if check.each_gpu}
    assert each == {
        "torch",
        "sdpa",
        "flash-attn",
        "bitsandbytes",
        "transformers",
        "qlora",
        "accelerate",
    }
    assert "first GPU" in find_check("async-error").proves


def test_the_time_limit_is_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Check("work", "it works", passed, timeout=1, child=True, each_gpu=True)
    monkeypatch.setattr(child, "gpu_nodes", lambda: [Path("/dev/nvidia0"), Path("/dev/nvidia1")])
    slow = Path("/bin/sh")

    def limit(check: Check, device: str) -> str:
        return child.run_child(check, slow, device, {}).summary

    monkeypatch.setattr(child, "started", lambda command, **options: hanging())
    assert (
        limit(check, "cuda") == "no answer within 2 s; stopped"
        and limit(check, "cpu") == "no answer within 1 s; stopped"
    )


def hanging() -> Any:
    class Hanging:
        def wait(self, limit: float) -> int:
            raise subprocess.TimeoutExpired("work", limit)

    return contextlib.nullcontext(Hanging())


def test_within_names_what_is_out_of_its_bound() -> None:
    assert within({"a": (1e-3, 1e-2)}, "cpu", "r").summary == "cpu: a 1.0e-03 (bound 1.0e-02)"
    result = within({"a": (1e-3, 1e-2), "b": (float("nan"), 1.0), "c": (2.0, 1.0)}, "cpu", "r")
    assert result.verdict == "fail" and result.summary == "cpu: b nan (bound 1.0e+00) (and 1 more)"
    assert within({f"c{i}": (i / 10, 1.0) for i in range(8)}, "cpu", "r").summary.startswith(
        "cpu: 8 cases; nearest the bound: c7 "
    )


def test_what_torch_compile_lacks_is_known_beforehand(tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path)}
    problem = compile_problem(tmp_path, "pip", bare)
    assert problem and "there is no g++" in problem and "apt-get install -y g++" in problem
    assert compile_problem(tmp_path, "conda", bare) is None
    assert compile_problem(tmp_path, "pip", {**bare, "CXX": "clang++"}) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/g++").write_text("#!/bin/sh\n")
    (tmp_path / "bin/g++").chmod(0o755)
    assert compile_problem(tmp_path, "pip", bare) is None


@pytest.mark.parametrize(
    "name, real, blamed",
    [
        ("libnvJitLink.so.12", "libnvJitLink.so.12.1.105", True),
        ("libnvJitLink.so.12", "libnvJitLink.so.12", True),  # of what version it does not say
        ("libnvJitLink.so.12", "libnvJitLink.so.12.4.127", False),
        ("libnvJitLink.so.12", "libnvJitLink.so.12.8.93", False),
        ("libnvJitLink.so.13", "libnvJitLink.so.13.0.88", False),
        ("libcudnn_ops.so.9", "libcudnn_ops.so.9.5.1", True),
        ("libcudnn_graph.so.9", "libcudnn_graph.so.9.1.0", False),
        ("libcudnn.so.9", "libcudnn.so.9.5.1", False),
        ("libcublas.so.12", "libcublas.so.12.8.4.1", False),
        ("libcudart.so.12", "libcudart.so.12.8.90", False),
        ("libnccl.so.2", "libnccl.so.2.25.1", False),
    ],
)
def test_which_libraries_on_ld_library_path_are_blamed(
    name: str, real: str, blamed: bool, tmp_path: Path
) -> None:
    (tmp_path / real).touch()
    if name != real:
        (tmp_path / name).symlink_to(real)
    wrong = misleading(
        tmp_path / "env",
        {"LD_LIBRARY_PATH": f"/usr/local/nvidia/lib:{tmp_path}"},
        "12.4",
        "9.1.0.70",
    )
    assert bool(wrong) == blamed
    if blamed:
        assert (
            wrong[0][0]
            == f"LD_LIBRARY_PATH has {tmp_path}, whose {name} is found before the locked one"
        )
    assert misleading(tmp_path, {"LD_LIBRARY_PATH": str(tmp_path)}, "12.4", "9.1.0") == []


def test_what_is_blamed_is_what_torch_takes_from_ld_library_path(
    pip_environment: Path, tmp_path: Path
) -> None:
    """The experiment of surroundings.misleading: copies of the libraries on LD_LIBRARY_PATH, and which of them are mapped."""
    found = sorted((pip_environment / "lib").glob("python3*/site-packages/nvidia/*/lib/lib*.so*"))
    for library in found:
        (
            shutil.copy2(library, tmp_path)
            if library.stat().st_dev != tmp_path.stat().st_dev
            else os.link(library, tmp_path / library.name)
        )
    program = """
import ctypes, re, torch
torch.backends.cudnn.version()
for part in ("Adv", "Cnn", "Graph", "Ops"):
    getattr(ctypes.CDLL("libcudnn.so.9"), f"cudnn{part}VersionCheck")()
torch.linalg.inv(torch.eye(2))
ctypes.CDLL(torch.__path__[0] + "/lib/libtorch_cuda_linalg.so")
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if re.search(r"/lib(cu|nv|nccl)", line)}), sep="\\n")
"""
    environ = clean_environ(LD_LIBRARY_PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    mapped = [
        Path(line)
        for line in sh(
            pip_environment / "bin/python", "-c", program, env=environ
        ).stdout.splitlines()
    ]
    taken = {path.name for path in mapped if path.parent == tmp_path}
    assert taken == {
        "libnvJitLink.so.12",
        *(f"libcudnn_{part}.so.9" for part in ("adv", "cnn", "graph", "ops")),
    }
    assert {"libcublas.so.12", "libcudart.so.12", "libnccl.so.2", "libcupti.so.12"} <= {
        p.name for p in mapped
    } - taken
