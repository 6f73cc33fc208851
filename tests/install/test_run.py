"""A plan is carried out: what the new environment says of the run that made it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.commands import ROOT
from fixtures.listener import Listener
from lockedenv.backends.base import Offer
from lockedenv.host.places import default_cache
from lockedenv.install import run
from lockedenv.install.facts import Disk, Disks, Facts, PrefixFacts
from lockedenv.install.plan import plan_installation
from lockedenv.install.request import Installation, SetupRequest
from lockedenv.prefix.activation import find_kernel_folder
from lockedenv.prefix.place import find_prefix
from lockedenv.prefix.status import PrefixStatus
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName


def test_a_new_environment_looks_for_kernels_in_the_cache_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "my cache"
    request = SetupRequest(tmp_path / "env", Environment(ROOT), cache, any_disk=True)
    place = find_prefix(request.prefix)
    disk = Disk(tmp_path, device=1, free=10**12)
    facts = Facts(
        prefix=PrefixFacts(place, PrefixStatus.ABSENT, BackendName.PIP),
        disks=Disks(prefix=disk, cache=disk, temporary=disk),
        offers={BackendName.PIP: Offer(True, "as asked")},
    )
    backend = SimpleNamespace(
        fetch_title="Fetch",
        fetch=lambda *arguments: None,
        create=lambda *arguments: None,
    )
    monkeypatch.setattr(run, "BACKENDS", {BackendName.PIP: backend})
    monkeypatch.setattr(run.mirror, "bring", lambda *arguments: None)
    seen = []

    def look(job: Installation, *arguments: Any) -> int:
        seen.append(find_kernel_folder(job.prefix))
        seen.append((job.prefix.path / "activate").read_text())
        return 1

    monkeypatch.setattr(run, "finish", look)
    run.carry_out(plan_installation(request, facts), Listener())
    folder, activate = seen
    assert folder == cache / "flash-attention-kernels"
    assert f"'{folder}'" in activate
    assert str(default_cache()) not in activate
