"""The GPUs of this machine, as its driver shows them. `root` is another machine's, in the tests."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lockedenv.errors import Stop, printable
from lockedenv.host import nvidia_smi
from lockedenv.host.numbers import parse_whole
from lockedenv.host.nvidia_smi import SmiAnswer, SmiStatus

MIB = 1024**2
RENTED = "RUNPOD_GPU_COUNT"  # what the pod was rented with
MOST_RENTED = 9999  # GPUs: another number is none of a pod
SHOWN = 24  # characters of a value that is no number
FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "compute_cap",
    "uuid",
    "mig.mode.current",
)
# A driver of the 470 series or older does not know this field
# (https://github.com/huggingface/candle/issues/733).
# The oldest that runs CUDA 12 is of the 525 series.
CAPABILITY = "compute_cap"
OLDEST_WITH_CAPABILITY = 510

NEXT_POD = "take another pod"
LOGIN_NODE = (
    "a machine without a GPU, such as a login node, is set up with "
    "--arch 90 --flash-attn none --any-pod, and verified with --gpu off; "
    f"on a pod, {NEXT_POD}"
)


class Trouble(Enum):
    """Why the GPUs are not known."""

    NO_PROGRAM = "there is a GPU and no nvidia-smi"
    HANGS = "nvidia-smi does not answer"
    NO_DRIVER = (
        "nvidia-smi is installed, no driver is loaded, and nothing else says "
        "that there is a GPU"
    )
    NO_DEVICES = "the driver is there and finds no GPU"
    OLD_DRIVER = "the driver is too old to say what the GPU is"
    FAILS = "nvidia-smi fails"
    UNREADABLE = "nvidia-smi says of a GPU what is not a GPU"
    FEWER = "fewer GPUs than the pod was rented with"


class GpuError(Stop):
    """The GPUs are not known, or fewer than there should be. `trouble` says why."""

    def __init__(self, trouble: Trouble, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.trouble = trouble
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi reports it.

    `memory` is in bytes, and 0 where the driver does not say. `capability` is such as "9.0".
    """

    name: str
    driver: str
    memory: int
    capability: str
    uuid: str
    mig: bool

    @property
    def arch(self) -> str:
        """The architecture as flash-attn and nvcc name it: "90" for compute capability 9.0."""
        return self.capability.replace(".", "")


@dataclass(frozen=True)
class GpuFacts:
    """What is known of the GPUs: either `error`, or the GPUs with what nvidia-smi warned of."""

    gpus: tuple[Gpu, ...] = ()
    warnings: tuple[str, ...] = ()
    error: GpuError | None = None


def find_gpu_nodes(root: Path = Path("/")) -> list[Path]:
    """What the driver shows of the GPUs under `root`: device nodes, or folders in /proc.

    The longer list of the two, one path for each GPU.
    """
    devices = sorted(root.glob("dev/nvidia[0-9]*"))
    folders = sorted(root.glob("proc/driver/nvidia/gpus/*"))
    if len(folders) > len(devices):
        return folders
    return devices


def read_gpu_facts(
    root: Path = Path("/"), environ: Mapping[str, str] | None = None
) -> GpuFacts:
    """The facts of this machine's GPUs. What is wrong is in them, and nothing is raised."""
    if environ is None:
        environ = os.environ
    answer = nvidia_smi.query("gpu", FIELDS, environ)
    try:
        gpus = _judge(answer, environ, find_gpu_nodes(root))
    except GpuError as error:
        return GpuFacts(error=error)
    return GpuFacts(tuple(gpus), answer.warnings)


def find_gpus(
    root: Path = Path("/"), environ: Mapping[str, str] | None = None
) -> list[Gpu]:
    """The GPUs of this machine, by the nvidia-smi on PATH; none if nothing says that it has one.

    Raises GpuError if nvidia-smi fails, or shows fewer than RUNPOD_GPU_COUNT (what the pod was
    rented with), or none where the driver shows one under `root`.
    """
    facts = read_gpu_facts(root, environ)
    if facts.error is not None:
        raise facts.error
    return list(facts.gpus)


def _count_rented(environ: Mapping[str, str]) -> int:
    """How many GPUs there should be. A number that is out of range says that there is one."""
    text = environ.get(RENTED, "")
    if is_too_large(text):
        return 1
    count = parse_whole(text)
    if count is None:
        return 0
    return count


def is_too_large(text: str) -> bool:
    """Whether a text is a number of more GPUs than a pod has, of however many digits."""
    if not re.fullmatch("[0-9]+", text):
        return False
    return len(text.lstrip("0")) > len(str(MOST_RENTED))


