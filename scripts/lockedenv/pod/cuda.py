"""What the driver's library says: can each GPU be used, how much memory is free, who reaches whom.

`python -m lockedenv.pod.cuda` is the child that asks libcuda, which may crash or hang. It prints
what it found as JSON.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lockedenv import ROOT
from lockedenv.host.disks import GIB, size_text
from lockedenv.host.finding import Finding, failed, passed, skipped, warned
from lockedenv.host.gpus import Gpu
from lockedenv.host.process import ask
from lockedenv.pod.words import BACK

# cuda.h, enum cudaError_enum. 802 is what H200 and B200 pods say whose fabric manager does not run;
# nvidia-smi is fine there.
CUDA_ERRORS = {
    2: "out of memory",
    46: "the device is busy or unavailable: another process holds it exclusively",
    100: "no device",
    214: "an uncorrectable memory error (ECC)",
    802: "system not ready: the NVLink fabric manager of the host does not run",
    803: "the driver and its library do not match",
    804: "forward compatibility was tried on a GPU that does not have it",
    999: "unknown: the driver is broken, or its devices are not in the container",
}
TAKEN = (2, 46)  # errors of a GPU that works, and that somebody else uses
# Of a GPU's memory, beside our own context (0.5 GB on an H100): more is somebody's.
USED = 0.03
PATIENCE = 60  # seconds


@dataclass(frozen=True)
class CudaGpu:
    """`code`: of making a context, 0 if it worked. `free` and `total` in bytes."""

    code: int
    free: int
    total: int


@dataclass(frozen=True)
class CudaAnswer:
    """What libcuda says. `error`: why it could not be asked. `code`: of cuInit, 0 if it worked.

    `apart`: pairs of GPUs of which the first does not reach the memory of the second.
    """

    error: str = ""
    code: int = 0
    gpus: tuple[CudaGpu, ...] = ()
    apart: tuple[tuple[int, int], ...] = ()


def read_cuda() -> CudaAnswer:
    """Asks libcuda in this process."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return CudaAnswer(error=str(error))
    count = ctypes.c_int()
    code = cuda.cuInit(0)
    if code == 0:
        code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return CudaAnswer(code=code)
    gpus = [_use_gpu(cuda, index) for index in range(count.value)]
    apart = []
    reaches = ctypes.c_int()
    for first, second in itertools.permutations(range(count.value), 2):
        code = cuda.cuDeviceCanAccessPeer(ctypes.byref(reaches), first, second)
        if code or not reaches.value:
            apart.append((first, second))
    return CudaAnswer(gpus=tuple(gpus), apart=tuple(apart))


def _use_gpu(cuda: ctypes.CDLL, index: int) -> CudaGpu:
    context = ctypes.c_void_p()
    free = ctypes.c_size_t()
    total = ctypes.c_size_t()
    code = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), index)
    if code == 0:
        code = cuda.cuCtxSetCurrent(context)
    if code == 0:
        code = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return CudaGpu(code, free.value, total.value)


def ask_cuda(patience: float = PATIENCE) -> CudaAnswer:
    """`read_cuda` in a process of its own, which sees all GPUs; `error` if it crashes or hangs."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-m", "lockedenv.pod.cuda"]
    answer = ask(command, patience, env=environ)
    if answer.status is None:
        return CudaAnswer(error=answer.error)
    try:
        return _parse_answer(json.loads(answer.output))
    except (ValueError, TypeError, KeyError):
        last_line = answer.error.strip().rpartition("\n")[2]
        return CudaAnswer(error=f"exit {answer.status}: {last_line}")


def _parse_answer(answer: dict[str, object]) -> CudaAnswer:
    """The answer that the child printed. Raises ValueError, TypeError or KeyError if it is none."""
    gpus = answer["gpus"]
    apart = answer["apart"]
    if not isinstance(gpus, list) or not isinstance(apart, list):
        raise TypeError("not the lists of an answer")
    parsed_gpus = []
    for gpu in gpus:
        parsed_gpus.append(CudaGpu(**gpu))
    parsed_pairs = []
    for first, second in apart:
        parsed_pairs.append((int(first), int(second)))
    return CudaAnswer(
        error=str(answer["error"]),
        code=int(str(answer["code"])),
        gpus=tuple(parsed_gpus),
        apart=tuple(parsed_pairs),
    )


def describe_error(code: int) -> str:
    return f"error {code}, {CUDA_ERRORS.get(code, 'see cuda.h')}"


def judge_cuda(answer: CudaAnswer, gpus: Sequence[Gpu]) -> Finding:
    """A context on each GPU, and the memory that is free in it.

    `gpus`: those that nvidia-smi shows.
    """
    if answer.error:
        return failed(
            [f"libcuda: {answer.error}"],
            f"nvidia-smi answers and CUDA does not: {BACK}",
        )
    if answer.code:
        return failed(
            [f"cuInit: {describe_error(answer.code)}"],
            f"no program can use CUDA here: {BACK}",
        )
    broken = []
    busy = []
    for index, gpu in enumerate(answer.gpus):
        used = gpu.total - gpu.free
        if gpu.code in TAKEN:
            busy.append(f"GPU {index}: {CUDA_ERRORS[gpu.code]}")
        elif gpu.code:
            broken.append(f"GPU {index}: no context: {describe_error(gpu.code)}")
        elif used > USED * gpu.total + GIB:
            sizes = f"{size_text(used)} of {size_text(gpu.total)}"
            busy.append(f"GPU {index}: {sizes} are in use already")
    if broken:
        return failed(broken, f"this GPU does not work: {BACK}")
    # Of MIG instances CUDA shows one.
    has_mig = any(gpu.mig for gpu in gpus)
    if len(answer.gpus) < len(gpus) and not has_mig:
        return failed(
            [
                f"CUDA sees {len(answer.gpus)} of the {len(gpus)} GPUs that nvidia-smi shows"
            ],
            BACK,
        )
    if busy:
        return warned(
            busy,
            f"if no program of yours does (nvidia-smi lists them), the GPU is shared: {BACK}",
        )
    return passed(
        f"a context on each of {len(answer.gpus)} GPUs, and its memory is free"
    )


def judge_peers(answer: CudaAnswer) -> Finding:
    """Whether each GPU reaches the memory of each other one."""
    if len(answer.gpus) < 2:
        return skipped("not two GPUs")
    if not answer.apart:
        return passed(
            f"each of {len(answer.gpus)} GPUs reaches each other one's memory"
        )
    first, second = answer.apart[0]
    problem = f"GPU {first} does not reach GPU {second}'s memory"
    if len(answer.apart) > 1:
        problem += f" (and {len(answer.apart) - 1} more pairs)"
    return warned(
        [problem], "export NCCL_P2P_DISABLE=1, if NCCL hangs; it is slower so"
    )


if __name__ == "__main__":
    print(json.dumps(asdict(read_cuda())))
