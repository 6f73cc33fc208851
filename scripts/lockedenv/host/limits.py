"""How many CPUs and how much memory this process may use.

`root` is another machine's, in the tests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# v1 has a hierarchy for each controller or for some together, such as "cpu,cpuacct". The links
# `cpu` and `cpuacct` to it are made by systemd, and not everywhere
# (https://github.com/canonical/lxd/issues/3957): the mount table tells where a hierarchy is.
USUAL_MOUNT = "sys/fs/cgroup"


@dataclass(frozen=True)
class Memory:
    """In bytes: what this process may use, and what of it is free now."""

    total: int
    free: int


@dataclass(frozen=True)
class CgroupMount:
    """A mounted cgroup hierarchy: its folder, the cgroup that is its root there, its controllers.

    `controllers` is empty for v2, whose one hierarchy has them all.
    """

    folder: Path
    root: str
    controllers: tuple[str, ...]


def read_text(path: Path) -> str:
    """The text of a file; empty if there is none, or none that may be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def read_number(path: Path) -> int:
    """The whole number at the start of a file; 0 if there is none ("max", -1)."""
    match = re.match(r"\d+", read_text(path))
    return int(match[0]) if match else 0


def cpu_limit(root: Path = Path("/")) -> float:
    """CPUs that this process may use: the smallest of its affinity and its cgroups' quotas."""
    limits = []
    if root == Path("/"):
        limits.append(float(len(os.sched_getaffinity(0))))
    for folder in find_cgroups(root, "cpu"):
        quota = read_text(folder / "cpu.max")
        if not quota:
            quota = read_text(folder / "cpu.cfs_quota_us") + " "
            quota += read_text(folder / "cpu.cfs_period_us")
        match = re.match(r"([1-9]\d*)\s+([1-9]\d*)", quota)
        if match:
            limits.append(int(match[1]) / int(match[2]))
    return min(limits, default=1.0)


def read_memory(root: Path = Path("/")) -> Memory:
    """The machine's memory, or its cgroup's where that is less."""
    memory = _read_machine_memory(root)
    for folder in find_cgroups(root, "memory"):
        for limit_file, usage_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = read_number(folder / limit_file)
            if 0 < limit < memory.total:
                free = limit - _read_memory_in_use(folder, usage_file)
                memory = Memory(limit, max(0, min(memory.free, free)))
    return memory


def _read_machine_memory(root: Path) -> Memory:
    values = {}
    for name, kilobytes in re.findall(
        r"^(\w+):\s+(\d+) kB", read_text(root / "proc/meminfo"), re.M
    ):
        values[name] = int(kilobytes) * 1024
    if "MemTotal" in values:
        return Memory(
            values["MemTotal"], values.get("MemAvailable", values.get("MemFree", 0))
        )
    # A /proc of processes alone (ProcSubset=pid of systemd) has no meminfo.
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    return Memory(total, os.sysconf("SC_AVPHYS_PAGES") * page)


def _read_memory_in_use(folder: Path, usage_file: str) -> int:
    """The page cache counts as used, and is given back when memory is short: it is taken off."""
    statistics = read_text(folder / "memory.stat")
    caches = re.findall(r"^(?:total_)?inactive_file (\d+)", statistics, re.M)
    cache = int(caches[-1]) if caches else 0
    return max(0, read_number(folder / usage_file) - cache)


def find_cgroups(root: Path, controller: str) -> list[Path]:
    """The folders of a controller's cgroups: this process's own first, then those above it."""
    mounts = [*_read_mounts(root), *_list_usual_mounts(root)]
    folders: list[Path] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, membership = line.partition(":")
        names, _, path = membership.partition(":")
        is_v2 = names == ""
        if not is_v2 and controller not in names.split(","):
            continue
        for mount in mounts:
            is_its_mount = controller in mount.controllers
            if is_v2:
                is_its_mount = mount.controllers == ()
            if is_its_mount:
                folders += _list_upwards(mount, path)
    for mount in mounts:
        if not mount.controllers or controller in mount.controllers:
            folders.append(mount.folder)
    return list(dict.fromkeys(folders))


def _list_upwards(mount: CgroupMount, path: str) -> list[Path]:
    """From a cgroup's folder up to the folder where its hierarchy is mounted.

    In a container the mount shows a part of the hierarchy alone. The path may begin with its root.
    """
    inside = path
    if mount.root != "/" and (path + "/").startswith(mount.root + "/"):
        inside = path[len(mount.root) :]
    own = mount.folder
    for part in inside.split("/"):
        if part not in ("", ".", ".."):
            own = own / part
    folders = []
    for folder in (own, *own.parents):
        folders.append(folder)
        if folder == mount.folder:
            break
    return folders


def _list_usual_mounts(root: Path) -> list[CgroupMount]:
    """Where hierarchies are mounted as a rule, for a process whose mount table cannot be read."""
    usual = root / USUAL_MOUNT
    mounts = [CgroupMount(usual, "/", ())]
    for folder in sorted(usual.glob("*")):
        if folder.is_dir():
            mounts.append(CgroupMount(folder, "/", tuple(folder.name.split(","))))
    return mounts


def _read_mounts(root: Path) -> Iterator[CgroupMount]:
    """The cgroup hierarchies of proc(5)'s /proc/self/mountinfo."""
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        kind, _, more = after.partition(" ")
        if len(fields) < 5 or kind not in ("cgroup", "cgroup2"):
            continue
        options = more.rpartition(" ")[2].split(",")
        controllers = tuple(options) if kind == "cgroup" else ()
        folder = root / _unescape(fields[4]).lstrip("/")
        yield CgroupMount(folder, _unescape(fields[3]), controllers)


def _unescape(path: str) -> str:
    r"""A path of the mount table, in which a space is \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
