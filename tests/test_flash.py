"""flash-attn: every decision without a GPU, and the builder with real processes on a package of the same shape."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from conftest import ROOT, CondaEnvironment, apart, clean_environ, copy_environment, sh
from fault_server import FaultServer
from lockedenv.backends import wheels
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop
from lockedenv.host import machine
from lockedenv.host.machine import GIB, default_cache
from lockedenv.host.process import end_orphans, holding
from lockedenv.install.flash_attention import build as flash_build
from lockedenv.install.flash_attention import plan as flash_plan
from lockedenv.install.flash_attention import provide as flash
from lockedenv.install.request import Installation
from lockedenv.prefix.lifecycle import Prefix
from lockedenv.prefix.records import file_sha256
from lockedenv.spec import locks
from lockedenv.spec.environment import Environment
from lockedenv.verify.checks import Result, failed, passed

PIN = locks.PipPackage("flash-attn", "2.8.3.post2", "d" * 64)
TORCH = flash_plan.Torch("2.5.1", "12.4", False, "cp311", "linux_x86_64")
H100 = "NVIDIA H100 80GB HBM3, 550.54.14, 81559, 9.0, GPU-1, Disabled"
H200 = "NVIDIA H200, 560.35.03, 143771, 9.0, GPU-2, Disabled"
A100 = "NVIDIA A100-SXM4-80GB, 550.54.14, 81920, 8.0, GPU-3, Disabled"
L40 = "NVIDIA L40S, 550.54.14, 46068, 8.9, GPU-4, [N/A]"
MIG = "NVIDIA H100 80GB HBM3, 550.54.14, 81559, 9.0, GPU-5, Enabled"
V100 = "Tesla V100-SXM2-16GB, 550.54.14, 16384, 7.0, GPU-6, [N/A]"
B200 = "NVIDIA B200, 570.1, 183359, 10.0, GPU-7, Disabled"


# Decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, archs",
    [
        (H100, ["90"]),
        (H200, ["90"]),
        (A100, ["80"]),
        (f"{H100}\n{A100}", ["80", "90"]),
        (MIG, ["90"]),
        (L40, ["80"]),
        ("", []),
    ],
    ids=["H100", "H200", "A100", "mixed", "MIG", "L40S", "none"],
)
def test_architectures_from_the_gpus(text: str, archs: List[str]) -> None:
    assert flash_plan.architectures(machine.parse_gpus(text), "12.4") == archs


def test_architectures_asked_for_and_refused() -> None:
    assert flash_plan.architectures([], "12.4", "90") == ["90"]
    assert flash_plan.architectures([], "12.4", "9.0,80") == ["80", "90"]
    assert flash_plan.architectures(machine.parse_gpus(B200), "12.9") == ["100"]
    for gpus, asked, name in ((V100, "", "7.0"), (B200, "", "10.0"), ("", "120", "12.0")):
        with pytest.raises(
            Stop, match=f"cannot be built for compute capability {name} with CUDA 12.4"
        ):
            flash_plan.architectures(machine.parse_gpus(gpus), "12.4", asked)


@pytest.mark.parametrize(
    "cpus, free, threads, jobs",
    [
        (2, 24 * GIB, 1, 2),
        (16, 128 * GIB, 1, 16),
        (16, 30 * GIB, 1, 4),
        (8, 4 * GIB, 1, 1),
        (8, 128 * GIB, 4, 2),
        (0.5, 64 * GIB, 1, 1),
    ],
)
def test_jobs_by_cpus_and_memory(cpus: float, free: int, threads: int, jobs: int) -> None:
    assert flash_plan.job_count(cpus, free, threads)[0] == jobs
    assert "free at" in flash_plan.job_count(cpus, free, threads)[1]


def tree(root: Path, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 263856664 kB\nMemAvailable: 251658240 kB\n")
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_limits_of_cgroup_v2(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        **{
            "proc__self__cgroup": "0::/pod/container\n",
            "sys__fs__cgroup__cpu.max": "max 100000\n",
            "sys__fs__cgroup__pod__cpu.max": "800000 100000\n",
            "sys__fs__cgroup__pod__memory.max": str(64 * GIB),
            "sys__fs__cgroup__pod__memory.current": str(50 * GIB),
            "sys__fs__cgroup__pod__memory.stat": f"anon 1\ninactive_file {40 * GIB}\n",
            "sys__fs__cgroup__pod__container__cpu.max": "max 100000\n",
            "sys__fs__cgroup__pod__container__memory.max": "max\n",
        },
    )
    assert machine.cpu_limit(root) == 8
    assert machine.memory_limit(root) == (64 * GIB, 54 * GIB)


def test_limits_of_cgroup_v1(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        **{
            "proc__self__cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
            "sys__fs__cgroup__cpu__docker__x__cpu.cfs_quota_us": "250000\n",
            "sys__fs__cgroup__cpu__docker__x__cpu.cfs_period_us": "100000\n",
            "sys__fs__cgroup__memory__docker__x__memory.limit_in_bytes": str(16 * GIB),
            "sys__fs__cgroup__memory__docker__x__memory.usage_in_bytes": str(10 * GIB),
            "sys__fs__cgroup__memory__docker__x__memory.stat": f"total_inactive_file {6 * GIB}\n",
            "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert machine.cpu_limit(root) == 2.5
    assert machine.memory_limit(root) == (16 * GIB, 12 * GIB)


def test_no_limits(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert (
        machine.memory_limit(root) == (263856664 * 1024, 251658240 * 1024)
        and machine.cpu_limit(root) == 1.0
    )


def test_the_key_changes_with_every_part() -> None:
    base = flash_plan.key(PIN, TORCH, ["90"])
    assert (
        base == "flash_attn-2.8.3.post2-dddddddddddd-torch2.5.1-cu12.4-abi0-cp311-sm90-linux_x86_64"
    )
    others = [
        flash_plan.key(locks.PipPackage("flash-attn", "2.8.4", "d" * 64), TORCH, ["90"]),
        flash_plan.key(locks.PipPackage("flash-attn", "2.8.3.post2", "e" * 64), TORCH, ["90"]),
        flash_plan.key(PIN, TORCH, ["80", "90"]),
        *(
            flash_plan.key(PIN, flash_plan.Torch(*parts), ["90"])
            for parts in (
                ("2.5.0", "12.4", False, "cp311", "linux_x86_64"),
                ("2.5.1", "12.1", False, "cp311", "linux_x86_64"),
                ("2.5.1", "12.4", True, "cp311", "linux_x86_64"),
                ("2.5.1", "12.4", False, "cp312", "linux_x86_64"),
                ("2.5.1", "12.4", False, "cp311", "linux_aarch64"),
            )
        ),
    ]
    assert len({base, *others}) == 9


def test_a_built_wheel_is_kept_by_what_compiled_it_and_taken_where_its_glibc_is_no_newer() -> None:
    base, tools = flash_plan.key(PIN, TORCH, ["90"]), flash_plan.Toolchain(
        Path(), "12.4", Path(), Path(), "13.3.0", Path()
    )
    name = flash_plan.full_key(base, tools, "2.36")
    assert name == f"{base}-nvcc12.4-gcc13.3.0-glibc2.36"
    here = [
        glibc
        for glibc in ("2.28", "2.35", "2.36", "2.40")
        if flash_plan.runs_here(name, base, glibc)
    ]
    assert here == ["2.36", "2.40"] and not flash_plan.runs_here(
        name, flash_plan.key(PIN, TORCH, ["80"]), "2.36"
    )


@pytest.mark.parametrize(
    "name, said",
    [
        ("flash_attn-2.8.3+cu12torch2.5cxx11abiFALSE-cp311-cp311-linux_x86_64.whl", None),
        ("flash_attn-2.8.3.post2-cp311-cp311-linux_x86_64.whl", None),
        (
            "flash_attn-2.8.3+cu12torch2.6cxx11abiFALSE-cp311-cp311-linux_x86_64.whl",
            "torch 2.6, the environment has 2.5",
        ),
        (
            "flash_attn-2.8.3+cu12torch2.5cxx11abiTRUE-cp311-cp311-linux_x86_64.whl",
            "C++ ABI TRUE, the environment has FALSE",
        ),
        (
            "flash_attn-2.8.3+cu11torch2.5cxx11abiFALSE-cp311-cp311-linux_x86_64.whl",
            "CUDA 11, the environment has 12",
        ),
        (
            "flash_attn-2.8.3+cu12torch2.5cxx11abiFALSE-cp310-cp310-linux_x86_64.whl",
            "Python cp310, the environment has cp311",
        ),
        ("flash_attn-2.8.3-cp311-cp311-win_amd64.whl", "platform win, the environment has linux"),
        ("flash-attn.zip", "is not the name of a flash-attn wheel"),
    ],
)
def test_which_part_of_a_wheel_does_not_fit(name: str, said: str) -> None:
    misfit = flash_plan.wheel_misfit(name, TORCH)
    assert misfit is None if said is None else misfit and said in misfit


@pytest.mark.parametrize(
    "nvcc, gcc, refused, warned",
    [
        ("12.4", "13.3.0", "", ""),
        ("12.4", "11.4.0", "", ""),
        ("12.6", "12.2.0", "", "nvcc is of CUDA 12.6, torch is built for 12.4"),
        ("13.0", "12.2.0", "nvcc is of CUDA 13.0, torch is built for 12.4: install nvcc 12.4", ""),
        ("", "12.2.0", "no nvcc found: install nvcc 12.4", ""),
        ("12.4", "14.2.0", "g++ is 14.2.0, nvcc 12.4 takes up to 13: apt-get install g++-12", ""),
        ("12.4", "", "no g++ found: apt-get install g++-12", ""),
    ],
)
def test_toolchains(nvcc: str, gcc: str, refused: str, warned: str) -> None:
    refusal, warning = flash_plan.toolchain_problem("12.4", nvcc, gcc)
    assert refusal.startswith(refused) and bool(refusal) == bool(refused)
    assert warning.startswith(warned) and bool(warning) == bool(warned)


@pytest.mark.parametrize(
    "log, kind, said",
    [
        ("nvcc error   : 'cicc' died due to signal 9 (Kill signal)", "memory", "killed for memory"),
        (
            "c++: fatal error: Killed signal terminated program cc1plus",
            "memory",
            "killed for memory",
        ),
        ("/tmp/x.o: No space left on device", "disk", "No space left on device"),
        (
            "host_config.h:143: error: -- unsupported GNU version! gcc versions later than 13",
            "gcc",
            "does not take this gcc",
        ),
        (
            "RuntimeError: The detected CUDA version (13.0) mismatches the version that was used to compile",
            "nvcc",
            "another CUDA",
        ),
        (
            "x.cu:3:10: fatal error: cutlass/numeric_types.h: No such file or directory",
            "header",
            "cutlass/numeric_types.h",
        ),
        ("ModuleNotFoundError: No module named 'packaging'", "module", "packaging"),
        ("something else", "unknown", "not known"),
    ],
)
def test_the_likely_cause_of_a_failed_build(log: str, kind: str, said: str) -> None:
    found = flash_build.likely_cause("[1/73] nvcc ...\n" + log, "12.4")
    assert found[0] == kind and said in found[1] and found[2]


# The cache -------------------------------------------------------------------------------------------------------


def test_a_damaged_wheel_is_set_aside(tmp_path: Path, quiet_steps: Steps) -> None:
    (tmp_path / "built").mkdir()
    wheel = tmp_path / "built/flash_attn-1-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"wheel")
    folder = tmp_path / f"key-nvcc12.4-gcc13.3-glibc{flash.GLIBC}"
    assert flash.cached_wheel(tmp_path, "key", quiet_steps) is None
    kept = flash.keep(wheel, folder, {"nvcc": "12.4"})
    assert flash.cached_wheel(tmp_path, "key", quiet_steps) == kept
    info = json.loads((folder / "wheel.json").read_text())
    assert info["nvcc"] == "12.4" and len(info["sha256"]) == 64
    kept.write_bytes(b"whee1")
    assert flash.cached_wheel(tmp_path, "key", quiet_steps) is None and not folder.exists()
    assert next(tmp_path.glob("damaged-*-key-*")).is_dir()
    folder.mkdir()  # a folder without its JSON
    assert flash.cached_wheel(tmp_path, "key", quiet_steps) is None and not folder.exists()


def test_a_second_pod_that_finishes_later_changes_nothing(
    tmp_path: Path, quiet_steps: Steps
) -> None:
    for content in (b"first", b"second"):
        (tmp_path / "built").mkdir(exist_ok=True)
        wheel = tmp_path / "built/w.whl"
        wheel.write_bytes(content)
        flash.keep(wheel, tmp_path / "key", {})
    assert (tmp_path / "key/w.whl").read_bytes() == b"first"
    assert {p.name for p in tmp_path.iterdir()} == {"built", "key"}


def test_a_lock_is_waited_for_names_its_holder_and_is_never_stale(tmp_path: Path) -> None:
    program = "import sys, time; from lockedenv.host.process import holding\nwith holding(__import__('pathlib').Path(sys.argv[1]), 'it'): print('held', flush=True); time.sleep(600)"
    environ = clean_environ(PYTHONPATH=str(ROOT / "scripts"))
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(
        Stop, match=rf"it is held by process {holder.pid} on \S+ since .*; wait for it, or stop it"
    ):
        with holding(tmp_path / "lock", "it", patience=0.3):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with holding(tmp_path / "lock", "it", patience=0.3):
        pass


# Building --------------------------------------------------------------------------------------------------------

SETUP = """
import os, pathlib, subprocess, sys, time
from setuptools import setup
from setuptools.command.build_ext import build_ext
assert os.environ["FLASH_ATTENTION_FORCE_BUILD"] == "TRUE"
{before}
setup(name="flash_attn", version="1.0", py_modules=["flash_attn"])
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/flash_attn.py").write_text("__version__ = '1.0'\n")
    return tmp_path / "source"


