"""Runs in the environment under test: the numerical checks pass for right kernels and fail for wrong ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any, List

import pytest
import torch
from lockedenv.host.launchers import child_environment
from lockedenv.spec import environment
from lockedenv.verify import child
from lockedenv.verify.checklist import find_check
from lockedenv.verify.checks import compute, data, gpu, kernels, training

CUDA = environment.of(Path(sys.prefix)).cuda("pip")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")


def flash_attn_module(wrong: float = 0.0, ignore_causal: bool = False) -> Any:
    """flash-attn's two functions in plain torch, right or wrong."""

    def dense(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
        parts = (x.transpose(1, 2) for x in (q, k, v))
        return kernels.plain(*parts, causal and not ignore_causal).transpose(1, 2) * (1 + wrong)

    def packed(q: Any, k: Any, v: Any, ends: Any, _: Any, *__: Any, causal: bool = False) -> Any:
        lengths = (ends[1:] - ends[:-1]).tolist()
        rows = zip(*(x.split(lengths) for x in (q, k, v)))
        return torch.cat([dense(*(x[None] for x in row), causal=causal)[0] for row in rows])

    module = types.ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_varlen_func = dense, packed  # type: ignore[attr-defined]
    return module


COMPARE = kernels.compare


def compare_shorter(kernel: Any, reference: Any, shape: Any, *more: Any) -> Any:
    """Sequences of 128 in place of 256 and 512: half precision is slow on a CPU."""
    return COMPARE(kernel, reference, tuple(128 if n in (256, 512) else n for n in shape), *more)


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compare", compare_shorter)


@pytest.mark.usefixtures("shorter")
def test_flash_attn_check_passes_right_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_module())
    result = kernels.flash_attn("cpu")
    assert result.verdict == "pass" and "10 cases" in result.summary


@pytest.mark.usefixtures("shorter")
@pytest.mark.parametrize(
    "fault", [{"wrong": 0.05}, {"ignore_causal": True}, {"wrong": float("nan")}]
)
def test_flash_attn_check_fails_wrong_kernels(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn_module(**fault))
    result = kernels.flash_attn("cpu")
    assert (
        result.verdict == "fail"
        and "bound" in result.summary
        and "delete its wheel" in result.remedy
    )


def test_sdpa_check_fails_a_wrong_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: right(*a, **k) * 1.05
    )
    assert kernels.sdpa("cpu").verdict == "fail"


def test_torch_check_fails_a_wrong_product_and_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compute.torch_arithmetic("cpu").verdict == "pass"
    right = torch.Tensor.__matmul__

    def wrong(a: Any, b: Any) -> Any:
        return right(a, b) * (1 if a.dtype == torch.float64 else 1.01)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", wrong)
        result = compute.torch_arithmetic("cpu")
        assert (
            result.verdict == "fail"
            and "bfloat16 product" in result.summary
            and "another pod" in result.remedy
        )
    total = torch.Tensor.sum
    monkeypatch.setattr(
        torch.Tensor, "sum", lambda s, *a: total(s, *a) * (1 if s.dtype == torch.float64 else 1.001)
    )
    assert "sum" in compute.torch_arithmetic("cpu").summary


def test_async_error_check_sees_a_lost_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__getitem__", lambda self, index: self)
    assert compute.async_error("cpu").verdict == "fail"
    with pytest.raises(
        RuntimeError, match="NVIDIA"
    ):  # no GPU to raise it: that is not the error which was asked for
        compute.async_error("cuda")


def test_torch_build_check_names_a_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    result = compute.torch_build("cpu")
    assert result.verdict == "fail" and f"is built for CUDA none, not {CUDA}" in result.summary


def test_torch_build_check_without_a_usable_gpu_fails() -> None:
    result = compute.torch_build("cuda")
    assert result.verdict == "fail" and "torch finds no usable GPU" in result.summary


@pytest.mark.parametrize(
    "capability, runs",
    [((9, 0), True), ((8, 0), True), ((8, 9), True), ((10, 0), True), ((7, 0), False)],
)
def test_which_gpus_the_locked_build_has_code_for(capability: Any, runs: bool) -> None:
    archs = ["sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]
    assert compute.runs_on(archs, *capability) is runs


def test_torch_compile_check_fails_when_compiled_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: lambda x: model(x) * 1.1)
    result = compute.torch_compile("cpu")
    assert result.verdict == "fail" and "difference from eager" in result.summary


