"""FlashAttention 2 and 4 compared with float32.

Without a GPU, FlashAttention 4 is compiled for one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any, Callable

from lockedenv.host.disks import GIB
from lockedenv.spec.flash_attention_kernels import (
    CACHE_ENABLED_VARIABLE,
    CACHE_FOLDER_VARIABLE,
    OLDEST_MAJOR,
    PROBE,
    cache_variables,
    compile_kernel,
    find_compiled_files,
)
from lockedenv.spec.gpu_target import (
    ARCHITECTURE_VARIABLE,
    DSL_ARCHITECTURE_VARIABLE,
    GpuTarget,
    find_foreign_assembler,
    find_target,
    target_variables,
)
from lockedenv.verify.checks import (
    FAIL,
    PASS,
    Result,
    check_each_gpu,
    compiled,
    failed,
    skipped,
    warned,
    within,
)
from lockedenv.verify.checks.attention import (
    compare_attention,
    make_inputs,
    plain_attention,
    run_with_gradients,
)
from lockedenv.verify.machine_code import (
    find_cubin_architectures,
    find_fat_binary_architectures,
    name_architectures,
)
from lockedenv.verify.remedies import (
    pip_uninstall_command,
    repair_command,
    verify_command,
)
from lockedenv.verify.result import is_worse

REPAIR = repair_command(Path(sys.prefix))
FALLBACK = (
    'use torch\'s own kernels in its place: attn_implementation="sdpa"; '
    f"to verify the rest: {verify_command(Path(sys.prefix), '--skip', 'flash-attn')}"
)
REBUILD = (
    "the build is wrong for this GPU: delete its wheel from the cache and install it again: "
    f"{REPAIR}; until then {FALLBACK}"
)
REINSTALL = f"install it again: {REPAIR}"
CLOCK_TOLERANCE = 1.0  # seconds: a file system's times are coarser than the clock
LENGTHS = (17, 256, 99)  # of the sequences that are packed into one


@dataclass(frozen=True)
class FlashAttention:
    """One version's functions: of (batch, length, heads, dim), and of (tokens, heads, dim)."""

    name: str
    dense: Callable[..., Any]
    packed: Callable[..., Any]
    remedy: str


