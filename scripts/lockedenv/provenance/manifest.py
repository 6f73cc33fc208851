"""The session manifest: what produced a result, so exactly that it can be compared months later or between nodes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from lockedenv.host import machine
from lockedenv.host.machine import Gpu, read_json
from lockedenv.host.process import ask, git
from lockedenv.prefix.records import Installed, file_sha256, record_hash
from lockedenv.spec import environment
from lockedenv.spec.vulnerabilities import find_vulnerabilities

SCHEMA_VERSION = 1
# The variables that change what a run computes or how fast; by name, never by pattern: a pattern would let a key through.
VARIABLES = """ACCELERATE_MIXED_PRECISION BNB_CUDA_VERSION CUBLAS_WORKSPACE_CONFIG CUDA_DEVICE_ORDER CUDA_HOME
CUDA_LAUNCH_BLOCKING CUDA_VISIBLE_DEVICES HF_DATASETS_OFFLINE HF_HOME HF_HUB_DISABLE_XET HF_HUB_ENABLE_HF_TRANSFER HF_HUB_OFFLINE
HF_XET_HIGH_PERFORMANCE LD_LIBRARY_PATH LD_PRELOAD MAX_JOBS MKL_NUM_THREADS NCCL_ALGO NCCL_DEBUG NCCL_IB_DISABLE NCCL_P2P_DISABLE
NCCL_PROTO NCCL_SOCKET_IFNAME NVIDIA_TF32_OVERRIDE OMP_NUM_THREADS PYTHONHASHSEED PYTHONNOUSERSITE PYTHONPATH
PYTORCH_CUDA_ALLOC_CONF TOKENIZERS_PARALLELISM TORCHDYNAMO_DISABLE TORCHINDUCTOR_CACHE_DIR TORCH_CUDA_ARCH_LIST TRANSFORMERS_CACHE
TRANSFORMERS_OFFLINE""".split()


def packages(installed: Installed) -> List[Dict[str, str]]:
    """Every installed package, sorted: name, version, build, channel, manager and hash (sha256 in hex).

    A conda package's hash is its archive's; a wheel's is over its RECORD, without what depends on the place.
    """
    keys, wheels = ("name", "version", "build", "channel", "manager", "hash"), [
        d for d in installed.dists if d.manager == "pip"
    ]
    rows = [
        dict(zip(keys, (r.name, r.version, r.build, r.channel, "conda", r.sha256)))
        for r in installed.conda
    ]
    rows += [
        dict(zip(keys, (d.name, d.version, "", "pypi", "pip", record_hash(d)))) for d in wheels
    ]
    return sorted(rows, key=lambda row: (row["manager"], row["name"], row["version"], row["hash"]))


def fingerprint(rows: List[Dict[str, str]]) -> str:
    """One sha256 over all packages and their hashes: equal on every machine that has the same environment.

    flash-attn counts by version: it is built on the spot, and two builds of one source differ in bytes.
    """
    rows = [{**row, "hash": ""} if row["name"] == "flash-attn" else row for row in rows]
    lines = [
        " ".join(row[key] for key in ("manager", "name", "version", "build", "hash"))
        for row in rows
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _repository() -> Dict[str, Any]:
    status = git("status", "--porcelain")
    return {
        "commit": git("rev-parse", "HEAD"),
        "modified": None if status is None else bool(status),
    }


WITH_GPU = """
import json, torch
nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
cudnn = str(torch.backends.cudnn.version() or "") or None
said = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}
print(json.dumps({**said, "nccl": ".".join(map(str, nccl)) if nccl else None}))
"""
# Without a GPU there is no NCCL to ask for, and torch need not be imported, which takes as long as the quick level.
WITHOUT_GPU = """
import ctypes, glob, importlib.util, json, os, re
folder = os.path.dirname(importlib.util.find_spec("torch").origin)
said = dict(re.findall(r"^(__version__|cuda)\\b[^=]*= '([^']+)'", open(folder + "/version.py").read(), re.M))
found = [path for place in ("lib", "../nvidia/cudnn/lib", "../../..") for path in glob.glob(f"{folder}/{place}/libcudnn.so.*")]
cudnn = str(ctypes.CDLL(found[0]).cudnnGetVersion()) if found else None
print(json.dumps({"torch": said["__version__"], "cuda": said.get("cuda"), "cudnn": cudnn, "nccl": None}))
"""


def loaded_cuda(python: Path, gpu: bool) -> Dict[str, Optional[str]]:
    """The CUDA, cuDNN and NCCL versions of torch in the prefix's interpreter; None where it cannot say."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    _, said, _ = ask([python, "-c", WITH_GPU if gpu else WITHOUT_GPU], 120, env=environ)
    try:
        answer: Dict[str, Optional[str]] = json.loads(said.splitlines()[-1])
        return answer
    except (ValueError, IndexError):
        return {"torch": None, "cuda": None, "cudnn": None, "nccl": None}


def make(
    installed: Installed,
    gpus: List[Gpu],
    results: Sequence[Dict[str, Any]] = (),
    uuids: bool = False,
) -> Dict[str, Any]:
    """The manifest as a document (schemas/manifest.schema.json), with the checks' `results` as they stand in --json."""
    rows, of = packages(installed), environment.of(installed.prefix)
    return {
        "schema_version": SCHEMA_VERSION,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fingerprint": fingerprint(rows),
        "repository": _repository(),
        "environment": of.name,
        "locks": {name: file_sha256(of.folder / name) or None for name in environment.LOCKED},
        "backend": installed.backend,
        "prefix": str(installed.prefix),
        "packages": rows,
        "machine": {
            "python": platform.python_version(),
            "glibc": platform.libc_ver()[1],
            "kernel": platform.release(),
            "cpu": _cpu_name(),
            "cpus": machine.cpu_limit(),
            "memory_bytes": machine.memory_limit()[0],
        },
        "gpus": [_gpu(gpu, uuids) for gpu in gpus],
        "cuda": loaded_cuda(installed.python, bool(gpus)),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "vulnerabilities": [asdict(v) for v in find_vulnerabilities(installed.version)],
        "results": list(results),
        "pod": read_json(installed.prefix / environment.MARK).get("pod", []),
    }


def _gpu(gpu: Gpu, with_uuid: bool) -> Dict[str, Any]:
    row = {
        "name": gpu.name,
        "driver": gpu.driver,
        "memory_bytes": gpu.memory,
        "capability": gpu.capability,
        "mig": gpu.mig,
    }
    return {**row, "uuid": gpu.uuid} if with_uuid else row


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