@pytest.fixture
def tools(tmp_path: Path) -> flash_plan.Toolchain:
    return flash_plan.Toolchain(
        tmp_path / "cuda", "12.4", Path("/usr/bin/gcc"), Path("/usr/bin/g++"), "12.2", tmp_path
    )


@pytest.fixture
def build(
    source: Path, tools: flash_plan.Toolchain, tmp_path: Path, conda_environment: CondaEnvironment
) -> Callable[..., Path]:
    """Builds the source with a setup.py that begins with the given lines, with the conda environment's pip."""

    def run(before: str, jobs: int = 4) -> Path:
        (source / "setup.py").write_text(SETUP.format(before=before))
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        prefix = conda_environment.prefix
        return flash_build.build(
            source, work, prefix, tools, ["90"], jobs, tmp_path / "log", Steps(1, False)
        )

    return run


def test_a_build_tells_its_progress(
    build: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    wheel = build('print("[1/2] nvcc"); print("[2/2] nvcc", flush=True)')
    assert wheel.name == "flash_attn-1.0-py3-none-any.whl"
    assert f"the full log: {tmp_path / 'log'}" in capsys.readouterr().out
    with (tmp_path / "log").open("a") as log:
        follow = flash_build.follower(log)
        assert follow("a warning") is None and str(follow("[9/73] nvcc")).startswith(
            "9 of 73 kernels, about "
        )
    lines = (tmp_path / "log").read_text().splitlines()
    assert "[2/2] nvcc" in map(str.strip, lines) and lines[-2:] == ["a warning", "[9/73] nvcc"]


def test_killed_for_memory_it_tries_once_more_with_half_the_jobs(
    build: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    before = (
        f'open({str(tmp_path / "jobs")!r}, "a").write(os.environ["MAX_JOBS"] + " ")\n'
        'if int(os.environ["MAX_JOBS"]) > 2 and "bdist_wheel" in sys.argv:\n'
        "    sys.exit(\"nvcc error : 'cicc' died due to signal 9 (Kill signal)\")"
    )
    assert build(before, jobs=4).exists()
    assert (
        "a compiler was killed for memory; trying once more with 2 jobs" in capsys.readouterr().out
    )
    assert set((tmp_path / "jobs").read_text().split()) == {"4", "2"}
    with pytest.raises(
        Stop, match="a compiler was killed for memory; use --jobs with fewer"
    ) as error:
        build(before, jobs=8)
    assert f"The full log: {tmp_path / 'log'}" in str(error.value)


def test_an_oom_killed_compiler_is_recognised(build: Callable[..., Path]) -> None:
    """A real process, really killed with SIGKILL under the build."""
    before = 'code = subprocess.call(["sh", "-c", "kill -9 $$"]); sys.exit(f"x.cu died due to signal {-code} (Kill signal)")'
    with pytest.raises(Stop, match="killed for memory"):
        build(before, jobs=1)


def test_a_full_disk_is_named(
    source: Path, tmp_path: Path, conda_environment: CondaEnvironment
) -> None:
    (source / "setup.py").write_text(
        SETUP.format(before='open("big", "wb").write(bytes(4_000_000))')
    )
    program = (
        "import sys; from pathlib import Path; from lockedenv.install.flash_attention import build as flash_build, plan as flash_plan; from lockedenv.cli.output import Steps; from lockedenv.errors import Stop\n"
        "t = Path(sys.argv[1]); tools = flash_plan.Toolchain(t, '12.4', Path('/usr/bin/gcc'), Path('/usr/bin/g++'), '12.2', t)\n"
        "try: flash_build.build(Path(sys.argv[2]), t / 'small', Path(sys.argv[3]), tools, ['90'], 1, t / 'log', Steps(1, True))\n"
        "except Stop as error: print(error)"
    )
    (tmp_path / "small").mkdir()
    mount = f'mount -t tmpfs -o size=1m none {tmp_path}/small && cp -r {source} {tmp_path}/small/s && exec python -c "$0" {tmp_path} {tmp_path}/small/s {conda_environment.prefix}'
    environ = clean_environ(PYTHONPATH=str(ROOT / "scripts"))
    done = sh(*apart("--mount"), "bash", "-c", mount, program, env=environ, check=False)
    assert (
        "building flash-attn failed: No space left on device; free some disk" in done.stdout
    ), done.stdout


def test_a_killed_build_leaves_nothing_in_the_cache_and_the_next_one_goes_on(
    source: Path, tmp_path: Path, conda_environment: CondaEnvironment
) -> None:
    cache = tmp_path / "cache"
    before = "made = pathlib.Path('made'); print('[2/9]' if made.exists() else '[1/9]', 'nvcc', flush=True); made.touch()\n"
    (source / "setup.py").write_text(
        SETUP.format(before=f"{before}time.sleep(float(os.environ['SLOW']))")
    )
    sh("tar", "-czf", tmp_path / "flash_attn-1.0.tar.gz", "-C", tmp_path, "source")
    program = (
        "import sys; from pathlib import Path; from lockedenv.spec import locks; from lockedenv.install.flash_attention import provide as flash, plan as flash_plan\n"
        "from lockedenv.cli.output import Steps; from lockedenv.host.process import holding\n"
        "tools = flash_plan.Toolchain(Path('/usr'), '12.4', Path('/usr/bin/gcc'), Path('/usr/bin/g++'), '12.2', Path('/usr'))\n"
        "flash_plan.find_toolchain = lambda *a: tools\n"
        f"flash._source = lambda *a: Path({str(tmp_path / 'flash_attn-1.0.tar.gz')!r})\n"
        "from lockedenv import ROOT; from lockedenv.install.request import Installation; from lockedenv.prefix.lifecycle import Prefix; from lockedenv.spec.environment import Environment\n"
        "options = Installation(Environment(ROOT), Prefix(Path(sys.argv[2])), Path(sys.argv[1]))\n"
        "cache, steps = options.cache / 'flash-attn', Steps(1, True); cache.mkdir(parents=True, exist_ok=True)\n"
        "torch, pin = flash_plan.Torch('2.5.1', '12.4', False, 'cp311', 'x'), locks.PipPackage('flash-attn', '1.0', 'd')\n"
        "with holding(cache / 'key.lock', 'the wheel'):\n"
        "    found = flash.cached_wheel(cache, 'key', steps)\n"
        "    print('cached' if found else flash.build_and_keep(options, 'key', torch, ['90'], pin, steps))"
    )
    environ = clean_environ(PYTHONPATH=str(ROOT / "scripts"), TMPDIR=str(tmp_path))
    command = [sys.executable, "-c", program, str(cache), str(conda_environment.prefix)]

    def builders() -> List[str]:
        return sh(
            "grep",
            "-lsa",
            f"TMPDIR={tmp_path}/maximalcai-flash-attn",
            *Path("/proc").glob("[0-9]*/environ"),
            check=False,
        ).stdout.split()

    slow = subprocess.Popen(
        command, env={**environ, "SLOW": "600"}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    key = f"key-nvcc12.4-gcc12.2-glibc{flash.GLIBC}"
    log = cache / f"logs/{key}.log"
    while not (log.exists() and "[1/9]" in log.read_text()):
        assert slow.poll() is None
        time.sleep(0.1)
    os.killpg(slow.pid, signal.SIGKILL)
    slow.wait()
    assert not (cache / "flash-attn" / key).exists()
    assert builders(), "pip ends with the killed one; what pip had started still runs"
    # Two at once: one builds, the other takes what was built.
    both = [
        subprocess.Popen(command, env={**environ, "SLOW": "0"}, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(p.communicate()[0].strip().rsplit("/", 1)[-1] for p in both)
    assert said == ["cached", "flash_attn-1.0-py3-none-any.whl"]
    assert (
        "[2/9]" in log.read_text() and "[1/9]" not in log.read_text()
    ), "it goes on from what the killed one has made"
    assert not builders()
    assert not list(tmp_path.glob("maximalcai-flash-attn-*"))


def test_a_folder_that_a_build_has_left_holds_the_archives_own_source(tmp_path: Path) -> None:
    """A flipped byte in it was compiled, and cached under the archive's hash."""
    (tmp_path / "source/csrc").mkdir(parents=True)
    (tmp_path / "source/setup.py").write_text("setup")
    (tmp_path / "source/csrc/a.cu").write_text("kernel")
    archive, work = tmp_path / "flash_attn-1.0.tar.gz", tmp_path / "work"
    sh("tar", "-czf", archive, "-C", tmp_path, "source")
    folder = flash_build.unpack(archive, work)
    (folder / "csrc/a.o").write_text("object")
    (folder / "csrc/a.cu").write_text("kernex")
    (folder / "setup.py").unlink()
    (folder / "setup.py").symlink_to(tmp_path / "elsewhere")
    (work / "in").symlink_to(tmp_path / "source")
    stat = (folder / "csrc/a.o").stat()
    assert flash_build.unpack(archive, work) == folder and {
        path.name for path in work.iterdir()
    } == {folder.name}
    assert (folder / "csrc/a.cu").read_text() == "kernel" and (
        folder / "setup.py"
    ).read_text() == "setup"
    assert (
        not (folder / "setup.py").is_symlink()
        and (folder / "csrc/a.o").stat() == stat
        and (tmp_path / "source").is_dir()
    )


@pytest.mark.parametrize("make", ["link", "open", "file"])
def test_flash_attn_is_built_in_a_folder_of_ones_own_alone(
    make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name in the folder for temporary files can be guessed: another user's setup.py was run, a linked folder emptied."""
    monkeypatch.setattr(flash.tempfile, "gettempdir", lambda: str(tmp_path))
    tools = flash_plan.Toolchain(
        Path("/usr"), "12.4", Path("/usr/bin/gcc"), Path("/usr/bin/g++"), "12.2", Path("/usr")
    )
    monkeypatch.setattr(flash_plan, "find_toolchain", lambda *a: tools)
    monkeypatch.setattr(flash, "_source", lambda *a: tmp_path / "flash_attn-1.0.tar.gz")
    options = Installation(Environment(ROOT), Prefix(tmp_path / "env"), tmp_path / "cache")
    folder = options.cache / "flash-attn" / flash_plan.full_key("key", tools, flash.GLIBC)
    work = (
        tmp_path / f"maximalcai-flash-attn-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    )
    (tmp_path / "precious").mkdir(mode=0o700)
    (tmp_path / "precious/thesis.tex").write_text("years of work")
    if make == "link":
        work.symlink_to(tmp_path / "precious")
    elif make == "open":
        work.mkdir(mode=0o755)
    else:
        work.touch()
    with pytest.raises((Stop, OSError)) as error:
        flash.build_and_keep(options, "key", TORCH, ["90"], PIN, Steps(1, True))
    assert (
        make == "file"
        or "is not a folder of yours alone, and what is unpacked or built there is installed"
        in str(error.value)
    )
    assert (tmp_path / "precious/thesis.tex").exists()


def test_the_users_pip_settings_do_not_reach_the_build(
    build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_CONSTRAINT", "PIP_CONFIG_FILE", "PIP_TARGET"):
        monkeypatch.setenv(name, "/nowhere")
    assert build("pass").exists()


@pytest.fixture
def proving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Result], str]:
    """Installs a cached wheel whose GPU check gives a result; gives what is said, and what becomes of the wheel."""
    base = flash_plan.key(locks.read_pip_lock(ROOT / "locks/flash-attn.txt")[0], TORCH, ["90"])
    version, cache = (
        locks.read_pip_lock(ROOT / "locks/flash-attn.txt")[0].version,
        tmp_path / "cache/flash-attn",
    )
    (tmp_path / "env").mkdir()
    wheel = tmp_path / f"flash_attn-{version}-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"two hours of work")
    monkeypatch.setattr(flash, "ask", lambda *a, **k: (0, version + "\n", ""))
    monkeypatch.setattr(flash, "run", lambda *a, **k: "")
    monkeypatch.setattr(flash_plan, "probe_torch", lambda prefix: TORCH)
    options = Installation(Environment(ROOT), Prefix(tmp_path / "env"), tmp_path / "cache")

    def install(result: Result) -> str:
        cache.mkdir(parents=True, exist_ok=True)
        folder = cache / f"{base}-nvcc12.4-gcc12.2-glibc{flash.GLIBC}"
        flash.keep(wheel, folder, {})
        monkeypatch.setattr(flash, "run_child", lambda *a, **k: result)
        said: List[str] = []
        steps = Steps(1, True)
        monkeypatch.setattr(steps, "note", said.append)
        try:
            flash.install(options, Path("uv"), machine.parse_gpus(H100), steps)
        except Stop as error:
            said.append(str(error))
        return "\n".join([*said, "kept" if folder.exists() else "deleted"])

    return install


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: CUDA out of memory",
        "no answer within 120 s; stopped",
        "no kernel image is available",
    ],
)
def test_a_gpu_that_cannot_prove_a_wheel_is_not_the_wheels_fault(
    said: str, proving: Callable[[Result], str]
) -> None:
    """Any failure deleted the shared wheel, two hours of work."""
    text = proving(failed(said, "remedy"))
    assert f"is installed, and its proof could not run: {said}" in text and text.endswith(
        "kept"
    ), text


def test_a_prebuilt_wheel_of_an_earlier_lock_is_replaced(
    proving: Callable[[Result], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It stayed, "as --wheel gave it", and was verified."""
    (tmp_path / "env/maximalcai-flash-attn").write_text(
        "flash_attn-2.8.2+cu12torch2.5cxx11abiFALSE-cp311-cp311-linux_x86_64.whl 00"
    )
    text = proving(passed("right"))
    assert "as --wheel gave it" not in text and "from the cache" in text, text


def test_wrong_values_are_the_wheels_fault(proving: Callable[[Result], str]) -> None:
    text = proving(
        failed(
            "cuda: out error 1.0e+00, bound 1.0e-02",
            "remedy",
            [],
            **{"bf16 d64, error over bound": 100.0},
        )
    )
    assert (
        "is not right, so it was removed again, from the cache too: cuda: out error" in text
        and text.endswith("deleted")
    )


# Through the one command, on an installed prefix; post_create.sh would hash all of it each time -------------------

BY_SETUP = ["setup_runpod_environment.sh", "--backend", "pip"]
BY_POST_CREATE = ["post_create.sh"]


def provide(
    prefix: Path,
    *options: Any,
    by: List[str] = BY_SETUP,
    project: Path = ROOT,
    check: bool = True,
    **environ: str,
) -> str:
    """What the command prints, at the quick level; with `check` it has to exit 0, without it 1."""
    command = [
        project / "scripts" / by[0],
        *by[1:],
        "--prefix",
        prefix,
        "--level",
        "quick",
        *options,
    ]
    done = sh(*command, check=check, env=clean_environ(**environ))
    assert done.returncode == (0 if check else 1), done.stdout
    return done.stdout


def test_a_prebuilt_wheel_is_refused_without_its_hash_or_with_another(
    pip_environment: Path, tmp_path: Path
) -> None:
    name = "flash_attn-2.8.3+cu12torch2.5cxx11abiFALSE-cp311-cp311-linux_x86_64.whl"
    (tmp_path / name).write_bytes(b"not hashed")
    wrong = tmp_path / name.replace("cp311", "cp310")
    wrong.write_bytes(b"")
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    for wheel, sha, said in (
        (tmp_path / name, "", "--wheel needs --sha256 with the wheel's 64 hex digits"),
        (tmp_path / name, "0" * 64, f"not {'0' * 64}: it is not installed"),
        (wrong, "0" * 64, "Python cp310, the environment has cp311"),
        (tmp_path / "missing" / name, "0" * 64, "is not a file"),
    ):
        hashed = ["--sha256", sha] if sha else []
        out = provide(prefix, "--wheel", wheel, *hashed, check=False)
        assert said in out and "Traceback" not in out, out
    assert not list(prefix.glob("lib/python3.11/site-packages/flash_attn*"))


def fake_flash_attn(folder: Path, python: Path, version: str, code: str) -> Path:
    """A wheel of flash-attn's name and modules, of plain Python."""
    folder.mkdir()
    for name, text in (("flash_attn", code), ("flash_attn_2_cuda", "")):
        (folder / f"{name}.py").write_text(text)
    modules = "py_modules=['flash_attn', 'flash_attn_2_cuda']"
    (folder / "setup.py").write_text(
        f"from setuptools import setup; setup(name='flash_attn', version='{version}', {modules})"
    )
    options = ["-q", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "built"]
    sh(python, "-m", "pip", "wheel", *options, folder)
    return next((folder / "built").glob("*.whl"))


def test_a_given_wheel_may_have_a_relative_path_and_is_kept(
    pip_environment: Path, tmp_path: Path
) -> None:
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    code = "__version__ = '2.8.3'\nflash_attn_func = None\n"
    wheel = fake_flash_attn(tmp_path / "source", prefix / "bin/python", "2.8.3", code)
    name = "flash_attn-2.8.3+cu12torch2.5cxx11abiFALSE-cp311-cp311-linux_x86_64.whl"
    (tmp_path / "wheels").mkdir()
    repacked = "import sys, zipfile; a, b = (zipfile.ZipFile(sys.argv[1]), zipfile.ZipFile(sys.argv[2], 'w'))\n"
    repacked += "for n in a.namelist(): b.writestr(n, a.read(n).replace(b'Tag: py3-none-any', b'Tag: cp311-cp311-linux_x86_64'))"
    sh(sys.executable, "-c", repacked, wheel, tmp_path / "wheels" / name)
    given = ["--wheel", f"wheels/{name}", "--sha256", file_sha256(tmp_path / "wheels" / name)]
    command = [
        ROOT / "scripts" / BY_SETUP[0],
        *BY_SETUP[1:],
        "--prefix",
        prefix,
        "--level",
        "quick",
        "--arch",
        "90",
    ]
    done = sh(*command, *given, cwd=tmp_path, check=False, env=clean_environ())
    assert done.returncode == 0 and "flash-attn 2.8.3" in done.stdout, done.stdout
    assert (
        f"{name} is installed\n" in sh(*command, *given, cwd=tmp_path, env=clean_environ()).stdout
    )
    assert (
        f"{name} is installed, as --wheel gave it" in sh(*command, env=clean_environ()).stdout
    ), "nothing is built over it"


# The prebuilt wheel ----------------------------------------------------------------------------------------------

PREBUILT = "flash_attn-2.8.3+cu12torch2.5cxx11abiFALSE-cp311-cp311-linux_x86_64.whl"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, None),
        ({"glibc": "99.1"}, "it needs glibc 99.1, this machine has 2.36"),
        ({"archs": ["80", "100"]}, "it has no code for sm_90"),
        (
            {"url": f"https://x/{PREBUILT.replace('torch2.5', 'torch2.6')}"},
            "torch 2.6, the environment has 2.5",
        ),
        (
            {"url": f"https://x/{PREBUILT.replace('FALSE', 'TRUE')}"},
            "C++ ABI TRUE, the environment has FALSE",
        ),
    ],
)
def test_whether_the_prebuilt_wheel_fits(changes: Dict[str, Any], said: Optional[str]) -> None:
    wheel = replace(Environment(ROOT).flash_wheel(), **changes)  # type: ignore[type-var]
    misfit = flash_plan.prebuilt_misfit(wheel, TORCH, ["90"], "2.36")
    assert misfit is None if said is None else said in str(misfit)
    assert Environment(ROOT / "environments/current").flash_wheel() is None


def packed_as(wheel: Path, target: Path) -> Path:
    """A wheel of plain Python under the name of a compiled one."""
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(
                name,
                source.read(name).replace(b"Tag: py3-none-any", b"Tag: cp311-cp311-linux_x86_64"),
            )
    return target


@pytest.fixture
def prebuilt(
    pip_environment: Path, tmp_path: Path
) -> Iterator[Tuple[FaultServer, Callable[..., Tuple[int, str]]]]:
    """A server with a wheel under the prebuilt one's name; the one command with a lock that names it, on a prefix of its own."""
    prefix, project = (
        copy_environment(pip_environment, tmp_path / "env", links=True),
        tmp_path / "project",
    )
    code = "__version__ = '2.8.3'\nflash_attn_func = None\n"
    plain = fake_flash_attn(tmp_path / "source", prefix / "bin/python", "2.8.3", code)
    (tmp_path / "served/wheels").mkdir(parents=True)
    wheel = packed_as(plain, tmp_path / "served/wheels" / PREBUILT.replace("+", "%2B"))
    project.mkdir()
    for name in ("scripts", "locks", "environments"):
        shutil.copytree(ROOT / name, project / name)
    for name in ("requirements.txt", "conda-lock.yml", "environment.yml"):
        shutil.copy2(ROOT / name, project)
    lock, sha = project / "locks/flash-attn.txt", file_sha256(wheel)
    with FaultServer(tmp_path / "served") as server:

        def run(
            *options: Any, changes: Tuple[str, str] = ("", ""), **environ: str
        ) -> Tuple[int, str]:
            text = re.sub(
                r"@ \S+/",
                f"@ {server.address}/wheels/",
                (ROOT / "locks/flash-attn.txt").read_text(),
            )
            text = re.sub(r"(@.*sha256:)\w+", rf"\g<1>{sha}", text)
            lock.write_text(re.sub(*changes, text) if changes[0] else text)
            where = ["--prefix", prefix, "--level", "quick", "--cache", tmp_path / "cache"]
            (tmp_path / "cache").mkdir(exist_ok=True)
            if not (tmp_path / "cache/wheels").exists():
                shutil.copytree(default_cache() / "bin", tmp_path / "cache/bin", dirs_exist_ok=True)
                (tmp_path / "cache/wheels").mkdir()
                for path in default_cache().glob("wheels/uv-*.whl"):
                    os.link(path, tmp_path / "cache/wheels" / path.name)
            environ = {
                **clean_environ(MAXIMALCAI_RETRY_SECONDS="0.01", CUDA_HOME="/nowhere"),
                **environ,
            }
            done = sh(
                project / "scripts" / BY_SETUP[0],
                *BY_SETUP[1:],
                *where,
                *options,
                check=False,
                env=environ,
            )
            return done.returncode, done.stdout

        yield server, run


def test_the_prebuilt_wheel_end_to_end(
    prebuilt: Tuple[FaultServer, Callable[..., Tuple[int, str]]], tmp_path: Path
) -> None:
    server, run = prebuilt
    for changes, why in (
        ((r"glibc 2\.32", "glibc 99.32"), "it needs glibc 99.32"),
        (("(@.*sha256:)....", r"\g<1>0000"), "not 0000"),
    ):
        status, said = run("--arch", "90", changes=changes)
        assert status == 1 and "the prebuilt wheel is not taken: " in said and why in said, said
        assert (
            "flash-attn cannot be built" in said
            and "verified, but not all that was asked for is there" in said
        ), said
        assert (
            "0000" in why or not server.requests[PREBUILT.replace("+", "%2B")]
        ), "nothing is fetched that does not fit"
    status, said = run("--flash-attn", "wheel", changes=("/wheels/", "/gone/"))
    assert (
        status == 1 and "HTTP 404" in said and "cannot be built" not in said
    ), "asked for alone, nothing is built"
    status, said = run("--flash-attn", "build", "--arch", "90")
    assert status == 1 and "flash-attn cannot be built" in said and "the prebuilt wheel" not in said
    status, said = run()
    assert status == 0 and "skipped: no GPU here to build for" in said
    before = server.requests[PREBUILT.replace("+", "%2B")]
    status, said = run("--arch", "90")
    assert (
        status == 0
        and f"{PREBUILT} is installed\n" in said
        and "75 wheels as locked, and flash-attn 2.8.3\n" in said
    ), said
    status, said = run("--arch", "90")
    assert status == 0 and f"{PREBUILT} is installed\n" in said
    assert (
        server.requests[PREBUILT.replace("+", "%2B")] == before + 1
    ), "it is in the cache, and in the prefix"
    # From a folder that --download-only made, with no network.
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "served/wheels" / PREBUILT.replace("+", "%2B")).rename(
        tmp_path / "served/wheels" / PREBUILT
    )
    offline = tmp_path / "served"
    for pin in [*Environment(ROOT).wheels("pip"), wheels.uv_pin()]:
        found = wheels.by_hash(
            default_cache() / "wheels", f"{pin.name.replace('-', '_')}-*", pin.sha256
        )
        if found:
            os.link(found, offline / "wheels" / found.name)
    (tmp_path / "env/maximalcai-flash-attn").unlink()
    status, said = run("--offline", offline, "--flash-attn", "wheel")
    assert f"{PREBUILT} is installed\n" in said and server.requests[PREBUILT] == 0, said


def test_a_prebuilt_wheel_that_computes_wrongly_gives_way_to_the_build(
    proving: Callable[[Result], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: List[str] = []
    monkeypatch.setattr(flash, "cached_wheel", lambda *a: None)
    (tmp_path / PREBUILT).write_bytes(b"")
    monkeypatch.setattr(flash, "_prebuilt_wheel", lambda *a: tmp_path / PREBUILT)

    def build(*arguments: Any) -> Path:
        taken.append("built")
        monkeypatch.setattr(flash, "run_child", lambda *a, **k: passed("right"))
        folder = tmp_path / "built"
        folder.mkdir()
        (folder / "flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl").write_bytes(b"")
        return folder / "flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl"

    monkeypatch.setattr(flash, "build_and_keep", build)
    text = proving(failed("cuda: out error 1.0e+00", "remedy", [], **{"bf16 d64 error": 1.0}))
    assert (
        "the prebuilt wheel is not taken: flash-attn was installed and is not right, so it was removed again: cuda: out"
        in text
    )
    assert (
        taken == ["built"] and "flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl is installed" in text
    ), text
    assert (
        tmp_path / PREBUILT
    ).exists(), "the file is as its hash says; the next GPU may be a sound one"


@pytest.fixture(scope="session")
def cuda_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nvcc 12 from the distribution and PyPI, kept in the user's cache (about 100 MB to fetch, 10 s)."""
    done = sh(
        ROOT / "tests/cuda_toolkit.sh",
        folder := default_cache() / "tests-cuda-12",
        check=False,
        env=clean_environ(),
    )
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout
    return folder


CUDA_SETUP = """
import os
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CUDAExtension
arch = os.environ["FLASH_ATTN_CUDA_ARCHS"]
flags = ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
setup(
    name="flash_attn", version="2.8.3", packages=["flash_attn"], cmdclass={"build_ext": BuildExtension},
    ext_modules=[CUDAExtension("flash_attn_2_cuda", ["api.cpp", "kernel.cu"], extra_compile_args={"cxx": ["-O1"], "nvcc": flags})],
)
"""
KERNEL = """
#include <cuda_runtime.h>
#include <cub/block/block_reduce.cuh>
__global__ void twice(float* x, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] *= 2; }
void launch(float* x, int n) { twice<<<(n + 255) / 256, 256>>>(x, n); }
"""
API = """
#include <torch/csrc/utils/pybind.h>
void launch(float* x, int n);
void run(at::Tensor x) { TORCH_CHECK(x.is_cuda(), "x must be on a GPU"); launch(x.data_ptr<float>(), x.numel()); }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("run", &run); }
"""


def test_a_real_cuda_build_is_cached_installed_again_and_proven(
    cuda_home: Path, pip_environment: Path, tmp_path: Path
) -> None:
    """The whole path of post_create.sh --arch 90 with a real nvcc, on a package of flash-attn's shape with one kernel."""
    prefix, project = tmp_path / "env", tmp_path / "project"
    copy_environment(pip_environment, prefix, links=True)
    folder = tmp_path / "flash_attn-2.8.3"
    (folder / "flash_attn").mkdir(parents=True)
    (folder / "flash_attn/__init__.py").write_text(
        "__version__ = '2.8.3'\nflash_attn_func = None\n"
    )
    for name, text in (("setup.py", CUDA_SETUP), ("kernel.cu", KERNEL), ("api.cpp", API)):
        (folder / name).write_text(text)
    cache = tmp_path / "cache"
    (cache / "wheels").mkdir(parents=True)
    archive = cache / "wheels/flash_attn-2.8.3.tar.gz"
    sh("tar", "-czf", archive, "-C", tmp_path, folder.name)
    project.mkdir()
    for name in ("scripts", "locks"):
        shutil.copytree(ROOT / name, project / name)
    shutil.copy2(ROOT / "requirements.txt", project)
    shutil.copy2(ROOT / "conda-lock.yml", project)
    sha = sh("sha256sum", archive).stdout.split()[0]
    lock = project / "locks/flash-attn.txt"
    lock.write_text(re.sub("sha256:[0-9a-f]{64}.*", f"sha256:{sha}", lock.read_text(), count=1))
    options = ["--cache", cache, "--arch", "90", "--flash-attn", "build"]
    said = provide(prefix, *options, by=BY_POST_CREATE, project=project, CUDA_HOME=str(cuda_home))
    nvcc = re.findall(r"release (12\.\d+)", sh(cuda_home / "bin/nvcc", "--version").stdout)[0]
    assert f"building for sm_90 with nvcc {nvcc}" in said and "job" in said
    assert "flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl built" in said
    assert "75 wheels as locked, and flash-attn 2.8.3\n" in said
    key = f"flash_attn-2.8.3-{sha[:12]}-torch2.5.1-cu12.4-abi0-cp311-sm90-linux_x86_64"
    info = json.loads(
        next(
            (cache / "flash-attn").glob(f"{key}-nvcc{nvcc}-gcc*-glibc{flash.GLIBC}/wheel.json")
        ).read_text()
    )
    assert info["nvcc"] == nvcc and info["archs"] == ["90"]
    library = next(prefix.glob("lib/python3.11/site-packages/flash_attn_2_cuda*.so"))
    assert b"sm_90" in library.read_bytes()
    done = sh(
        prefix / "bin/python",
        "-c",
        "import torch, flash_attn_2_cuda as f; f.run(torch.ones(4))",
        check=False,
    )
    assert "x must be on a GPU" in done.stdout
    # Again: nothing to do. In another prefix: from the cache, without a compiler.
    assert re.search(f"{key}-nvcc.* is installed", provide(prefix, *options, project=project))
    other = tmp_path / "other"
    copy_environment(pip_environment, other, links=True)
    said = provide(other, *options, project=project)
    assert "flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl from the cache" in said
    sh(other / "bin/python", "-c", "import torch, flash_attn, flash_attn_2_cuda")


def test_a_wheel_that_is_not_right_is_not_left_anywhere(
    pip_environment: Path, tmp_path: Path
) -> None:
    """It installs and does not import: it is removed from the prefix and from the cache."""
    prefix, cache = tmp_path / "env", tmp_path / "cache"
    copy_environment(pip_environment, prefix, links=True)
    pin = locks.read_pip_lock(ROOT / "locks/flash-attn.txt")[0]
    folder = (
        cache
        / "flash-attn"
        / f"{flash_plan.key(pin, TORCH, ['90'])}-nvcc12.4-gcc12.2-glibc{flash.GLIBC}"
    )
    code = "raise ImportError('undefined symbol: _ZN3c104cuda')"
    wheel = fake_flash_attn(tmp_path / "source", prefix / "bin/python", pin.version, code)
    folder.parent.mkdir(parents=True)
    flash.keep(wheel, folder, {})
    said = provide(prefix, "--cache", cache, "--arch", "90", "--flash-attn", "build", check=False)
    assert (
        "was installed and is not right, so it was removed again, from the cache too: it does not import: ImportError"
        in said
    )
    assert not folder.exists() and not list(prefix.glob("lib/python3.11/site-packages/flash_attn*"))
    assert "verified: every check that ran has passed" in said, "the environment works without it"
    last = said.splitlines()[-3:]
    assert last[0].startswith(
        "verified, but not all that was asked for is there: flash-attn is missing"
    ), last
    assert last[1].startswith("verified, with the exception above: ") and last[2].startswith(
        "enter it with:  source "
    ), last


@pytest.mark.long
def test_flash_attn_itself(cuda_home: Path, pip_environment: Path, tmp_path: Path) -> None:
    """The whole of flash-attn for sm_90, over an hour on two cores; then again from the cache, as a ratio."""
    cache, seconds = tmp_path / "cache", []
    for name in ("first", "second"):
        prefix = tmp_path / name
        copy_environment(pip_environment, prefix, links=True)
        started = time.monotonic()
        provide(
            prefix,
            "--cache",
            cache,
            "--arch",
            "90",
            "--flash-attn",
            "build",
            CUDA_HOME=str(cuda_home),
        )
        seconds.append(time.monotonic() - started)
        sh(prefix / "bin/python", "-c", "import flash_attn; print(flash_attn.__version__)")
    print(
        f"\nfirst build {seconds[0]:.0f} s, from the cache {seconds[1]:.1f} s: {seconds[0] / seconds[1]:.0f} times"
    )


@pytest.mark.long
def test_a_killed_build_of_flash_attn_itself_compiles_what_is_left(
    cuda_home: Path, pip_environment: Path, tmp_path: Path
) -> None:
    """Killed after two of its 73 steps, with -9; the next run has no more than the others to do. Ten minutes."""
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    (tmp_path / "tmp").mkdir()
    options = [
        "--cache",
        tmp_path / "cache",
        "--arch",
        "90",
        "--flash-attn",
        "build",
        "--jobs",
        "1",
        "--level",
        "quick",
    ]
    command = [
        str(word) for word in (ROOT / "scripts/post_create.sh", "--prefix", prefix, *options)
    ]
    environ = clean_environ(CUDA_HOME=str(cuda_home), TMPDIR=str(tmp_path / "tmp"))
    totals = []
    for done in (2, 1):
        process = subprocess.Popen(
            command,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        steps: List[Tuple[str, str]] = []
        while not any(int(number) >= done for number, _ in steps):
            assert process.poll() is None
            time.sleep(1)
            steps = [
                step
                for log in tmp_path.glob("cache/logs/*.log")
                for step in re.findall(r"^ *\[(\d+)/(\d+)\]", log.read_text(), re.M)
            ]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        totals.append(int(steps[-1][1]))
        log = next(tmp_path.glob("cache/logs/*.log"))
        log.rename(log.with_suffix(f".{done}"))
    end_orphans(f"TMPDIR={next((tmp_path / 'tmp').glob('maximalcai-flash-attn-*'))}")
    assert totals[1] <= totals[0] - 2, totals
    print(f"\nof {totals[0]} steps, {totals[0] - totals[1]} were not done again")