def read_version(distribution: str) -> str:
    """The version of an installed package; empty if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


@check_each_gpu(
    "flash-attn",
    "on each GPU flash-attn 2 or 4 is right, forward and backward, head dims 64 and 128, bf16 and "
    "fp16, causal and variable length; without a GPU, that 4 compiles for one",
    remedy=FALLBACK,
    memory=4 * GIB,
    compile_timeout=600,
)
def flash_attn(device: str) -> Result:
    two = read_version("flash-attn")
    four = read_version("flash-attn-4")
    shared = find_shared_file() if two and four else ""
    if shared:
        return failed(
            f"flash-attn {two} and flash-attn-4 {four} both have {shared}: one overwrote the other",
            f"{pip_uninstall_command(Path(sys.prefix), ['flash-attn'])}; then {REINSTALL}",
        )
    foreign = find_foreign_assembler(Path(sys.prefix), os.environ)
    if foreign:
        text = (
            f"{foreign}={os.environ[foreign]} is an assembler from outside the prefix"
        )
        return failed(text, f"unset {foreign}")
    if device == "cpu":
        return compile_without_gpu(two, four)
    if not two and not four:
        return failed("flash-attn is not installed", f"{REINSTALL}; {FALLBACK}")
    results = []
    if four:
        results.append(check_version_4(four, device))
    if two:
        results.append(check_version_2(two, device))
    return join_results(results)


def find_shared_file() -> str:
    """A file that flash-attn 2 and flash-attn-4 both installed; empty if each has its own.

    They share the folder flash_attn. A flash-attn 2 that our set-up builds beside flash-attn-4
    leaves out flash_attn/cute.
    """
    theirs = {str(path) for path in metadata.files("flash-attn") or []}
    for path in metadata.files("flash-attn-4") or []:
        if str(path) in theirs:
            return str(path)
    return ""


def join_results(results: list[Result]) -> Result:
    """The results of one version or two as one: the worst verdict, with what both say."""
    worst = results[0]
    for result in results[1:]:
        if is_worse(result, worst):
            worst = result
    summaries = [result.summary for result in results]
    joined = replace(worst, summary="; ".join(summaries))
    return joined


def compile_without_gpu(two: str, four: str) -> Result:
    """What can be shown of the installed version where no GPU runs it: machine code for one."""
    if not two and not four:
        return skipped("no NVIDIA GPU on this machine, and flash-attn is not installed")
    try:
        target = find_target(os.environ)
    except ValueError as error:
        return failed(str(error), f"unset {ARCHITECTURE_VARIABLE}")
    results = []
    if four:
        results.append(compile_version_4(four, target))
    if two:
        results.append(find_code_of_version_2(two, target))
    return join_results(results)


def compile_version_4(version: str, target: GpuTarget) -> Result:
    """Compiles a forward and its backward, and finds the GPU's machine code in what comes out.

    What the set-up has compiled into FlashAttention's cache, from the same sources, is taken from
    there where the variables name the cache; the result tells how many were.
    """
    name = f"FlashAttention {version}"
    if target.major < OLDEST_MAJOR:
        return skipped(f"{name} has no backward for {target.name}; use sdpa there")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(target_variables(target))
        if not has_usable_cache(os.environ):
            os.environ.update(cache_variables(Path(folder)))
        began = time.time()
        try:
            compile_kernel(PROBE)
        except (
            Exception
        ) as error:  # noqa: B902 (whatever the compiler raises is the finding)
            reason = " ".join(str(error).split())[:200]
            text = f"{name} does not compile for {target.name}: {type(error).__name__}: {reason}"
            return failed(text, f"{FALLBACK}; {REINSTALL}")
        seconds = time.time() - began
        kernels = read_compiled_kernels(began)
    if set(kernels.architectures) != {target.architecture}:
        found = ", ".join(name_architectures(kernels.architectures))
        text = (
            f"{name} made machine code for {found or 'no GPU'}, not for {target.name}"
        )
        return failed(text, f"unset {DSL_ARCHITECTURE_VARIABLE}; {REINSTALL}")
    text = (
        f"{name}: {len(kernels.architectures)} kernels ({PROBE}; forward and backward)"
    )
    if kernels.from_cache:
        text += f", {kernels.from_cache} of them from the cache,"
    return compiled(
        f"{text} compiled for {target.name}, not run", compile_s=round(seconds, 2)
    )


@dataclass(frozen=True)
class CompiledKernels:
    """`architectures`: one for each kernel, 90 for sm_90.

    `from_cache`: how many were there before.
    """

    architectures: list[int]
    from_cache: int


def has_usable_cache(environ: Mapping[str, str]) -> bool:
    """Whether the variables name a cache that this user may write to."""
    folder = environ.get(CACHE_FOLDER_VARIABLE, "")
    if environ.get(CACHE_ENABLED_VARIABLE) != "1" or not folder:
        return False
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def read_compiled_kernels(began: float) -> CompiledKernels:
    """What the machine code of this process's kernels is for; `began`: when they were asked for."""
    architectures = []
    from_cache = 0
    for file in find_compiled_files():
        if not file.exists():
            continue  # it could not be written: its machine code is not shown
        architectures += find_cubin_architectures(file.read_bytes())
        if file.stat().st_mtime < began - CLOCK_TOLERANCE:
            from_cache += 1
    return CompiledKernels(architectures, from_cache)


def find_code_of_version_2(version: str, target: GpuTarget) -> Result:
    """flash-attn 2 is compiled when its wheel is built: reads which GPUs its library is for."""
    found = importlib.util.find_spec("flash_attn_2_cuda")
    if found is None or found.origin is None:
        return failed(
            f"flash-attn {version} is installed without its library", REINSTALL
        )
    architectures = find_fat_binary_architectures(Path(found.origin))
    if target.architecture not in architectures:
        names = ", ".join(name_architectures(architectures)) or "no GPU"
        return skipped(
            f"flash-attn {version} holds code for {names}, and no GPU is here"
        )
    return compiled(f"flash-attn {version} holds code for {target.name}, not run")


def check_version_2(version: str, device: str) -> Result:
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    name = f"flash-attn {version}"
    return compare(
        FlashAttention(name, flash_attn_func, flash_attn_varlen_func, REBUILD), device
    )


def check_version_4(version: str, device: str) -> Result:
    """On a GPU that it is for. Whatever it raises names torch's own kernels as the way out."""
    import torch

    name = f"FlashAttention {version}"
    major, minor = torch.cuda.get_device_capability()
    if major < OLDEST_MAJOR:
        return warned(
            f"{name} has no backward for this GPU (sm_{major}{minor})", FALLBACK
        )
    for variable in (ARCHITECTURE_VARIABLE, DSL_ARCHITECTURE_VARIABLE):
        value = os.environ.get(variable, "")
        if value and not re.fullmatch(rf"(sm_?)?{major}{minor}[af]?", value):
            text = f"{variable}={value}, and this GPU is sm_{major}{minor}"
            return failed(text, f"unset {variable}")
    try:
        from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

        flash = FlashAttention(name, flash_attn_func, flash_attn_varlen_func, FALLBACK)
        return compare(flash, device)
    except Exception as error:  # noqa: B902 (a kernel that does not run is the finding)
        reason = " ".join(str(error).split())[:200]
        text = f"{name} does not run on this GPU (sm_{major}{minor})"
        return failed(f"{text}: {type(error).__name__}: {reason}", FALLBACK)


