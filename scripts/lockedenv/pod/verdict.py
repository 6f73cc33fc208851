"""Is this pod worth its price? What a machine is, before anything is fetched: the standard library, the driver's library, curl.

Each finding is fine (pass), usable with a setting or slower than it could be (warn), or a reason to give the pod back (fail).
`python -m lockedenv.pod.verdict` is the child that asks libcuda, which may crash or hang: it prints what it found as JSON.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from lockedenv import ROOT
from lockedenv.host import machine
from lockedenv.host.machine import GIB, Gpu, size_text
from lockedenv.host.process import ask
from lockedenv.verify.checks import FAIL, PASS, WARN, Result, failed, first, passed, skipped, warned
from lockedenv.verify.checks.gpu import ask_state

BACK = "give this pod back, and take another"
# cuda.h, enum cudaError_enum. 802 is what H200 and B200 pods say whose fabric manager does not run; nvidia-smi is fine there.
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
USED = 0.03  # of a GPU's memory, beside our own context (0.5 GB on an H100): more is somebody's
SHM = (
    GIB  # data loaders of torch pass batches through /dev/shm; docker's default of 64 MB kills them
)
CPUS, MEMORY = (
    4,
    1.0,
)  # for each GPU: data loaders and compilers; host memory over GPU memory: a checkpoint is read through it
DISK, FILES = (
    200e6,
    300,
)  # bytes and small files a second, under which unpacking 6 GB in 30,000 files takes minutes
UNPACK = (
    7e-9  # CPU seconds for a fetched byte: 23 s for 3.3 GB, with hashing and the quick verification
)
NETWORK = 10e6  # bytes a second, under which 3.5 GB take six minutes
SAMPLE, FEW = 128 << 20, 300  # what is written for the rates of a disk: bytes, small files


def libcuda() -> Dict[str, Any]:
    """What the driver's library says: the code of cuInit; name, context's code and memory of each GPU; who reaches whom."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"error": str(error)}
    count, found = ctypes.c_int(), []
    if code := cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return {"code": code}
    for index in range(count.value):
        name, context, sizes = (
            ctypes.create_string_buffer(100),
            ctypes.c_void_p(),
            [ctypes.c_size_t(), ctypes.c_size_t()],
        )
        cuda.cuDeviceGetName(name, 100, index)
        code = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), index) or cuda.cuCtxSetCurrent(
            context
        )
        code = code or cuda.cuMemGetInfo_v2(*map(ctypes.byref, sizes))
        found.append(
            {
                "name": name.value.decode(),
                "code": code,
                "free": sizes[0].value,
                "total": sizes[1].value,
            }
        )
    apart, reach = [], ctypes.c_int()
    for a, b in itertools.permutations(range(count.value), 2):
        if cuda.cuDeviceCanAccessPeer(ctypes.byref(reach), a, b) or not reach.value:
            apart.append([a, b])
    return {"code": 0, "gpus": found, "apart": apart}