def _show_count(text: str) -> str:
    shown = printable(text)
    if len(shown) > SHOWN:
        return f"{shown[:SHOWN]}..."
    return shown


def find_count_problem(environ: Mapping[str, str]) -> str:
    """Why RUNPOD_GPU_COUNT does not say how many GPUs there should be; empty if it does."""
    text = environ.get(RENTED, "")
    if not text or (parse_whole(text) is not None and not is_too_large(text)):
        return ""
    shown = _show_count(text)
    if is_too_large(text):
        return f"{RENTED}={shown} is more than {MOST_RENTED} GPUs: it counts as one"
    return f"{RENTED}={shown} is no number of GPUs: it counts as none"


def _judge(
    answer: SmiAnswer, environ: Mapping[str, str], nodes: Sequence[Path]
) -> list[Gpu]:
    """The GPUs of an answer, or a GpuError. `nodes`: what the driver shows of them beside it."""
    signs = [str(node) for node in nodes]
    rented = _count_rented(environ)
    if rented:
        signs.insert(0, f"{RENTED}={_show_count(environ[RENTED])}")
    if answer.status is SmiStatus.ABSENT:
        if not signs:
            return []
        raise GpuError(
            Trouble.NO_PROGRAM,
            f"there is an NVIDIA GPU but no nvidia-smi ({signs[0]})",
            f"start the container with the NVIDIA runtime, or {NEXT_POD}",
        )
    if answer.status is SmiStatus.HANGS:
        raise GpuError(
            Trouble.HANGS,
            f"nvidia-smi does not answer ({answer.problem})",
            f"the GPU or its driver hangs: {NEXT_POD}",
        )
    if answer.status is SmiStatus.NO_DEVICES:
        sign = signs[0] if signs else "its driver is here"
        raise GpuError(
            Trouble.NO_DEVICES,
            f"nvidia-smi finds no GPU, and there should be one ({sign})",
            f"the GPU has failed: {NEXT_POD}",
        )
    if answer.status is not SmiStatus.ANSWERED:
        raise _explain_failure(answer, bool(signs))
    gpus = [_read_gpu(row) for row in answer.rows]
    if len(gpus) < rented:
        raise GpuError(
            Trouble.FEWER,
            f"nvidia-smi shows {len(gpus)} of the {rented} GPUs that RUNPOD_GPU_COUNT promises",
            NEXT_POD,
        )
    return gpus


def _explain_failure(answer: SmiAnswer, should_be_there: bool) -> GpuError:
    problem = f"nvidia-smi fails: {answer.problem} (exit {answer.exit_status})"
    if answer.status is SmiStatus.NO_DRIVER and not should_be_there:
        return GpuError(Trouble.NO_DRIVER, problem, LOGIN_NODE)
    return GpuError(Trouble.FAILS, problem, NEXT_POD)


def _read_gpu(row: Mapping[str, str]) -> Gpu:
    """The GPU of one row of FIELDS. Raises GpuError for a row that is none."""
    name = row.get("name", "")
    driver = row.get("driver_version", "")
    if CAPABILITY not in row:
        raise _explain_missing_capability(name, driver)
    capability = row[CAPABILITY]
    memory = row.get("memory.total", "")
    megabytes = parse_whole(memory)
    # A GPU in MIG mode in a container, and a GPU that shares the machine's memory, do not say.
    says_no_memory = memory.startswith("[")
    is_gpu = (
        not name.startswith(("[", "ERR!"))
        and re.fullmatch(r"\d{1,2}\.\d", capability)
        and (megabytes is not None or says_no_memory)
    )
    if not is_gpu:
        said = ", ".join(row.values())
        raise GpuError(
            Trouble.UNREADABLE,
            f"nvidia-smi said {said!r}, which is not a GPU",
            NEXT_POD,
        )
    return Gpu(
        name=name,
        driver=driver,
        memory=(megabytes or 0) * MIB,
        capability=capability,
        uuid=row.get("uuid", ""),
        mig=row.get("mig.mode.current", "") == "Enabled",
    )


def _explain_missing_capability(name: str, driver: str) -> GpuError:
    series = re.match(r"\d+", driver)
    if series and int(series[0]) >= OLDEST_WITH_CAPABILITY:
        return GpuError(
            Trouble.OLD_DRIVER,
            f"the nvidia-smi on PATH is older than the driver {driver} of {name}: "
            f"it has no {CAPABILITY}",
            "put the driver's own nvidia-smi first on PATH",
        )
    return GpuError(
        Trouble.OLD_DRIVER,
        f"the driver {driver} of {name} is too old: its nvidia-smi has no {CAPABILITY}, "
        "and CUDA 12 needs a driver of the 525 series",
        f"a pod cannot upgrade it: {NEXT_POD}",
    )