def compare(flash: FlashAttention, device: str) -> Result:
    """All cases, each against float32. Each is run once before: FlashAttention 4 compiles then.

    The seconds of compiling and of computing are told apart in what was measured.
    """
    import torch

    cases = {}
    compile_seconds = 0.0
    compute_seconds = 0.0
    for dtype in (torch.bfloat16, torch.float16):
        dtype_name = str(dtype).removeprefix("torch.")
        for dim, causal in product((64, 128), (False, True)):
            name = f"{dtype_name} d{dim}"
            if causal:
                name += " causal"
            kernel = partial(call_heads_last, flash.dense, causal)
            reference = partial(plain_attention, causal=causal)
            shape = (2, 4, 512, dim)
            compile_seconds += run_once(kernel, shape, dtype, device)
            began = time.monotonic()
            cases[name] = compare_attention(kernel, reference, shape, dtype, device)
            compute_seconds += time.monotonic() - began
        for dim in (64, 128):
            packed_kernel = partial(call_packed, flash.packed)
            packed_shape = (sum(LENGTHS), 4, dim)
            compile_seconds += run_once(packed_kernel, packed_shape, dtype, device)
            began = time.monotonic()
            cases[f"{dtype_name} d{dim} variable length"] = compare_attention(
                packed_kernel, attend_by_sequence, packed_shape, dtype, device
            )
            compute_seconds += time.monotonic() - began
    result = within(cases, f"{flash.name} on {device}", flash.remedy)
    if result.verdict == PASS:
        result.measured["first_run_s"] = round(compile_seconds, 2)
        result.measured["compute_s"] = round(compute_seconds, 2)
        result.summary += (
            f"; first runs {compile_seconds:.1f} s, computing {compute_seconds:.1f} s"
        )
    if result.verdict == FAIL:
        result.summary = f"wrong: {result.summary}"
    return result


def run_once(
    kernel: Callable[..., Any], shape: tuple[int, ...], dtype: Any, device: str
) -> float:
    """Runs a kernel forward and backward; the seconds that it took."""
    began = time.monotonic()
    *inputs, weight = make_inputs(shape, dtype, device)
    for x in run_with_gradients(kernel, inputs, weight):
        x.flatten()[0].item()  # waits for the GPU
    return time.monotonic() - began


def take_output(answer: Any) -> Any:
    """The attention alone: FlashAttention 4 gives the logarithms of the sums beside it."""
    if isinstance(answer, tuple):
        return answer[0]
    return answer


def call_heads_last(function: Callable[..., Any], causal: bool, *inputs: Any) -> Any:
    """Attention on (batch, heads, length, dim): flash-attn wants (batch, length, heads, dim)."""
    swapped = [x.transpose(1, 2) for x in inputs]
    return take_output(function(*swapped, causal=causal)).transpose(1, 2)


def find_ends(device: Any) -> Any:
    """Where each of the packed sequences begins and the last one ends."""
    import torch

    ends = [0]
    for length in LENGTHS:
        ends.append(ends[-1] + length)
    return torch.tensor(ends, dtype=torch.int32, device=device)


def call_packed(function: Callable[..., Any], q: Any, k: Any, v: Any) -> Any:
    """Sequences of three lengths packed into one, causal."""
    ends = find_ends(q.device)
    answer = function(
        q,
        k,
        v,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=max(LENGTHS),
        max_seqlen_k=max(LENGTHS),
        causal=True,
    )
    return take_output(answer)


def attend_by_sequence(q: Any, k: Any, v: Any) -> Any:
    """The reference of `call_packed`: each sequence by itself."""
    import torch

    outputs = []
    for parts in zip(q.split(LENGTHS), k.split(LENGTHS), v.split(LENGTHS)):
        q_part, k_part, v_part = (part.transpose(0, 1) for part in parts)
        outputs.append(
            plain_attention(q_part, k_part, v_part, causal=True).transpose(0, 1)
        )
    return torch.cat(outputs)
