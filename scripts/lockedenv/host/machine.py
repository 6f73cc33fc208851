"""What this machine is: GPUs and driver, CPU and memory limits, disks. `root` is another machine's, in the tests."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from lockedenv.errors import Stop
from lockedenv.host.process import ask
from lockedenv.spec import facts

QUERY = "name,driver_version,memory.total,compute_cap,uuid,mig.mode.current"
GIB = 1024**3
POD_VOLUME = Path(
    "/workspace"
)  # RunPod's persistent volume; the container disk, faster, is lost with the pod


class MachineError(Stop):
    """The machine could not be asked, for example because nvidia-smi fails; the message is for people."""


@dataclass
class Gpu:
    """One GPU as nvidia-smi reports it; `memory` in bytes, `capability` such as "9.0"."""

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


def parse_gpus(text: str) -> List[Gpu]:
    """The GPUs in `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` (memory in MiB). Raises MachineError."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = [field.strip() for field in line.split(",")]
        fields[2:3] = (
            ["0"] if fields[2:3] == ["[Insufficient Permissions]"] else fields[2:3]
        )  # of a GPU in MIG mode, in a container
        if len(fields) != 6 or not re.fullmatch(r"\d+\.\d+", fields[3]) or not fields[2].isdigit():
            raise MachineError(f"nvidia-smi said {line!r}, which is not a GPU; take another pod")
        name, driver, memory, capability, uuid, mig = fields
        found.append(Gpu(name, driver, int(memory) * 1024**2, capability, uuid, mig == "Enabled"))
    return found


