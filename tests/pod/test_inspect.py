"""What a pod is worth, decided on stand-ins of the driver: a healthy H100, error 802, a taken GPU."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fixtures.commands import ROOT
from fixtures.gpu_stand_ins import make_driver, make_smi
from fixtures.machine import Machine
from lockedenv.host.finding import Finding, FindingOutcome, failed, passed, warned
from lockedenv.host.gpus import Gpu
from lockedenv.host.process import CommandResult
from lockedenv.pod import cuda
from lockedenv.pod.verdict import conclude, inspect_machine, judge_no_gpu

GIB = 1024**3
H100 = Gpu("NVIDIA H100 80GB HBM3", "550.90", 80 * GIB, "9.0", "GPU-1", False)
INFOROM = "WARNING: infoROM is corrupted at gpu 0000:84:00.0"
Driver = Callable[..., dict[str, str]]


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    """Makes a libcuda and an nvidia-smi; gives the environment in which they are found."""

    def make(**values: Any) -> dict[str, str]:
        return make_driver(tmp_path / "driver", **values)

    return make


def inspect(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Finding]:
    """The findings in an environment, by check."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return {finding.check: finding for finding in inspect_machine()}


def test_a_healthy_h100_is_fine(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inspect(driver(), monkeypatch)
    assert found["pod-cuda"].verdict is FindingOutcome.PASS
    assert (
        found["pod-cuda"].summary
        == "a context on each of 1 GPUs, and its memory is free"
    )
    verdicts = {check: finding.verdict.value for check, finding in found.items()}
    # What this machine is, and whether its log may be read, are its own affair.
    del verdicts["pod-host"]
    del verdicts["pod-xid"]
    assert verdicts == {
        "pod-gpus": "pass",
        "pod-cuda": "pass",
        "pod-state": "pass",
        "pod-power": "pass",
        "pod-peers": "skip",
        "pod-nvlink": "skip",
    }


@pytest.mark.parametrize(
    "values, check, verdict, text",
    [
        (
            {"INIT": 802},
            "pod-cuda",
            "fail",
            "cuInit: error 802, system not ready: the NVLink fabric manager",
        ),
        ({"INIT": 999}, "pod-cuda", "fail", "cuInit: error 999"),
        ({"INIT": -1}, "pod-cuda", "fail", "libcuda: exit -6"),
        ({"CONTEXT": 46}, "pod-cuda", "warn", "GPU 0: the device is busy"),
        ({"CONTEXT": 2}, "pod-cuda", "warn", "GPU 0: out of memory"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "pod-cuda", "pass", "a context on each"),
        (
            {"COUNT": 1, "GPUS": "2", "MIG": "Enabled"},
            "pod-cuda",
            "pass",
            "a context on each",
        ),
        (
            {"ECC": "[Insufficient Permissions]"},
            "pod-state",
            "pass",
            "no memory errors",
        ),
        (
            {"MEMORY": "[Insufficient Permissions]"},
            "pod-gpus",
            "pass",
            "1 x NVIDIA H100",
        ),
        ({"WARNING": INFOROM, "EXIT": "14"}, "pod-gpus", "warn", "1 x NVIDIA H100"),
        ({"WARNING": INFOROM, "EXIT": "14"}, "pod-state", "warn", INFOROM),
        ({"WARNING": INFOROM, "EXIT": "14"}, "pod-power", "pass", "no GPU is limited"),
        (
            {"CONTEXT": 214},
            "pod-cuda",
            "fail",
            "an uncorrectable memory error (ECC): this GPU does not work: give this pod back",
        ),
        (
            {"USED": 40 << 30},
            "pod-cuda",
            "warn",
            "GPU 0: 42.9 GB of 85.9 GB are in use already",
        ),
        (
            {"COUNT": 2, "GPUS": "4"},
            "pod-cuda",
            "fail",
            "CUDA sees 2 of the 4 GPUs that nvidia-smi shows",
        ),
        ({"ECC": "3"}, "pod-state", "fail", "uncorrected memory errors: 3"),
        ({"ROWS": "Yes"}, "pod-state", "fail", "memory rows cannot be remapped"),
        (
            {"RECOVERY": "Reboot"},
            "pod-state",
            "fail",
            "asks for a recovery of the GPU: Reboot",
        ),
        ({"POWER": "350.00"}, "pod-power", "warn", "GPU 0: limited to 350 W of 700 W"),
        ({"POWER": "[N/A]", "USUAL": "[N/A]"}, "pod-power", "skip", "does not tell"),
        ({"POWER": "what is this"}, "pod-power", "skip", "does not tell"),
        ({"COUNT": 2}, "pod-peers", "pass", "each of 2 GPUs reaches"),
        (
            {"COUNT": 2, "PEER": 0},
            "pod-peers",
            "warn",
            "GPU 0 does not reach GPU 1's memory (and 1 more pairs): export NCCL_P2P_DISABLE=1",
        ),
        ({"COUNT": 2}, "pod-nvlink", "pass", "18 NVLinks are active on each of 2 GPUs"),
        (
            {"COUNT": 2, "LINKS": "17", "DOWN": "1"},
            "pod-nvlink",
            "warn",
            "GPU 0: 1 of 18 NVLinks are inactive",
        ),
        (
            {"COUNT": 2, "NAME": "NVIDIA H100 NVL", "LINKS": "12", "DOWN": "6"},
            "pod-nvlink",
            "pass",
            "12 NVLinks are active on each of 2 GPUs",
        ),
        (
            {"COUNT": 8, "LINKS_5": "0"},
            "pod-nvlink",
            "warn",
            "GPU 5: no NVLink is active",
        ),
        (
            {"RUNPOD_GPU_COUNT": "8"},
            "pod-gpus",
            "fail",
            "nvidia-smi shows 1 of the 8 GPUs that RUNPOD_GPU_COUNT promises",
        ),
    ],
)
def test_what_is_wrong_with_a_gpu_is_named(
    values: dict[str, Any],
    check: str,
    verdict: str,
    text: str,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finding = inspect(driver(**values), monkeypatch)[check]
    assert finding.verdict.value == verdict, finding
    assert text in f"{finding.summary}: {finding.remedy}", finding


def test_a_driver_that_hangs_or_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*command: Any, **options: Any) -> CommandResult:
        return CommandResult(None, error="no answer within 15 s")

    monkeypatch.setattr(cuda, "ask", hang)
    found = cuda.judge_cuda(cuda.ask_cuda(), [H100])
    assert found.summary == "libcuda: no answer within 15 s"

    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    gone = cuda.judge_cuda(cuda.read_cuda(), [H100])
    assert gone.verdict is FindingOutcome.FAIL
    assert gone.summary == "libcuda: libcuda.so.1: cannot open"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"gpus": 1}', '{"gpus": [{}]}', "null"]
)
def test_an_answer_that_is_none_is_an_error(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*command: Any, **options: Any) -> CommandResult:
        return CommandResult(0, text, "first line\nlast line\n")

    monkeypatch.setattr(cuda, "ask", answer)
    assert cuda.ask_cuda().error == "exit 0: last line"


