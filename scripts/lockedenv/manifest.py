"""The session manifest: what produced a result, so exactly that it can be compared months later or between nodes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from lockedenv import ROOT, host
from lockedenv.checks import Context
from lockedenv.host import version_tuple
from lockedenv.installed import Installed, file_sha256, record_hash
from lockedenv.results import Result

SCHEMA_VERSION = 1
LOCKED_FILES = ("environment.yml", "conda-lock.yml", "locks/pip.txt", "locks/flash-attn.txt", "requirements.txt")
# The variables that change what a run computes or how fast; by name, never by pattern: a pattern would let a key through.
VARIABLES = (
    "ACCELERATE_MIXED_PRECISION BNB_CUDA_VERSION CUBLAS_WORKSPACE_CONFIG CUDA_DEVICE_ORDER CUDA_HOME CUDA_LAUNCH_BLOCKING "
    "CUDA_VISIBLE_DEVICES HF_DATASETS_OFFLINE HF_HOME HF_HUB_DISABLE_XET HF_HUB_ENABLE_HF_TRANSFER HF_HUB_OFFLINE "
    "HF_XET_HIGH_PERFORMANCE LD_LIBRARY_PATH LD_PRELOAD MAX_JOBS MKL_NUM_THREADS NCCL_ALGO NCCL_DEBUG NCCL_IB_DISABLE "
    "NCCL_P2P_DISABLE NCCL_PROTO NCCL_SOCKET_IFNAME NVIDIA_TF32_OVERRIDE OMP_NUM_THREADS PYTHONHASHSEED PYTHONNOUSERSITE "
    "PYTHONPATH PYTORCH_CUDA_ALLOC_CONF TOKENIZERS_PARALLELISM TORCHDYNAMO_DISABLE TORCHINDUCTOR_CACHE_DIR "
    "TORCH_CUDA_ARCH_LIST TRANSFORMERS_CACHE TRANSFORMERS_OFFLINE"
).split()


class ManifestError(Exception):
    """A manifest cannot be read; the message names the file and what is wrong with it."""


def packages(installed: Installed) -> List[Dict[str, str]]:
    """Every installed package, sorted: name, version, build, channel, manager and hash (sha256 in hex).

    A conda package's hash is its archive's; a wheel's is over its RECORD, without what depends on the place.
    """
    rows = [
        {"name": r.name, "version": r.version, "build": r.build, "channel": r.channel, "manager": "conda", "hash": r.sha256}
        for r in installed.conda
    ]
    rows += [
        {"name": d.name, "version": d.version, "build": "", "channel": "pypi", "manager": "pip", "hash": record_hash(d)}
        for d in installed.dists
        if d.manager == "pip"
    ]
    return sorted(rows, key=lambda row: (row["manager"], row["name"], row["version"], row["hash"]))


def fingerprint(rows: List[Dict[str, str]]) -> str:
    """One sha256 over all packages and their hashes: equal on every machine that has the same environment.

    flash-attn counts by version: it is built on the spot, and two builds of one source differ in bytes.
    """
    lines = [
        " ".join((r["manager"], r["name"], r["version"], r["build"], "" if r["name"] == "flash-attn" else r["hash"]))
        for r in rows
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def vulnerabilities(installed: Installed) -> List[Dict[str, str]]:
    """The known vulnerabilities (vulnerabilities.json) whose package is installed in an affected version."""
    found = []
    for entry in json.loads((Path(__file__).parent / "vulnerabilities.json").read_text()):
        version = installed.version(entry["package"])
        if version and (not entry["fixed_in"] or version_tuple(version.split("+")[0]) < version_tuple(entry["fixed_in"])):
            found.append({**entry, "installed": version})
    return found


def _repository() -> Dict[str, Any]:
    def git(*arguments: str) -> Optional[str]:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError:
            return None
        return done.stdout.decode().strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "modified": None if status is None else bool(status)}


def loaded_cuda(python: Path) -> Dict[str, Optional[str]]:
    """The CUDA, cuDNN and NCCL versions that torch reports in the prefix's interpreter; None where it cannot."""
    program = (
        "import json, torch; n = torch.cuda.nccl.version() if torch.cuda.is_available() else None;"
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda,"
        "'cudnn': str(torch.backends.cudnn.version() or '') or None, 'nccl': '.'.join(map(str, n)) if n else None}))"
    )
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(python), "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", env=environ)
    try:
        answer: Dict[str, Optional[str]] = json.loads(done.stdout.decode().splitlines()[-1])
        return answer
    except (ValueError, IndexError):
        return {"torch": None, "cuda": None, "cudnn": None, "nccl": None}


