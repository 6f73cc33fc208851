"""What is compiled for the GPU when it is used: triton's kernels, and torch.compile's."""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from lockedenv.spec.gpu_target import (
    ARCHITECTURE_VARIABLE,
    GpuTarget,
    find_foreign_assembler,
    find_target,
)
from lockedenv.verify.checks import (
    FAIL,
    Result,
    check_each_gpu,
    child_check,
    compiled,
    failed,
    passed,
    relative,
    skipped,
    within,
)
from lockedenv.verify.checks.surroundings import compile_problem
from lockedenv.verify.machine_code import read_cubin_architecture
from lockedenv.verify.remedies import repair_command
from lockedenv.verify.variables import misleading_switches

REPAIR = repair_command(Path(sys.prefix))
REINSTALL = f"install triton again: {REPAIR}"
BLOCK = 1024
SCALE = 3
WARP = 32  # threads
# Each of these makes torch.compile give back what it was given (torch/_dynamo/config.py,
# torch/_dynamo/eval_frame.py), so that nothing is compiled.
SWITCHES = (
    "TORCH_COMPILE_DISABLE",
    "TORCHDYNAMO_DISABLE",
    "TORCHDYNAMO_SUPPRESS_ERRORS",
)


@check_each_gpu(
    "triton",
    "triton compiles a kernel to machine code with its own assembler, and on each GPU it is right",
    remedy=REINSTALL,
)
def triton_kernel(device: str) -> Result:
    switches = misleading_switches(os.environ, "triton")
    if switches:
        return failed(switches[0].problem, switches[0].remedy)
    # Not the user's cache: what is in it was compiled some other time.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        foreign = find_foreign_assembler(Path(sys.prefix), os.environ)
        if foreign:
            text = f"{foreign}={os.environ[foreign]} is an assembler from outside the prefix"
            return failed(text, f"unset {foreign}")
        if device == "cuda":
            return run_kernel(device)
        try:
            target = find_target(os.environ)
        except ValueError as error:
            return failed(str(error), f"unset {ARCHITECTURE_VARIABLE}")
        return compile_for(target)


def compile_for(target: GpuTarget) -> Result:
    """Compiles the kernel for a GPU that need not be there."""
    import triton
    from lockedenv.verify.checks.triton_kernel import add_scaled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {"a": "*fp32", "b": "*fp32", "out": "*fp32", "length": "i32"}
    values = {"scale": SCALE, "block": BLOCK}
    if "constexprs" in inspect.signature(ASTSource).parameters:  # since triton 3.2
        signature.update(scale="constexpr", block="constexpr")
        source = ASTSource(fn=add_scaled, signature=signature, constexprs=values)
    else:
        source = ASTSource(fn=add_scaled, signature=signature, constants=values)
    kernel = triton.compile(source, target=GPUTarget("cuda", target.architecture, WARP))
    cubin = kernel.asm["cubin"]
    architecture = read_cubin_architecture(cubin)
    if architecture != target.architecture:
        return failed(
            f"triton made code for sm_{architecture}, not for {target.name}", REINSTALL
        )
    what = f"triton {triton.__version__}: a kernel of {len(cubin)} bytes"
    return compiled(f"{what} compiled for {target.name}, not run")


def run_kernel(device: str) -> Result:
    """Runs the kernel on the current device, whose length is no multiple of the block's."""
    import torch
    import triton
    from lockedenv.verify.checks.triton_kernel import add_scaled

    length = 3 * BLOCK + 17
    a = torch.arange(length, dtype=torch.float32, device=device)
    b = torch.ones_like(a)
    out = torch.full_like(a, -1.0)
    add_scaled[(triton.cdiv(length, BLOCK),)](a, b, out, length, SCALE, BLOCK)
    wrong = int((out != a + SCALE * b).sum().item())
    if wrong:
        return failed(
            f"{wrong} of {length} values are wrong",
            "the GPU computes wrongly: take another pod",
        )
    return passed(f"triton {triton.__version__}: {length} values exact")


@child_check(
    "torch-compile",
    "torch.compile of a small model runs compiled code, and gives eager's values, "
    "forward and backward",
    timeout=240,
    remedy="torch.compile needs g++, the Python headers and setuptools; "
    f"the conda backend has them; what is missing is named by: {REPAIR}",
)
def torch_compile(device: str) -> Result:
    import torch
    from torch._inductor import config

    lacking = find_lacking_tool()
    if lacking:
        return skipped(f"torch.compile will not work here: {lacking}")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 8)
    ).to(device)
    x = torch.randn(32, 64, device=device)
    eager = run_step(model, model, x)
    run = torch.compile(model)
    try:
        # The kernels prove the CPU's vector instructions: inductor's probes of each kind import
        # torch in new processes.
        with config.patch("cpp.vec_isa_ok", True):
            got = run_step(run, model, x)
    except (
        Exception
    ):  # noqa: B902 (a compiler that lacks them: inductor probes, and goes without)
        torch._dynamo.reset()
        forget_vector_instructions()
        got = run_step(run, model, x)
    # TF32 may be used by one of them; a wrong kernel is off by its whole value.
    error = relative(got, eager)
    result = within(
        {"difference from eager": (error, 1e-3)},
        device,
        "clear TORCHINDUCTOR_CACHE_DIR; try again",
    )
    graphs = count_compiled_graphs()
    if result.verdict == FAIL:
        return result
    if graphs < 2:
        return failed(
            f"{graphs} of 2 graphs were compiled: torch.compile ran the model as it was",
            find_switch_remedy(os.environ),
        )
    result.summary += f"; {graphs} compiled graphs ran"
    return result


def find_lacking_tool() -> str:
    """What torch.compile lacks on this machine, and how to get it; empty if nothing."""
    problem = compile_problem(Path(sys.prefix), os.environ)
    if problem:
        return problem
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"there is no {header}"
    return ""


def run_step(run: Any, model: Any, x: Any) -> Any:
    """The output and the gradient of the first weight of a step; `run` is `model`, or compiled."""
    import torch

    model.zero_grad()
    y = run(x)
    y.square().sum().backward()
    return torch.cat([y.detach().flatten(), model[0].weight.grad.flatten()]).double()


def forget_vector_instructions() -> None:
    """Empties inductor's caches of which vector instructions the compiler knows."""
    from torch._inductor import cpu_vec_isa

    cached = [cpu_vec_isa.valid_vec_isa_list]
    for kind in (cpu_vec_isa.VecISA, *cpu_vec_isa.VecISA.__subclasses__()):
        cached.append(kind.__bool__)
    for known in cached:
        if hasattr(known, "cache_clear"):
            known.cache_clear()


def count_compiled_graphs() -> int:
    """How many graphs inductor compiled in this process, or took from its cache, for frames that
    dynamo then ran so: a frame that fell back to eager is not counted as good."""
    from torch._dynamo.utils import counters

    if not counters["frames"]["ok"]:
        return 0
    names = ("fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")
    return sum(counters["inductor"][name] for name in names)


def find_switch_remedy(environ: Any) -> str:
    """What turns compiling on again."""
    present = [name for name in SWITCHES if environ.get(name)]
    if present:
        return f"unset {' '.join(present)}"
    return "unset what turns torch.compile off: torch._dynamo.config.disable"