def test_bitsandbytes_check_names_the_wrong_library_and_wrong_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = kernels.bitsandbytes("cuda")
    assert (
        result.verdict == "fail"
        and f"torch needs libbitsandbytes_cuda{CUDA.replace('.', '')}.so" in result.summary
    )
    import bitsandbytes.functional as functional
    from bitsandbytes import cextension

    with monkeypatch.context() as patch:  # no library of this CUDA is packed: the nearest is taken
        patch.setattr(
            cextension,
            "lib",
            types.SimpleNamespace(_lib=types.SimpleNamespace(_name="libbitsandbytes_cuda128.so")),
        )
        patch.setattr(torch.version, "cuda", "12.9")
        with pytest.raises((RuntimeError, AssertionError), match="NVIDIA|CUDA"):
            kernels.bitsandbytes("cuda")
        patch.setattr(torch.version, "cuda", "13.9")
        assert (
            "loaded libbitsandbytes_cuda128.so, torch needs" in kernels.bitsandbytes("cuda").summary
        )
    right = functional.int8_vectorwise_dequant
    monkeypatch.setattr(functional, "int8_vectorwise_dequant", lambda *a: right(*a) * 1.05)
    result = kernels.bitsandbytes("cpu")
    assert result.verdict == "fail" and "int8" in result.summary


def test_training_checks_see_what_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: None)
        result = training.qlora("cpu")
        assert result.verdict == "fail" and "expected the adapters alone" in result.summary
    with monkeypatch.context() as patch:
        from accelerate import Accelerator

        patch.setattr(Accelerator, "load_state", lambda self, path: None)
        assert (
            "difference of the losses after load_state" in training.accelerate_resume("cpu").summary
        )
    from transformers import LlamaForCausalLM

    load_right = LlamaForCausalLM.from_pretrained

    def damaged(path: str, **options: Any) -> Any:
        model = load_right(path, **options)
        model.lm_head.weight.data[0] += 1
        return model

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", damaged)
    assert (
        "the logits differ after saving and loading" in training.transformers_model("cpu").summary
    )


def test_data_checks_see_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from scipy import stats

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_from_disk", lambda path: {"square": [0]})
        assert data.datasets_roundtrip("cpu").verdict == "fail"
    monkeypatch.setattr(stats, "false_discovery_control", lambda p: p)
    result = data.statistics("cpu")
    assert result.verdict == "fail" and "Benjamini-Hochberg" in result.summary


def sdpa_as_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, cudnn: Any, others: Any = kernels.plain
) -> Any:
    """The check with all four backends on the CPU; `cudnn` stands for cuDNN's, and `others` for theirs."""
    monkeypatch.setattr(kernels, "compare", lambda *about: compare_shorter(*about[:4], "cpu"))

    def kernel(q: Any, k: Any, v: Any, is_causal: bool) -> Any:
        backend = cudnn if torch.backends.cuda.cudnn_sdp_enabled() else others
        return backend(q, k, v, is_causal)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    return kernels.sdpa


def raising(said: str) -> Any:
    def kernel(*tensors: Any) -> Any:
        raise RuntimeError(said)

    return kernel


NO_PLAN = [f"cuDNN Frontend error: [cudnn_frontend] Error: {said}" for said in kernels.NO_PLAN[:2]]


@pytest.mark.parametrize(
    "said",
    [
        *NO_PLAN,
        "No available kernel. Aborting execution.",
        "No valid engine configs for Matmul_MUL_",
    ],
)
def test_cudnn_attention_without_a_plan_is_told_and_no_failure(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = sdpa_as_on_a_gpu(monkeypatch, raising(said))("cuda")
    assert result.verdict == "pass", result.summary
    assert (
        "; not available, and used only on demand: cudnn_attention causal" in result.summary
        and said[:60] in result.summary
    )


def test_cudnn_attention_that_is_wrong_or_breaks_off_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        result = sdpa_as_on_a_gpu(patch, lambda *inputs: kernels.plain(*inputs) * 1.05)("cuda")
        assert result.verdict == "fail" and "cudnn_attention" in result.summary
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="illegal memory access"):
        sdpa_as_on_a_gpu(patch, raising("CUDA error: an illegal memory access"))("cuda")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="No available kernel"):
        sdpa_as_on_a_gpu(patch, kernels.plain, others=raising("No available kernel"))("cuda")


def test_gpu_speed_measures_each_gpu_and_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that each GPU's work moves on: GPU 1 is half as fast at products."""
    clocks, order = [0.0, 0.0], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            pass

        def record(self, stream: int) -> None:
            self.at, self.waits = clocks[stream], order.append(stream)

        def elapsed_time(self, end: Any) -> float:
            return float(end.at - self.at)

    def work(milliseconds: Any) -> Any:
        def run(a: Any, b: Any) -> None:
            clocks[order[-1]] += milliseconds[order[-1]]

        return run

    for name, fake in (
        ("Event", Event),
        ("device_count", lambda: 2),
        ("current_stream", lambda i: i),
        ("synchronize", lambda i: None),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: options["device"])
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: options["device"])
    monkeypatch.setattr(torch, "matmul", work([1.5, 3.0]))
    monkeypatch.setattr(torch.Tensor, "copy_", work([0.75, 0.75]))
    result = gpu.gpu_speed("cuda")
    assert result.verdict == "warn" and result.summary.startswith(
        "GPU 1, NVIDIA H100 80GB HBM3: bf16 product 367 TFLOP/s, copy 2.86 TB/s"
    )
    assert result.measured["GPU 0 bf16_tflop_per_s"] == 733.0 and order[:4] == [
        0,
        1,
        0,
        1,
    ], "in turns, not one after another"