def make(context: Context, results: List[Result], with_uuids: bool = False) -> Dict[str, Any]:
    """The manifest as a document; scripts/lockedenv/schemas/manifest.schema.json describes it."""
    rows = packages(context.installed)
    return {
        "schema_version": SCHEMA_VERSION,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fingerprint": fingerprint(rows),
        "repository": _repository(),
        "locks": {name: file_sha256(ROOT / name) or None for name in LOCKED_FILES},
        "backend": context.installed.backend,
        "prefix": str(context.installed.prefix),
        "packages": rows,
        "machine": {
            "python": platform.python_version(),
            "glibc": platform.libc_ver()[1],
            "kernel": platform.release(),
            "cpu": _cpu_name(),
            "cpus": host.cpu_limit(),
            "memory_bytes": host.memory_limit()[0],
        },
        "gpus": [_gpu(gpu, with_uuids) for gpu in context.gpus],
        "cuda": loaded_cuda(context.python),
        "variables": {name: context.environ[name] for name in VARIABLES if name in context.environ},
        "vulnerabilities": vulnerabilities(context.installed),
        "results": [r.as_dict() for r in results],
    }


def _gpu(gpu: host.Gpu, with_uuid: bool) -> Dict[str, Any]:
    row = {"name": gpu.name, "driver": gpu.driver, "memory_bytes": gpu.memory, "capability": gpu.capability, "mig": gpu.mig}
    return {**row, "uuid": gpu.uuid} if with_uuid else row


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def read(path: Path) -> Dict[str, Any]:
    """A manifest from a file. Raises ManifestError."""
    try:
        document: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["schema_version"] != SCHEMA_VERSION:
            raise ManifestError(f"{path}: is of schema version {document['schema_version']}, this reads {SCHEMA_VERSION}")
        for key in ("fingerprint", "packages", "gpus", "variables", "machine", "cuda", "locks"):
            document[key]
        return document
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: is not a session manifest ({error}); make one with --manifest {path}") from None


def _flat(document: Dict[str, Any]) -> Dict[str, Dict[str, str]]:
    """A manifest as groups of name -> value, for comparing."""
    by_name: Dict[str, str] = {}
    for p in document["packages"]:
        text = " ".join(filter(None, (p["version"], p["build"], p["channel"])))
        by_name[f"{p['name']} ({p['manager']})"] = f"{text} {p['hash'][:12]}" if p["name"] != "flash-attn" else text
    return {
        "packages": by_name,
        "GPU": {f"GPU {i}": f"{g['name']}, {g['memory_bytes']} bytes, {g['capability']}" for i, g in enumerate(document["gpus"])},
        "driver": {
            **{f"GPU {i}": str(g["driver"]) for i, g in enumerate(document["gpus"])},
            **{k: str(v) for k, v in document["cuda"].items()},
        },
        "variables": {k: str(v) for k, v in document["variables"].items()},
        "machine": {k: str(v) for k, v in document["machine"].items()},
        "locks": {k: str(v)[:12] for k, v in document["locks"].items()},
    }


def differences(a: Dict[str, Any], b: Dict[str, Any]) -> List[Tuple[str, str, str, str]]:
    """(group, name, in a, in b) of all that differs between two manifests; '-' where one has nothing."""
    rows = []
    for (group, left), right in zip(_flat(a).items(), _flat(b).values()):
        for name in sorted({*left, *right}):
            if left.get(name) != right.get(name):
                rows.append((group, name, left.get(name, "-"), right.get(name, "-")))
    return rows


def comparison(a: Dict[str, Any], b: Dict[str, Any], names: Tuple[str, str]) -> str:
    """What differs, grouped, as text for people."""
    rows = differences(a, b)
    same = a["fingerprint"] == b["fingerprint"]
    verdict = "the same environment" if same else "NOT the same environment"
    lines = [f"{names[0]} and {names[1]}: {verdict} (fingerprints {a['fingerprint'][:12]}, {b['fingerprint'][:12]})"]
    for group in dict.fromkeys(row[0] for row in rows):
        lines.append(f"{group}:")
        lines += [f"  {name:<28} {left}  ->  {right}" for g, name, left, right in rows if g == group]
    return "\n".join(lines)
