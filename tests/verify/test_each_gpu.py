"""A check that runs on each GPU: in a folder of its own, with a time limit for each, as one result."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from lockedenv.spec.environment import Environment
from lockedenv.verify import child, runner
from lockedenv.verify.checklist import CHECKS, find_check
from lockedenv.verify.checks import (
    Check,
    Context,
    Result,
    child_check,
    compiled,
    failed,
    passed,
    skipped,
    warned,
)


def test_results_of_several_gpus_are_one() -> None:
    good = [passed("loss 1.0", loss=1.0), passed("loss 1.1", loss=1.1)]
    assert child.merge(good[:1]) == good[0]
    both = child.merge(good)
    assert both.summary == "on each of 2 GPUs; GPU 0: loss 1.0"
    assert both.measured == {"GPU 0 loss": 1.0, "GPU 1 loss": 1.1}
    bad = child.merge(
        [*good, failed("loss 9.0", "take another pod", ["a detail"], loss=9.0)]
    )
    assert (bad.verdict, bad.summary, bad.remedy, bad.details) == (
        "fail",
        "GPU 2: loss 9.0",
        "take another pod",
        ["a detail"],
    )
    assert child.merge([good[0], warned("hm", "look")]).summary == "GPU 1: hm"
    assert child.merge([good[0], skipped("no g++")]).verdict == "skip"


class Torch(types.ModuleType):
    """torch.cuda with a number of GPUs, of which one is current."""

    def __init__(self, count: int) -> None:
        super().__init__("torch")
        self.current = 0
        self.cuda = types.SimpleNamespace(
            device_count=lambda: count,
            set_device=lambda index: setattr(self, "current", index),
        )


def test_a_check_runs_on_each_gpu_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = Torch(3)
    seen = []
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work(device: str) -> Result:
        Path("model").mkdir()
        seen.append(torch.current)
        if fault and torch.current == 1:
            raise RuntimeError("illegal  memory access")
        return passed(f"on {device}")

    check = Check(
        "work", "it works", work, remedy="another pod", child=True, each_gpu=True
    )
    fault = False
    assert child.run_here(check, "cuda").summary == "on each of 3 GPUs; GPU 0: on cuda"
    assert seen == [0, 1, 2]
    fault = True
    result = child.run_here(check, "cuda")
    assert (result.verdict, result.summary) == (
        "fail",
        "GPU 1: RuntimeError: illegal memory access",
    )
    assert seen[3:] == [0, 1]
    monkeypatch.chdir(tmp_path)
    fault = False
    assert (
        child.run_here(check, "cpu").summary == "on cpu"
    ), "once, where it was started"
    assert Path("model").exists(), "once, where it was started"
    monkeypatch.setitem(sys.modules, "torch", Torch(0))
    none = child.run_here(check, "cuda")
    assert (none.verdict, none.summary) == ("fail", "torch finds no GPU")


def test_which_checks_run_on_each_gpu() -> None:
    each = {check.name for check in CHECKS if check.each_gpu}
    assert each == {
        "torch",
        "triton",
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
    monkeypatch.setattr(
        runner, "find_gpu_nodes", lambda: [Path("/dev/nvidia0"), Path("/dev/nvidia1")]
    )
    slow = Path("/bin/sh")

    def limit(check: Check, device: str) -> str:
        return runner.Children(slow, device, {}).run(check).summary

    monkeypatch.setattr(child, "started", lambda command, **options: hanging())
    assert limit(check, "cuda") == "no answer within 2 s; stopped"
    assert limit(check, "cpu") == "no answer within 1 s; stopped"


def test_the_time_of_compiling_is_beside_that_of_computing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is compiled at first use is compiled once, whatever the number of GPUs."""
    check = Check("work", "it works", passed, child=True, each_gpu=True, timeout=1)
    compiling = replace(check, compile_timeout=30)
    monkeypatch.setattr(
        runner, "find_gpu_nodes", lambda: [Path("/dev/nvidia0"), Path("/dev/nvidia1")]
    )
    monkeypatch.setattr(child, "started", lambda command, **options: hanging())
    limits = []
    for one in (check, compiling):
        result = runner.Children(Path("/bin/sh"), "cuda", {}).run(one)
        limits.append(result.summary)
    assert limits == ["no answer within 2 s; stopped", "no answer within 32 s; stopped"]
    flash_attention = find_check("flash-attn")
    assert flash_attention.compile_timeout > flash_attention.timeout


def hanging() -> Any:
    class Hanging:
        def wait(self, limit: float) -> int:
            raise subprocess.TimeoutExpired("work", limit)

    return contextlib.nullcontext(Hanging())


# What a check of several GPUs says of itself


ALL_REDUCE = child_check("all-reduce", "GPUs add up the same", gpu=True, gpus=2)(
    lambda device: passed("")
)


class Listener:
    def result(self, result: Result) -> None:
        pass

    def running(self, text: Any, begins: bool = False) -> None:
        pass


def run_on(
    gpus: int, monkeypatch: pytest.MonkeyPatch, gpu_error: str = ""
) -> tuple[str, str]:
    """The verdict and the summary of ALL_REDUCE on a machine with so many GPUs."""
    monkeypatch.setattr(runner.Children, "run", lambda self, check: passed("it ran"))
    installed: Any = types.SimpleNamespace(
        prefix=Path("/env"), python=Path("/env/bin/python")
    )
    gpu: Any = None
    context = Context(
        installed, Environment(Path("/")), gpus=[gpu] * gpus, gpu_error=gpu_error
    )
    [result] = runner.run_checks(context, [ALL_REDUCE], Listener())
    return result.verdict.value, result.summary


def test_a_check_of_two_gpus_is_skipped_where_one_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = "no NVIDIA GPU on this machine, and this has no CPU path"
    assert run_on(0, monkeypatch) == ("skip", reason)
    assert run_on(1, monkeypatch) == ("skip", "needs 2 GPUs; this machine has 1")
    assert run_on(2, monkeypatch) == ("pass", "it ran")


def test_a_check_of_two_gpus_runs_where_nobody_knows_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_on(0, monkeypatch, "nvidia-smi fails") == ("pass", "it ran")


@pytest.mark.parametrize("found", [skipped("one GPU"), compiled("sm_90")])
def test_a_check_that_skips_itself_on_a_gpu_has_failed(
    found: Result, tmp_path: Path
) -> None:
    (tmp_path / child.LOG).touch()
    (tmp_path / child.ANSWER).write_text(json.dumps(asdict(found)))
    for device, verdict in (("cuda", "fail"), ("cpu", found.verdict)):
        task = child.ChildTask("all-reduce", device, "", tmp_path)
        result = child.read_result(ALL_REDUCE, task, child.Ended(0), 1)
        assert result.verdict == verdict
        assert found.summary in result.summary
