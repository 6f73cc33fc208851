"""What a pod is worth, decided on stand-ins of the driver: a healthy H100, error 802, ECC, a taken GPU, slow disks and servers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import jsonschema
import pytest
from conftest import ROOT, Machine, sh
from fault_server import FaultServer, Handler
from lockedenv.host.machine import GIB, Gpu
from lockedenv.pod import verdict as pod

H100 = Gpu("NVIDIA H100 80GB HBM3", "550.90", 80 * GIB, "9.0", "GPU-1", False)
LIBCUDA = """
#include <string.h>
#include <stddef.h>
#include <stdlib.h>
int cuInit(unsigned f) { if (INIT < 0) abort(); return INIT; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strcpy(s, "NVIDIA H100 80GB HBM3"); return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = s_dummy; return d == COUNT - 1 ? CONTEXT : 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *t = 85899345920UL; *f = *t - USED; return 0; }
int cuDeviceCanAccessPeer(int *y, int a, int b) { *y = PEER; return 0; }
""".replace("s_dummy", "(void *)8")
SMI = """#!/bin/sh
case "$*" in
  *power.limit*) echo "${POWER:-700.00, 700.00}" ;;
  *name,driver_version*) for i in $(seq ${GPUS:-1}); do echo "NVIDIA H100 80GB HBM3, 550.90, ${MEMORY:-81559}, 9.0, GPU-$i, ${MIG:-Disabled}"; done ;;
  *nvlink*) [ "${GPUS:-1}" = 1 ] || printf '\\t Link 0: %s\\n' 26.562 "${LINK:-26.562}" ;;
  *pci.bus_id*) echo 00000000:01:00.0 ;;
  *remapped*) echo "No, ${ROWS:-No}" ;;
  *--query-gpu*) echo "${ECC:-0}, Not Active, Not Active, Not Active, Not Active, Not Active, Not Active, 16, 16" ;;
esac
"""


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., Dict[str, str]]:
    """Compiles a libcuda that answers as it is told, and writes an nvidia-smi; gives the environment in which they are found."""

    def made(**values: Any) -> Dict[str, str]:
        given = {"INIT": 0, "COUNT": 1, "CONTEXT": 0, "USED": 600 << 20, "PEER": 1}
        library, defined = tmp_path / "driver/libcuda.so.1", {
            k: values.pop(k, v) for k, v in given.items()
        }
        library.parent.mkdir(exist_ok=True)
        (tmp_path / "libcuda.c").write_text(LIBCUDA)
        sh(
            "gcc",
            "-shared",
            "-fPIC",
            *(f"-D{k}={v}" for k, v in defined.items()),
            "-o",
            library,
            tmp_path / "libcuda.c",
        )
        smi = library.parent / "nvidia-smi"
        smi.write_text(SMI)
        smi.chmod(0o755)
        path = f"{library.parent}:{os.environ['PATH']}"
        return {
            "PATH": path,
            "LD_LIBRARY_PATH": str(library.parent),
            "GPUS": str(defined["COUNT"]),
            **values,
        }

    return made


def looked(environ: Dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Dict[str, Tuple[str, str]]:
    """check -> (verdict, what is said and the remedy) of `look` in an environment."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return {
        result.check: (result.verdict, f"{result.summary}: {result.remedy}")
        for result in pod.look()
    }


