"""CPUs and memory of this process, by the mount table and the cgroups of v1 and v2."""

from __future__ import annotations

from pathlib import Path

import pytest
from lockedenv.host.limits import Memory, cpu_limit, read_memory

GIB = 1024**3


def make_root(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def mounted(folder: str, root: str, kind: str, options: str) -> str:
    """A line of /proc/self/mountinfo."""
    return f"30 23 0:25 {root} {folder} rw,relatime - {kind} cgroup rw,{options}\n"


QUOTA = {"cpu.cfs_quota_us": "250000\n", "cpu.cfs_period_us": "100000\n"}


def quota_in(folder: str) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in QUOTA.items()}


@pytest.mark.parametrize("has_mount_table", [True, False])
def test_a_quota_of_v1_without_the_link_cpu(
    has_mount_table: bool, tmp_path: Path
) -> None:
    """https://github.com/canonical/lxd/issues/3957"""
    files = quota_in("sys/fs/cgroup/cpu,cpuacct/docker/x")
    files["proc/self/cgroup"] = "3:cpu,cpuacct:/docker/x\n1:name=systemd:/\n"
    if has_mount_table:
        files["proc/self/mountinfo"] = mounted(
            "/sys/fs/cgroup/cpu,cpuacct", "/", "cgroup", "cpu,cpuacct"
        )
    assert cpu_limit(make_root(tmp_path, files)) == 2.5


def test_the_names_of_a_hierarchy_in_another_order(tmp_path: Path) -> None:
    """https://github.com/lxc/lxc/issues/3703"""
    files = quota_in("sys/fs/cgroup/cpu,cpuacct/user.slice")
    files["proc/self/cgroup"] = "8:cpuacct,cpu:/user.slice\n"
    files["proc/self/mountinfo"] = mounted(
        "/sys/fs/cgroup/cpu,cpuacct", "/", "cgroup", "cpuacct,cpu"
    )
    assert cpu_limit(make_root(tmp_path, files)) == 2.5


def test_a_hierarchy_that_is_mounted_elsewhere(tmp_path: Path) -> None:
    files = quota_in("cgroups of all/cpu/job")
    files["proc/self/cgroup"] = "2:cpu:/job\n"
    files["proc/self/mountinfo"] = mounted(
        r"/cgroups\040of\040all/cpu", "/", "cgroup", "cpu"
    )
    assert cpu_limit(make_root(tmp_path, files)) == 2.5


@pytest.mark.parametrize("path", ["/docker/x", "/", "/../x"])
def test_a_container_whose_mount_shows_its_own_cgroup_as_the_root(
    path: str, tmp_path: Path
) -> None:
    files = quota_in("sys/fs/cgroup/cpu,cpuacct")
    files["proc/self/cgroup"] = f"3:cpu,cpuacct:{path}\n"
    files["proc/self/mountinfo"] = mounted(
        "/sys/fs/cgroup/cpu,cpuacct", "/docker/x", "cgroup", "cpu,cpuacct"
    )
    assert cpu_limit(make_root(tmp_path, files)) == 2.5


def test_the_smallest_quota_of_v2_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/container\n",
        "proc/self/mountinfo": mounted("/sys/fs/cgroup", "/", "cgroup2", "nsdelegate"),
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/pod/cpu.max": "800000 100000\n",
        "sys/fs/cgroup/pod/container/cpu.max": "max 100000\n",
    }
    assert cpu_limit(make_root(tmp_path, files)) == 8


def test_memory_of_v1_beside_v2(tmp_path: Path) -> None:
    """A hybrid machine: v1's controllers, and v2 for systemd alone."""
    files = {
        "proc/meminfo": "MemTotal: 263856664 kB\nMemAvailable: 251658240 kB\n",
        "proc/self/cgroup": "4:memory:/job\n0::/job\n",
        "proc/self/mountinfo": mounted(
            "/sys/fs/cgroup/unified", "/", "cgroup2", "nsdelegate"
        )
        + mounted("/sys/fs/cgroup/memory", "/", "cgroup", "memory"),
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(16 * GIB),
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(10 * GIB),
        "sys/fs/cgroup/memory/job/memory.stat": f"total_inactive_file {6 * GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    }
    assert read_memory(make_root(tmp_path, files)) == Memory(16 * GIB, 12 * GIB)


def test_a_proc_of_processes_alone_has_no_meminfo(tmp_path: Path) -> None:
    """ProcSubset=pid of systemd."""
    memory = read_memory(tmp_path)
    assert memory.total > 0
    assert 0 < memory.free <= memory.total


def test_files_that_are_no_numbers_are_no_limits(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 1024 kB\nMemAvailable: 512 kB\n",
        "proc/self/cgroup": "0::/\nnonsense\n",
        "proc/self/mountinfo": "nonsense\n - cgroup\n",
        "sys/fs/cgroup/cpu.max": "0 0\n",
        "sys/fs/cgroup/memory.max": "-1\n",
    }
    root = make_root(tmp_path, files)
    assert cpu_limit(root) == 1.0
    assert read_memory(root) == Memory(1 << 20, 512 << 10)