def ask_libcuda(limit: float = 60) -> Dict[str, Any]:
    """`libcuda` in a process of its own, which sees all GPUs; {"error": why} if it crashes or hangs."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    environ.pop("CUDA_VISIBLE_DEVICES", "")
    status, said, why = ask([sys.executable, "-m", "lockedenv.pod.verdict"], limit, env=environ)
    try:
        answer: Dict[str, Any] = json.loads(said)
        return answer
    except ValueError:
        return {
            "error": why if status is None else f"exit {status}: {''.join(why.splitlines()[-1:])}"
        }


def cuda_verdict(said: Dict[str, Any], gpus: Sequence[Gpu]) -> Result:
    """A context on each GPU, and the memory that is free in it."""
    if "error" in said:
        return failed(f"libcuda: {said['error']}", f"nvidia-smi answers and CUDA does not: {BACK}")
    if said["code"]:
        return failed(
            f"cuInit: error {said['code']}, {CUDA_ERRORS.get(said['code'], 'see cuda.h')}",
            f"no program can use CUDA here: {BACK}",
        )
    bad, busy = [], []
    for index, gpu in enumerate(said["gpus"]):
        if gpu["code"] in (2, 46):
            busy.append(f"GPU {index}: {CUDA_ERRORS[gpu['code']]}")
        elif gpu["code"]:
            bad.append(
                f"GPU {index}: no context: error {gpu['code']}, {CUDA_ERRORS.get(gpu['code'], 'see cuda.h')}"
            )
        elif gpu["total"] - gpu["free"] > USED * gpu["total"] + GIB:
            busy.append(
                f"GPU {index}: {size_text(gpu['total'] - gpu['free'])} of {size_text(gpu['total'])} are in use already"
            )
    if bad:
        return failed(first(bad), f"this GPU does not work: {BACK}", bad[1:])
    if len(said["gpus"]) < len(gpus) and not any(
        gpu.mig for gpu in gpus
    ):  # of MIG instances CUDA shows one
        return failed(
            f"CUDA sees {len(said['gpus'])} of the {len(gpus)} GPUs that nvidia-smi shows", BACK
        )
    if busy:
        return warned(
            first(busy),
            f"if no program of yours does (nvidia-smi lists them), the GPU is shared: {BACK}",
            busy[1:],
        )
    return passed(f"a context on each of {len(said['gpus'])} GPUs, and its memory is free")


def peers_verdict(said: Dict[str, Any]) -> Result:
    """Whether each GPU reaches the memory of each other one."""
    if len(said.get("gpus", [])) < 2:
        return skipped("not two GPUs")
    if said["apart"]:
        a, b = said["apart"][0]
        why = (
            f"GPU {a} does not reach GPU {b}'s memory"
            + f" (and {len(said['apart']) - 1} more pairs)" * (len(said["apart"]) > 1)
        )
        return warned(why, "export NCCL_P2P_DISABLE=1, if NCCL hangs; it is slower so")
    return passed(f"each of {len(said['gpus'])} GPUs reaches each other one's memory")


def links_verdict(gpus: Sequence[Gpu]) -> Result:
    """The NVLinks of GPUs that have them, as nvidia-smi tells."""
    status, said, _ = ask(["nvidia-smi", "nvlink", "--status"])
    links = re.findall(r"Link \d+: (\S+)", said) if status == 0 else []
    down = [link for link in links if "inactive" in link.lower()]
    if len(gpus) < 2 or len(down) == len(links):
        return skipped("not two GPUs that NVLink joins")
    if down:
        return warned(
            f"{len(down)} of {len(links)} NVLinks are inactive",
            f"GPUs exchange data slowly: for a job on several, {BACK}",
        )
    return passed(f"{len(links)} NVLinks are active")


def power_verdict(text: str) -> Result:
    """`nvidia-smi --query-gpu=power.limit,power.default_limit`: a limit under the maker's makes a GPU slow."""
    lines = [re.fullmatch(r"(\d+\.\d+), (\d+\.\d+)", line.strip()) for line in text.splitlines()]
    watts = [(i, float(match[1]), float(match[2])) for i, match in enumerate(lines) if match]
    low = [
        f"GPU {i}: limited to {now:.0f} W of {usual:.0f} W"
        for i, now, usual in watts
        if now < 0.95 * usual
    ]
    if low:
        return warned(
            first(low),
            f"slower under load than others of its kind; if you pay for a whole one, {BACK}",
            low[1:],
        )
    return (
        passed("no GPU is limited under its usual power")
        if watts
        else skipped("nvidia-smi does not tell the power limits")
    )


def xids_verdict(log: str, ours: Sequence[str]) -> Result:
    """The errors of our GPUs in the kernel's log, which is the host's. `ours`: their PCI addresses, such as 0000:01:00."""
    found = re.findall(r"NVRM: Xid \(PCI:([\w:]+)[^)]*\): (\d+)", log)
    lines = [
        f"Xid {number} of the GPU at {place}" for place, number in found if place.lower() in ours
    ]
    if lines:
        return warned(
            first(lines),
            "a program may have caused it; if it comes again, take another pod",
            lines[1:],
        )
    return passed("no error of these GPUs in the kernel's log")


def host_verdict(gpus: Sequence[Gpu], shm: int, root: Path = Path("/")) -> Result:
    """CPUs, memory and /dev/shm beside what the GPUs need. `shm` in bytes."""
    cpus, memory, wants = machine.cpu_limit(root), machine.memory_limit(root)[0], []
    if shm < SHM:
        wants.append(
            (
                f"/dev/shm has {size_text(shm)}",
                "use DataLoader(num_workers=0), or a pod with --shm-size: workers die here",
            )
        )
    if gpus and cpus < CPUS * len(gpus):
        wants.append(
            (
                f"{cpus:g} CPUs for {len(gpus)} GPUs",
                f"loading data will be slow: {CPUS} for each GPU are usual",
            )
        )
    if gpus and memory < MEMORY * sum(gpu.memory for gpu in gpus):
        total = size_text(sum(gpu.memory for gpu in gpus))
        wants.append(
            (
                f"{size_text(memory)} of memory for {total} of GPU memory",
                "load checkpoints with low_cpu_mem_usage=True",
            )
        )
    if wants:
        return warned(
            first([said for said, _ in wants]),
            "; ".join(remedy for _, remedy in wants),
            [said for said, _ in wants[1:]],
        )
    return passed(f"{cpus:g} CPUs, {size_text(memory)} of memory, {size_text(shm)} of /dev/shm")