def test_a_healthy_h100_is_fine(
    driver: Callable[..., Dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = looked(driver(), monkeypatch)
    assert found["pod-cuda"] == ("pass", "a context on each of 1 GPUs, and its memory is free: ")
    assert {
        check: verdict
        for check, (verdict, _) in found.items()
        if check not in ("pod-host", "pod-xid")
    } == {
        "pod-gpus": "pass",
        "pod-cuda": "pass",
        "pod-state": "pass",
        "pod-power": "pass",
        "pod-peers": "skip",
        "pod-nvlink": "skip",
    }


@pytest.mark.parametrize(
    "values, check, verdict, said",
    [
        (
            {"INIT": 802},
            "pod-cuda",
            "fail",
            "cuInit: error 802, system not ready: the NVLink fabric manager",
        ),
        ({"INIT": 999}, "pod-cuda", "fail", "cuInit: error 999"),
        ({"INIT": -1}, "pod-cuda", "fail", "libcuda: exit -6"),
        ({"CONTEXT": 46}, "pod-cuda", "warn", "GPU 0: the device is busy"),
        ({"CONTEXT": 2}, "pod-cuda", "warn", "GPU 0: out of memory"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "pod-cuda", "pass", "a context on each"),
        ({"COUNT": 1, "GPUS": "2", "MIG": "Enabled"}, "pod-cuda", "pass", "a context on each"),
        ({"ECC": "[Insufficient Permissions]"}, "pod-state", "pass", "no memory errors"),
        ({"MEMORY": "[Insufficient Permissions]"}, "pod-gpus", "pass", "1 x NVIDIA H100"),
        (
            {"POWER": "WARNING: infoROM is corrupted at gpu 0000:84:00.0"},
            "pod-power",
            "skip",
            "does not tell",
        ),
        (
            {"CONTEXT": 214},
            "pod-cuda",
            "fail",
            "an uncorrectable memory error (ECC): this GPU does not work: give this pod back",
        ),
        ({"USED": 40 << 30}, "pod-cuda", "warn", "GPU 0: 42.9 GB of 85.9 GB are in use already"),
        (
            {"COUNT": 2, "GPUS": "4"},
            "pod-cuda",
            "fail",
            "CUDA sees 2 of the 4 GPUs that nvidia-smi shows",
        ),
        ({"ECC": "3"}, "pod-state", "fail", "uncorrected memory errors: 3"),
        ({"ROWS": "Yes"}, "pod-state", "fail", "memory rows cannot be remapped"),
        ({"POWER": "350.00, 700.00"}, "pod-power", "warn", "GPU 0: limited to 350 W of 700 W"),
        ({"POWER": "[N/A], [N/A]"}, "pod-power", "skip", "does not tell"),
        ({"POWER": "what is this"}, "pod-power", "skip", "does not tell"),
        ({"COUNT": 2}, "pod-peers", "pass", "each of 2 GPUs reaches"),
        (
            {"COUNT": 2, "PEER": 0},
            "pod-peers",
            "warn",
            "GPU 0 does not reach GPU 1's memory (and 1 more pairs): export NCCL_P2P_DISABLE=1",
        ),
        ({"COUNT": 2}, "pod-nvlink", "pass", "2 NVLinks are active"),
        ({"COUNT": 2, "LINK": "<inactive>"}, "pod-nvlink", "warn", "1 of 2 NVLinks are inactive"),
        (
            {"RUNPOD_GPU_COUNT": "8"},
            "pod-gpus",
            "fail",
            "nvidia-smi shows 1 of the 8 GPUs that RUNPOD_GPU_COUNT promises",
        ),
    ],
)
def test_what_is_wrong_with_a_gpu_is_named(
    values: Dict[str, Any],
    check: str,
    verdict: str,
    said: str,
    driver: Callable[..., Dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = looked(driver(**values), monkeypatch)
    assert found[check][0] == verdict and said in found[check][1], found


def test_a_driver_that_hangs_or_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pod, "ask", lambda command, *rest, **options: (None, "", "no answer within 15 s")
    )
    assert pod.cuda_verdict(pod.ask_libcuda(), [H100]).summary == "libcuda: no answer within 15 s"
    monkeypatch.setattr(
        pod.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: cannot open"))
    )
    gone = pod.cuda_verdict(pod.libcuda(), [H100])
    assert gone.verdict == "fail" and gone.summary == "libcuda: libcuda.so.1: cannot open"


@pytest.mark.parametrize(
    "log, verdict",
    [
        ("", "pass"),
        ("[1.0] NVRM: Xid (PCI:0000:01:00): 31, pid=1, MMU Fault", "warn"),
        ("[1.0] NVRM: Xid (PCI:0000:01:00 GPU-I:05): 79, GPU has fallen off the bus.", "warn"),
        ("NVRM: Xid (PCI:0000:02:00): 79, another tenant's GPU", "pass"),
    ],
)
def test_errors_of_our_gpus_in_the_kernels_log(log: str, verdict: str) -> None:
    assert pod.xids_verdict(log, ["0000:01:00"]).verdict == verdict


def test_a_host_that_is_too_small_says_what_helps(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 67108864 kB\nMemAvailable: 67108864 kB\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("200000 100000")
    result = pod.host_verdict([H100], 64 << 20, tmp_path)
    assert result.verdict == "warn" and result.summary == "/dev/shm has 67 MB (and 2 more)"
    assert "num_workers=0" in result.remedy and "low_cpu_mem_usage" in result.remedy
    assert result.details == ["2 CPUs for 1 GPUs", "68.7 GB of memory for 85.9 GB of GPU memory"]
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("1600000 100000")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 134217728 kB\nMemAvailable: 67108864 kB\n")
    assert pod.host_verdict([H100], GIB, tmp_path).verdict == "pass"


def test_the_rates_of_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod, "SAMPLE", 4 << 20)
    result = pod.disk(tmp_path / "not/yet/there")
    assert (
        result.measured["bytes_per_s"] > 0
        and result.measured["files_per_s"] > 0
        and not list(tmp_path.iterdir())
    )
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (time.sleep(0.2), fsync(file)))
    result = pod.disk(tmp_path)
    assert result.verdict == "warn" and "will be slow here" in result.remedy, result
    assert "cannot be written" in pod.disk(Path("/proc/self")).summary


def test_the_rates_of_servers(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(8 << 20))
    with FaultServer(tmp_path) as server:
        fast = pod.network("the channel x", f"{server.address}/file")
        assert fast.verdict == "pass" and fast.measured["bytes_per_s"] > pod.NETWORK, fast

        def slow(handler: Handler, content: bytes, start: int) -> bool:
            handler.send_response(206)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            for place in range(0, len(content), 1 << 18):
                handler.wfile.write(content[place : place + (1 << 18)])
                time.sleep(0.1)
            return True

        server.fault = slow
        crawling = pod.network("the channel x", f"{server.address}/file")
        assert crawling.verdict == "warn" and "--mirror" in crawling.remedy, crawling
        gone = pod.network("the channel x", f"{server.address}/none")
    assert (
        gone.verdict == "warn"
        and gone.summary == "the channel x does not answer"
        and "404" in gone.remedy
    )


def test_the_set_up_stops_on_a_bad_pod_before_anything_is_fetched(
    driver: Callable[..., Dict[str, str]], machine: Machine
) -> None:
    environ = {**driver(INIT=802), "MAXIMALCAI_TEST": "1"}
    done = machine.setup("--flash-attn", "none", **environ)
    assert (
        done.returncode == 1 and "give this pod back: pod-cuda: cuInit: error 802" in done.stdout
    ), done.stdout
    assert not machine.prefix.exists()
    assert "error 802, system not ready" in done.stdout and not (machine.cache / "pkgs").exists()
    done = machine.setup("--flash-attn", "none", "--check-pod", **environ)
    assert (
        done.returncode == 1 and done.stdout.splitlines()[-1] == "give this pod back: pod-cuda"
    ), done.stdout
    assert (
        "pod-network" in done.stdout and "pod-disk" in done.stdout and "pod-ready" in done.stdout
    ), done.stdout
    assert not machine.prefix.exists()


def test_the_verdict_on_the_machine_is_in_the_manifest(machine: Machine, installed: None) -> None:
    found = json.loads((machine.prefix / "maximalcai-manifest.json").read_text())["pod"]
    assert [row["check"] for row in found] == ["pod-gpus", "pod-host"] and found[0][
        "verdict"
    ] == "skip"
    schema = json.loads((ROOT / "scripts/lockedenv/schemas/verify.schema.json").read_text())
    for row in found:
        jsonschema.validate(row, {**schema["$defs"]["result"], "$defs": schema["$defs"]})
    done = machine.setup("--check-pod", "--json")
    assert done.returncode == 1 and "give both, and no --check-pod" in done.stdout
    done = machine.setup("--check-pod")
    assert done.returncode == 0 and "s to an installed environment" in done.stdout, done.stdout
