"""Makes the certificate of this machine: the task runs twice, in two processes at once."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

from lockedenv.errors import Stop
from lockedenv.host.gpus import Gpu
from lockedenv.host.launchers import child_environment
from lockedenv.host.process import ask
from lockedenv.prefix.records import Installed
from lockedenv.provenance.certificate.document import (
    Certificate,
    Row,
    RowName,
    Task,
    parse_row_name,
)
from lockedenv.provenance.certificate.judge import (
    find_deviations,
    find_largest,
    is_steady,
)
from lockedenv.provenance.certificate.task import STEPS, TASK
from lockedenv.provenance.documents import DocumentError
from lockedenv.provenance.gather import machine_python
from lockedenv.provenance.packages import fingerprint_of, list_packages
from lockedenv.spec import environment

SECONDS = 600  # for each run, which takes 15 on a core of 2025
# One thread: every machine has one, and their number decides in which order a sum is made.
FIXED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "NVIDIA_TF32_OVERRIDE": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "FLASH_ATTENTION_DETERMINISTIC": "1",
}
# The best kernels, and the same ones wherever the memory lies, unless the user chose others.
DEFAULTS = {"MKL_CBWR": "AUTO"}
DROPPED = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "TORCH",
    "PYTORCH_",
    "CUBLAS_",
    "TRANSFORMERS_",
    "NVIDIA_TF32_",
)
# These choose other kernels for the user's own runs too: they stay as they are, and are noted.
CHOOSE_KERNELS = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "LD_PRELOAD",
)
# By which MKL, oneDNN and torch choose theirs.
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
CPU_FACTS = ("cpu family", "model", "cache size")
VERSIONS = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "flash-attn",
    "flash-attn-4",
)


@dataclass(frozen=True)
class Run:
    """What one run of the task gives."""

    rows: Mapping[RowName, Row]
    left_out: Mapping[str, str]
    made_with: Mapping[str, str]


def make_certificate(
    installed: Installed,
    gpus: Sequence[Gpu],
    device: str,
    steps: int = STEPS,
    visible_gpu: str = "",
) -> Certificate:
    """The certificate of this machine's device ("cpu" or "cuda"). Raises Stop.

    `visible_gpu`: a value for CUDA_VISIBLE_DEVICES, of the one GPU that is to compute.
    """
    environ = task_environment(installed.prefix, device, visible_gpu)
    with ThreadPoolExecutor(2) as pool:
        first_run = pool.submit(run_task, installed.python, device, steps, environ)
        second_run = pool.submit(run_task, installed.python, device, steps, environ)
        first = first_run.result()
        second = second_run.result()
    rows = {}
    for name, row in first.rows.items():
        rows[name] = replace(row, spread=measure_spread(name, row, second.rows[name]))
    made_with = {**first.made_with}
    if device == "cuda" and gpus:
        made_with["driver"] = gpus[0].driver
    made_with.update(describe_cpu())
    made_with["threads"] = FIXED["OMP_NUM_THREADS"]
    made_with.update(find_versions(installed))
    made_with.update(chosen_kernels())
    return Certificate(
        task=Task(TASK, steps),
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        environment=environment.find_by_prefix(installed.prefix).name,
        backend=installed.backend,
        fingerprint=fingerprint_of(list_packages(installed), machine_python(installed)),
        device=device,
        made_with=made_with,
        left_out=first.left_out,
        rows=rows,
    )


def make_like(
    other: Certificate, name: str, installed: Installed, gpus: Sequence[Gpu]
) -> Certificate:
    """This machine's certificate, to compare with one from a file `name`.

    Raises DocumentError, Stop.
    """
    if other.task.version != TASK:
        raise DocumentError(
            f"{name}: is of task version {other.task.version}, this machine's is {TASK}; make it "
            "again with --certificate FILE, or compare with the clone that made it"
        )
    if other.device == "cuda" and not gpus:
        raise DocumentError(
            f"{name}: is a GPU's certificate, and this machine has none; compare it on a machine "
            "with a GPU"
        )
    return make_certificate(installed, gpus, other.device, other.task.steps)


def run_task(python: Path, device: str, steps: int, environ: Mapping[str, str]) -> Run:
    """One run of the task in a process of its own. Raises Stop."""
    module = "lockedenv.provenance.certificate.task"
    with tempfile.TemporaryDirectory(prefix="certificate-") as folder:
        command = [python, "-m", module, device, str(steps)]
        answer = ask(command, SECONDS, cwd=folder, env={**environ, "TMPDIR": folder})
    if answer.status != 0:
        lines = answer.error.strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        raise Stop(
            f"the certificate's task failed (exit {answer.status}): {last}; "
            "--level full says what does not work here"
        )
    document: dict[str, Any] = json.loads(answer.output.splitlines()[-1])
    rows = {}
    for name, row in document["rows"].items():
        require_finite(name, row)
        rows[parse_row_name(name)] = Row(
            loss=tuple(row["loss"]),
            gradient_norm=tuple(row["gradient_norm"]),
            tensors=row["tensors"],
            weights=row["weights"],
        )
    return Run(rows, document["left_out"], document["made_with"])


def require_finite(name: str, row: Mapping[str, Any]) -> None:
    """Raises Stop for a row with a figure that is infinite or no number."""
    for step, loss in enumerate(row["loss"]):
        gradient_norm = row["gradient_norm"][step]
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise Stop(
                f"{name}: loss {loss}, gradient norm {gradient_norm} at step {step}: this does not "
                "train; --level full says what does not work here, or take another pod"
            )
    for tensor, value in row["tensors"].items():
        if not math.isfinite(value):
            raise Stop(
                f"{name}: the norm of {tensor} is {value}: this does not train; --level full says "
                "what does not work here, or take another pod"
            )


def measure_spread(name: RowName, first: Row, second: Row) -> float:
    """The largest relative difference between two runs of a row. Raises Stop if it is too large."""
    deviations = find_deviations(first, second)
    spread = find_largest(deviations, 0.0)
    if not is_steady(name.precision, spread):
        raise Stop(
            f"{name}: two runs on this machine are apart by {spread:.1e}: it does not compute "
            "reliably; run it again, and if it stays so, take another pod"
        )
    return spread


def task_environment(
    prefix: Path, device: str, visible_gpu: str = ""
) -> dict[str, str]:
    """The variables of a run: nothing that makes a sum in another order,
    but what the user chose."""
    given = dict(os.environ)
    if visible_gpu:
        given["CUDA_VISIBLE_DEVICES"] = visible_gpu
    environ = dict(DEFAULTS)
    for name, value in child_environment(prefix, device, given).items():
        if name in CHOOSE_KERNELS or not name.startswith(DROPPED):
            environ[name] = value
    environ.update(FIXED)
    return environ


def chosen_kernels() -> dict[str, str]:
    """The variables that choose other kernels, where they are set."""
    chosen = {}
    for name in CHOOSE_KERNELS:
        if name in os.environ:
            chosen[name] = os.environ[name]
    return chosen


def find_versions(installed: Installed) -> dict[str, str]:
    """The versions of what computes, by package."""
    found = {}
    for name in VERSIONS:
        version = installed.version(name)
        if version:
            found[name] = version
    return found


def describe_cpu() -> dict[str, str]:
    """The CPU, so exactly that equal ones get equal kernels."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    info = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", first, re.M))
    words = [info.get("model name", "unknown")]
    for name in CPU_FACTS:
        if name in info:
            words.append(f"{name} {info[name]}")
    flags = info.get("flags", "").split()
    features = [feature for feature in CPU_FEATURES if feature in flags]
    return {"CPU": ", ".join(words), "CPU features": " ".join(features)}