def test_torch_compile_check_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if not Path(sys.prefix, "bin/g++").exists():
        result = compute.torch_compile("cpu")
        assert result.verdict == "skip" and "apt-get install -y g++" in result.summary
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert f"there is no {tmp_path}/Python.h" in compute.torch_compile("cpu").summary


SESSION = (Path(__file__).parents[2] / "docs/RUNPOD_H100_SESSION.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", SESSION, re.S)]


def test_the_session_documents_qlora_run_trains(folder: None) -> None:
    """The very lines of the document, on the CPU: a tiny model, and SDPA in place of flash-attn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {
        word: number
        for number, word in enumerate(
            ["[UNK]", *"The locked environment is the verified one .".split()]
        )
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained("tiny")
    training.tiny_llama().save_pretrained("tiny", safe_serialization=True)
    code = BLOCKS[0]
    for ours, here in (
        ('"meta-llama/Llama-3.1-8B"', '"tiny"'),
        ('"flash_attention_2"', '"sdpa"'),
        ('{"": 0}', '{"": "cpu"}'),
        ('"cuda"', '"cpu"'),
        ('"/workspace/results/adapter"', '"adapter"'),
    ):
        assert ours in code
        code = code.replace(ours, here)
    losses = []
    scope = {"print": lambda *said: losses.append(float(said[-1]))}
    exec(compile(code, "RUNPOD_H100_SESSION.md", "exec"), scope)
    assert Path("adapter/adapter_model.safetensors").exists()
    assert len(losses) == 10 and losses[-1] < losses[0]


def test_the_session_documents_way_to_resume_a_trainer_works(
    folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.trainer

    if environment.of(Path(sys.prefix)).name == "current":
        assert training.trainer_resume("cpu").verdict == "pass", "there is nothing to get round"
        return
    assert training.trainer_resume("cpu").verdict == "warn"
    monkeypatch.setattr(
        transformers.trainer, "check_torch_load_is_safe", None
    )  # put back afterwards
    exec(BLOCKS[1])
    assert training.trainer_resume("cpu").verdict == "pass"


def test_importing_the_stack_before_a_fork_asks_nothing_of_a_gpu_and_starts_nothing() -> None:
    """As if there were a GPU: whatever asks for it raises. bitsandbytes, which is left out, does ask."""
    program = """
import importlib.util, psutil, sys, torch

def touched():
    def touch(*about, **more):
        raise SystemExit("CUDA was touched")
    return touch

torch.cuda.is_available = lambda: True  # NVML's word, for which PYTORCH_NVML_BASED_CUDA_CHECK is set: it is no use of CUDA
for name in "device_count get_device_properties get_device_capability current_device init _lazy_init".split():
    setattr(torch.cuda, name, touched())
torch._C._cuda_getDeviceCount = touched()
for module in sys.argv[1:]:
    if importlib.util.find_spec(module.split(".")[0]):
        importlib.import_module(module)
started = psutil.Process().children()
print(started, "bitsandbytes" in sys.modules, torch.cuda._is_in_bad_fork(), flush=True)
import bitsandbytes
"""
    environ = {
        **child_environment(Path(sys.prefix), "cuda", dict(os.environ)),
        "TORCH_WARM_POOL": "0",
    }
    command = [sys.executable, "-c", program, *child.STACK]
    done = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    before, _, after = done.stdout.partition("\n")
    assert before == "[] False False" and "CUDA was touched" in after, done.stdout


def test_a_forked_check_computes_with_all_threads_and_trains(tmp_path: Path) -> None:
    """With a compiler that has not the CPU's vector instructions: inductor goes without them, so a user's torch.compile works."""
    compiler = shutil.which("g++")
    refusing = f'#!/bin/sh\ncase "$*" in *-mavx*) echo "refused: $*" >>{tmp_path}/refused; exit 1 ;; esac\nexec {compiler} "$@"\n'
    (tmp_path / "g++").write_text(refusing)
    (tmp_path / "g++").chmod(0o755)
    python, path = Path(sys.executable), f"{tmp_path}:{os.environ['PATH']}"
    environ = child_environment(Path(sys.prefix), "cpu", {**os.environ, "PATH": path})
    forked: List[int] = []
    with child.forking(python, "cpu", environ) as fork:

        def noted(*about: Any) -> int:
            forked.append(fork(*about))
            return forked[-1]

        names = "torch-compile torch sdpa trainer-resume imports statistics".split()
        verdicts = [
            child.run_child(find_check(name), python, "cpu", environ, noted).verdict
            for name in names
        ]
    resume = "pass" if environment.of(Path(sys.prefix)).name == "current" else "warn"
    assert verdicts == ["pass", "pass", "pass", resume, "pass", "pass"]
    assert all(forked) and len(set(forked)) == len(names), "each was a fork"
    assert (tmp_path / "refused").exists()