def test_the_conclusion_names_what_it_is_from() -> None:
    good = Finding(FindingOutcome.PASS, "well", check="pod-cuda")
    odd = Finding(FindingOutcome.WARN, "odd", "look", check="pod-host")
    bad = Finding(FindingOutcome.FAIL, "bad", "leave", check="pod-state")
    assert conclude([good]).text == "no problems found"
    assert conclude([good, odd]).text == "usable, with what is said of pod-host"
    assert conclude([good, odd, bad]).text == "give this pod back: pod-state"
    assert conclude([bad]).verdict is FindingOutcome.FAIL


def test_a_finding_as_the_manifest_has_it() -> None:
    schema = json.loads(
        (ROOT / "scripts/lockedenv/schemas/verify.schema.json").read_text()
    )
    for finding in (
        passed("well", rate=1.0),
        warned(["a", "b"], "look"),
        failed(["c"], "d"),
    ):
        row = {**finding.as_json(), "check": "pod-x"}
        jsonschema.validate(
            row, {**schema["$defs"]["result"], "$defs": schema["$defs"]}
        )
    assert warned(["a", "b", "c"], "look").summary == "a (and 2 more)"


def test_the_set_up_stops_on_a_bad_pod_before_anything_is_fetched(
    driver: Driver, machine: Machine
) -> None:
    environ = {**driver(INIT=802), "MAXIMALCAI_TEST": "1"}
    done = machine.setup("--flash-attn", "none", **environ)
    assert done.returncode == 1
    assert "give this pod back: pod-cuda: cuInit: error 802" in done.stdout, done.stdout
    assert not machine.prefix.exists()
    assert "error 802, system not ready" in done.stdout
    assert not (machine.cache / "pkgs").exists()
    done = machine.setup("--flash-attn", "none", "--check-pod", **environ)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "give this pod back: pod-cuda", done.stdout
    for check in ("pod-network", "pod-disk", "pod-ready"):
        assert check in done.stdout, done.stdout
    assert not machine.prefix.exists()


NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
)


def test_a_login_node_is_set_up_without_a_gpu(machine: Machine, tmp_path: Path) -> None:
    """nvidia-smi is installed there, no driver is loaded, and nothing says that there is a GPU."""
    environ = make_smi(tmp_path / "bin", SAYS=NO_DRIVER, EXIT="9")
    options = ["--arch", "90", "--flash-attn", "none", "--level", "quick"]
    done = machine.setup(*options, "--dry-run", **environ)
    assert done.returncode == 1, done.stdout
    assert (
        "such as a login node, is set up with --arch 90 --flash-attn none"
        in done.stdout
    )
    done = machine.setup(*options, "--any-pod", **environ)
    assert done.returncode == 0, done.stdout
    assert (
        "verified without a GPU, since nvidia-smi fails: NVIDIA-SMI has failed"
        in done.stdout
    )


def test_the_verdict_on_the_machine_is_in_the_manifest(
    machine: Machine, installed: None
) -> None:
    found = json.loads((machine.prefix / "maximalcai-manifest.json").read_text())["pod"]
    assert [row["check"] for row in found] == ["pod-gpus", "pod-host"]
    assert found[0]["verdict"] == "skip"
    schema = json.loads(
        (ROOT / "scripts/lockedenv/schemas/verify.schema.json").read_text()
    )
    for row in found:
        jsonschema.validate(
            row, {**schema["$defs"]["result"], "$defs": schema["$defs"]}
        )
    done = machine.setup("--check-pod", "--json")
    assert done.returncode in (1, 2)
    assert "give both, and no --check-pod" in done.stdout
    done = machine.setup("--check-pod")
    assert done.returncode == 0, done.stdout
    assert "s to an installed environment" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "environ, verdict",
    [
        ({}, FindingOutcome.SKIP),
        ({"RUNPOD_GPU_COUNT": "0"}, FindingOutcome.SKIP),
        ({"RUNPOD_GPU_COUNT": "abc"}, FindingOutcome.WARN),
    ],
)
def test_a_count_of_gpus_that_is_no_number_is_named_where_there_is_no_gpu(
    environ: dict[str, str], verdict: FindingOutcome
) -> None:
    finding = judge_no_gpu(environ)
    assert finding.verdict is verdict
    assert finding.summary.startswith("no NVIDIA GPU on this machine")
    if verdict is FindingOutcome.WARN:
        assert "RUNPOD_GPU_COUNT=abc is no number of GPUs" in finding.summary