def disk(place: Path) -> Result:
    """How fast the disk of a place writes: one large file, to the disk itself, then small ones; 3 s each at most."""
    try:
        with tempfile.TemporaryDirectory(
            prefix=".maximalcai-", dir=machine.existing_parent(place)
        ) as tmp:
            block, began, size, count = os.urandom(1 << 20), time.monotonic(), 0, 0
            with open(f"{tmp}/large", "wb") as file:
                while size < SAMPLE and time.monotonic() - began < 3:
                    size += file.write(block)
                file.flush()
                os.fsync(file.fileno())
            rate, began = size / (time.monotonic() - began), time.monotonic()
            while count < FEW and time.monotonic() - began < 3:
                Path(tmp, str(count)).write_bytes(block[:4096])
                count += 1
            files = count / (time.monotonic() - began)
    except OSError as error:
        return warned(
            f"{place}: cannot be written: {error.strerror}",
            "choose another place with --prefix or --cache",
        )
    said = f"{place}: {rate / 1e6:.0f} MB/s, {files:.0f} small files a second"
    slow = (
        "installing and checkpoints will be slow here; name another disk with --prefix or --cache"
    )
    result = warned(said, slow) if rate < DISK or files < FILES else passed(said)
    result.measured = {"bytes_per_s": rate, "files_per_s": files}
    return result


def network(name: str, url: str) -> Result:
    """The rate of the first megabytes of a file that an installation would fetch; they are discarded."""
    curl = "curl --disable --netrc-optional --config - --location --fail --silent --show-error --connect-timeout 5 --max-time 6"
    options = [
        "--range",
        f"0-{24 << 20}",
        "--output",
        os.devnull,
        "--write-out",
        "%{size_download} %{speed_download}",
    ]
    status, said, why = ask(
        [*curl.split(), *options], 10, f"url = {json.dumps(url, ensure_ascii=False)}\n"
    )
    size, rate = map(float, said.split()) if re.fullmatch(r"[\d.]+ [\d.]+", said) else (0.0, 0.0)
    if size < 1e6 and status != 0:
        return warned(
            f"{name} does not answer",
            f"{' '.join(why.split())[:100]}; --mirror or --offline bring the files another way",
        )
    said = f"{name}: {rate / 1e6:.0f} MB/s"
    if rate < NETWORK:
        return warned(
            said,
            "fetching will take long; a cache on a volume, or --mirror, saves it",
            bytes_per_s=rate,
        )
    return passed(said, bytes_per_s=rate)


def look(shm: Path = Path("/dev/shm")) -> List[Result]:
    """What costs no time: the GPUs and the container."""
    found: List[Result] = []

    def add(check: str, result: Result) -> None:
        result.check = check
        found.append(result)

    try:
        gpus = machine.gpus()
    except machine.MachineError as error:
        what, _, remedy = str(error).rpartition("; ")
        add("pod-gpus", failed(what or remedy, BACK))
        gpus = []
    if gpus:
        said = ask_libcuda()
        add("pod-gpus", passed(f"{len(gpus)} x {gpus[0].name}, driver {gpus[0].driver}"))
        add("pod-cuda", cuda_verdict(said, gpus))
        add("pod-state", ask_state())
        limits = (
            "nvidia-smi --query-gpu=power.limit,power.default_limit --format=csv,noheader,nounits"
        )
        add("pod-power", power_verdict(ask(limits.split())[1]))
        add("pod-peers", peers_verdict(said))
        add("pod-nvlink", links_verdict(gpus))
        status, log, _ = ask(["dmesg"])
        places = re.findall(
            r"(\w{4}:\w\w:\w\w)\.\d",
            ask("nvidia-smi --query-gpu=pci.bus_id --format=csv,noheader".split())[1].lower(),
        )
        add(
            "pod-xid",
            (
                xids_verdict(log, places)
                if status == 0
                else skipped("the kernel's log may not be read here")
            ),
        )
    elif not found:
        add("pod-gpus", skipped("no NVIDIA GPU on this machine"))
    add("pod-host", host_verdict(gpus, shutil.disk_usage(shm).total if shm.is_dir() else 0))
    return found


def measure(
    places: Sequence[Path], urls: Mapping[str, str], needed: int, unpacked: int
) -> List[Result]:
    """The rates of disks and of the origins, by name; the last is how long the set-up will take: `needed` bytes are fetched."""
    with ThreadPoolExecutor(max(1, len(urls))) as pool:
        rates = list(pool.map(network, urls, urls.values()))
    disks = [disk(place) for place in places]
    for check, results in (("pod-network", rates), ("pod-disk", disks)):
        for result in results:
            result.check = check
    known = [r.measured["bytes_per_s"] for r in rates if r.measured.get("bytes_per_s")]
    if known and disks[0].measured:
        seconds = (
            needed / min(known)
            + unpacked / disks[0].measured["bytes_per_s"]
            + needed * UNPACK / machine.cpu_limit()
        )
        what = f"{size_text(needed)} to fetch, {size_text(unpacked)} to write"
        ready = passed(f"about {seconds:.0f} s to an installed environment: {what}")
        ready.check = "pod-ready"
        return [*rates, *disks, ready]
    return [*rates, *disks]


def conclude(results: Sequence[Result]) -> Tuple[str, str]:
    """(verdict, one line) on all findings."""
    back, usable = ([r.check for r in results if r.verdict == verdict] for verdict in (FAIL, WARN))
    if back:
        return FAIL, f"give this pod back: {', '.join(back)}"
    if usable:
        return WARN, f"usable, with what is said of {', '.join(usable)}"
    return PASS, "fine: nothing speaks against this pod"


if __name__ == "__main__":
    print(json.dumps(libcuda()))