def gpu_nodes(root: Path = Path("/")) -> List[Path]:
    """What the driver shows of the GPUs under `root`, one path for each: device nodes, or folders in /proc."""
    return max(
        (sorted(root.glob(names)) for names in ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*")),
        key=len,
    )


def gpus(root: Path = Path("/"), environ: Optional[Mapping[str, str]] = None) -> List[Gpu]:
    """The GPUs of this machine, by the nvidia-smi on PATH; empty if nothing says that it has one.

    Raises MachineError if nvidia-smi fails, or shows fewer than RUNPOD_GPU_COUNT (what the pod was rented with), or none and
    the driver shows one under `root` (`gpu_nodes`).
    """
    environ = os.environ if environ is None else environ
    text = environ.get("RUNPOD_GPU_COUNT", "")
    rented = int(text) if text.isdigit() else 0
    signs = [f"RUNPOD_GPU_COUNT={rented}"] * (rented > 0) + [str(path) for path in gpu_nodes(root)]
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if not program:
        if signs:
            said = f"there is an NVIDIA GPU but no nvidia-smi ({signs[0]})"
            raise MachineError(
                f"{said}; start the container with the NVIDIA runtime, or take another pod"
            )
        return []
    status, text, why = ask([program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"])
    if status is None:
        raise MachineError(
            f"nvidia-smi does not answer ({why}); the GPU or its driver hangs: take another pod"
        )
    if "No devices were found" in text + why or not (status or text.strip()):
        said = f"nvidia-smi finds no GPU, and there should be one ({(signs or ['its driver is here'])[0]})"
        raise MachineError(f"{said}; the GPU has failed: take another pod")
    if status:
        first = (text + why).strip().splitlines()[:1]
        raise MachineError(f"nvidia-smi fails: {''.join(first)} (exit {status}); take another pod")
    found = parse_gpus(text)
    if len(found) < rented:
        raise MachineError(
            f"nvidia-smi shows {len(found)} of the {rented} GPUs that RUNPOD_GPU_COUNT promises; take another pod"
        )
    return found


def version_tuple(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def driver_problem(found: List[Gpu], cuda: str) -> Optional[str]:
    """Why the driver is too old for the locked CUDA, or None."""
    oldest = facts.of(cuda).driver
    for gpu in found:
        if version_tuple(gpu.driver) < version_tuple(oldest):
            remedy = (
                f"a pod cannot upgrade it: take another pod, filtering for CUDA {cuda} or newer"
            )
            return f"the driver {gpu.driver} of {gpu.name} is older than {oldest}, the oldest for CUDA {cuda}; {remedy}"
    return None


def _read(path: Path) -> str:
    """The text of a file; empty if there is none, or none that may be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int:
    """The whole number in a file; 0 if there is none ("max", -1)."""
    return int("".join(re.findall(r"^\d+", _read(path))) or 0)


def _cgroup_folders(root: Path, controller: str) -> List[Path]:
    """The cgroup's folders for a controller, this process's own first, then its ancestors (v2 and v1)."""
    found: List[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            base = root / "sys/fs/cgroup" / (controller if names else "")
            own = base / path.lstrip("/")
            found += [folder for folder in (own, *own.parents) if base in folder.parents]
    return [*found, root / "sys/fs/cgroup", root / "sys/fs/cgroup" / controller]


def cpu_limit(root: Path = Path("/")) -> float:
    """CPUs that this process may use: the smallest of its affinity and its cgroups' quotas (v1 and v2)."""
    limits = [float(len(os.sched_getaffinity(0)))] if root == Path("/") else []
    for folder in _cgroup_folders(root, "cpu"):
        text = _read(folder / "cpu.max") or " ".join(
            _read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        )
        limits += [
            int(quota) / int(period)
            for quota, period in re.findall(r"^([1-9]\d*)\s+([1-9]\d*)", text)
        ]
    return min(limits, default=1.0)


def memory_limit(root: Path = Path("/")) -> Tuple[int, int]:
    """(limit, free) of memory in bytes: the machine's, or its cgroup's (v1 and v2) where that is less."""
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.M))
    limit, free = int(info["MemTotal"]) * 1024, int(info["MemAvailable"]) * 1024
    for folder in _cgroup_folders(root, "memory"):
        for maximum, current in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most = _number(folder / maximum)
            if (
                0 < most < limit
            ):  # the page cache counts as used, and is given back when memory is short
                cache = re.findall(
                    r"^(?:total_)?inactive_file (\d+)", _read(folder / "memory.stat"), re.M
                )
                limit, free = most, min(
                    free, most - max(_number(folder / current) - int((cache or [0])[-1]), 0)
                )
    return limit, max(free, 0)


def existing_parent(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists: where the disk of a path to be made is asked."""
    return next(place for place in (path, *path.parents) if place.exists())


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(existing_parent(path)).free


def same_filesystem(a: Path, b: Path) -> bool:
    return existing_parent(a).stat().st_dev == existing_parent(b).stat().st_dev


@functools.lru_cache()
def has_links_and_locks(folder: Path) -> bool:
    """Whether the disk of a folder has hard links and file locks: uv's cache needs both, and network disks may have neither."""
    with contextlib.ExitStack() as stack:
        try:
            tmp = stack.enter_context(tempfile.TemporaryDirectory(dir=existing_parent(folder)))
        except OSError:  # nothing can be written there, which others say
            return True
        with open(f"{tmp}/a", "w") as file, contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.link(f"{tmp}/a", f"{tmp}/b")
            return True
        return False


def size_text(size: float) -> str:
    """Bytes for people, in decimal units as disks are sold: 1.6 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def home() -> Path:
    """The user's home. Raises Stop where there is none to be known."""
    try:
        return Path.home()
    except (
        RuntimeError
    ):  # HOME is not set, and the user is in no passwd file, as with `docker run --user 1234`
        raise Stop(
            "HOME is not set; set it, or name both places with --prefix and --cache"
        ) from None


def default_cache() -> Path:
    """Where downloads are kept: on a pod's persistent volume, otherwise in the user's cache folder."""
    pod = (os.environ.get("RUNPOD_POD_ID") or os.path.ismount(POD_VOLUME)) and os.access(
        POD_VOLUME, os.W_OK
    )
    return (
        Path(
            POD_VOLUME / ".cache" if pod else os.environ.get("XDG_CACHE_HOME") or home() / ".cache"
        )
        / "maximalcai"
    )


def read_json(path: Path) -> Dict[str, Any]:
    """A JSON object from a file; empty if it is not there, or is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        data = json.loads(path.read_text(encoding="utf-8") if path.is_file() else "")
        return data if isinstance(data, dict) else {}
    return {}


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a reader never sees half of it. A device or a pipe is written to as it is."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(
        f".{path.name[:200]}.{secrets.token_hex(8)}"
    )  # two containers have equal ids
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
