"""The room that a plan needs on each disk, and what helps where there is too little."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from fixtures.commands import ROOT
from lockedenv.backends import private_folders, uv_program
from lockedenv.errors import Stop
from lockedenv.host.disks import has_links_and_locks
from lockedenv.install.facts import Disk, Disks, Facts, PrefixFacts, read_disk
from lockedenv.install.plan import DiskNeed, Purpose, disk_problems, needed_disks
from lockedenv.install.request import SetupRequest
from lockedenv.prefix.place import Prefix
from lockedenv.prefix.status import PrefixStatus
from lockedenv.spec import environment
from lockedenv.spec.layers import BackendName


def needed(request: SetupRequest) -> List[Tuple[int, str]]:
    """Bytes and purpose of each disk, for the pip backend."""
    found = Facts(
        PrefixFacts(Prefix(request.prefix), PrefixStatus.ABSENT, BackendName.PIP),
        Disks(
            prefix=read_disk(request.prefix),
            cache=read_disk(request.cache),
            temporary=read_disk(request.prefix),
        ),
        links_and_locks=has_links_and_locks(request.prefix),
    )
    return [
        (need.needed, need.purpose.value)
        for need in needed_disks(request, found, BackendName.PIP)
    ]


@pytest.mark.parametrize(
    "volume, option",
    [(50, "--prefix {}/env"), (5, "--prefix")],
    ids=["room on the volume", "none"],
)
def test_a_root_disk_of_5_gb_is_refused_with_the_option_that_works(
    tmp_path: Path, volume: int, option: str
) -> None:
    request = SetupRequest(
        tmp_path / "env", environment.Environment(ROOT), tmp_path / "volume/cache"
    )
    small = Disk(tmp_path / "env", device=1, free=5 * 10**9)
    needs = [
        DiskNeed(small, Purpose.ENVIRONMENT, 6_200_000_000),
        DiskNeed(
            Disk(request.cache, device=2, free=volume * 10**9),
            Purpose.CACHE,
            3_200_000_000,
        ),
    ]
    pod_volume = Disk(tmp_path / "volume", device=2, free=volume * 10**9)
    [problem] = disk_problems(request, BackendName.PIP, needs, pod_volume)
    said = f"room for the environment is about 6.2 GB at {tmp_path}/env, 5.0 GB are free; free 1.2 GB, or choose another disk with "
    assert str(problem).endswith(said + option.format(tmp_path / "volume"))


@pytest.mark.parametrize("lacking", ["os.link", "fcntl.flock"])
def test_on_a_disk_without_links_or_locks_uv_unpacks_elsewhere_and_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """uv stopped: it could not lock its cache, and that was told as a Python that is not there."""
    request = SetupRequest(
        tmp_path / "env", environment.Environment(ROOT), tmp_path / "cache"
    )
    before = needed(request)
    total = sum(pin.size for pin in request.environment.wheels(BackendName.PIP))
    has_links_and_locks.cache_clear()

    real = {"os.link": os.link, "fcntl.flock": fcntl.flock}[lacking]

    def refuse(what: Any, *more: Any) -> None:
        if str(tmp_path) in str(getattr(what, "name", what)):
            raise PermissionError("as bindfs says it")
        real(what, *more)

    try:
        with monkeypatch.context() as there:
            there.setattr(lacking, refuse)
            environ = uv_program.uv_environment(request.cache, request.prefix, {})
            after = needed(request)
            there.setattr(tempfile, "tempdir", str(tmp_path))
            with pytest.raises(
                Stop,
                match="neither the disk of .* hard links and file locks, which uv needs: set TMPDIR",
            ):
                uv_program.uv_environment(request.cache, request.prefix, {})
    finally:
        has_links_and_locks.cache_clear()
    assert environ["UV_LINK_MODE"] == "copy"
    assert environ["UV_CACHE_DIR"] == str(
        private_folders.temporary("uv", request.prefix)
    )
    assert (
        uv_program.uv_environment(request.cache, request.prefix, {})["UV_LINK_MODE"]
        == "hardlink"
    )
    assert [what for _, what in before] == ["the environment and the cache"]
    assert after == [
        (before[0][0] + total, "the environment and the cache"),
        (before[0][0], "what is unpacked"),
    ]
