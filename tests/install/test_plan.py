"""The plan is made of a request and facts alone: no disk, no network and no GPU is asked here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fixtures.commands import ROOT
from lockedenv.backends.base import Obstacle, Offer
from lockedenv.errors import Stop
from lockedenv.host.gpus import Gpu
from lockedenv.install.facts import Disk, Disks, Facts, PrefixFacts, Surroundings
from lockedenv.install.plan import (
    Plan,
    PlanAction,
    is_finished,
    plan_installation,
    plan_verification,
)
from lockedenv.install.request import SetupRequest
from lockedenv.prefix.place import Prefix
from lockedenv.prefix.status import PrefixStatus
from lockedenv.spec import environment
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level

LARGE = 10**12
PLACE = Prefix(Path("/somewhere/env"))


def request_of(**changes: object) -> SetupRequest:
    made = SetupRequest(
        Path("/somewhere/env"), Environment(ROOT), Path("/somewhere/cache")
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def facts_of(**changes: object) -> Facts:
    disk = Disk(Path("/somewhere"), device=1, free=LARGE)
    made = Facts(
        prefix=PrefixFacts(PLACE, PrefixStatus.ABSENT, BackendName.PIP),
        disks=Disks(prefix=disk, cache=disk, temporary=disk),
        offers={BackendName.PIP: Offer(True, "as asked")},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def gpu_of(name: str, capability: str, driver: str = "580.65.06") -> Gpu:
    return Gpu(name, driver, 80 * 1024**3, capability, "GPU-1", False)


def remedies(plan: Plan) -> str:
    return "\n".join(str(problem) for problem in plan.problems)


def test_a_new_prefix_is_installed_and_verified_at_the_full_level() -> None:
    plan = plan_installation(request_of(), facts_of())
    assert (plan.action, plan.backend, plan.level) == (
        PlanAction.INSTALL,
        "pip",
        Level.FULL,
    )
    assert plan.problems == []
    assert plan.disks[0].needed > 5 * 10**9


def test_a_finished_prefix_is_verified_and_nothing_else_is_looked_at() -> None:
    finished = PrefixFacts(
        PLACE, PrefixStatus.VERIFIED, backend=BackendName.CONDA, environment="default"
    )
    assert is_finished(request_of(), finished)
    plan = plan_verification(request_of(), finished)
    assert (plan.action, plan.backend, plan.level) == (
        PlanAction.VERIFY,
        "conda",
        Level.FULL,
    )
    passed = replace(finished, fully_verified=True)
    assert plan_verification(request_of(), passed).level is Level.QUICK
    assert plan_verification(request_of(level=Level.FULL), passed).level is Level.FULL


@pytest.mark.parametrize("change", [{"force": True}, {"backend": BackendName.PIP}])
def test_a_finished_prefix_is_rebuilt_when_that_is_asked_for(
    change: dict[str, object],
) -> None:
    finished = PrefixFacts(
        PLACE, PrefixStatus.VERIFIED, backend=BackendName.CONDA, environment="default"
    )
    request = request_of(**change)
    assert not is_finished(request, finished)
    plan = plan_installation(request, facts_of(prefix=finished))
    assert plan.action is PlanAction.REBUILD


def test_pip_is_taken_with_the_reason_why_conda_cannot_be() -> None:
    offers = {
        BackendName.CONDA: Offer(False, "the channel does not answer"),
        BackendName.PIP: Offer(True, "as ever"),
    }
    plan = plan_installation(request_of(), facts_of(offers=offers))
    assert (plan.backend, plan.backend_reason) == ("pip", "the channel does not answer")


def test_each_backend_that_cannot_be_used_says_why() -> None:
    offers = {
        "pixi": Offer(False, "no pixi here"),
        BackendName.CONDA: Offer(False, "the channel does not answer"),
        BackendName.PIP: Offer(True, "as ever"),
    }
    plan = plan_installation(request_of(), facts_of(offers=offers))
    assert plan.backend_reason == "no pixi here; the channel does not answer"


@pytest.mark.parametrize(
    "prefix, said",
    [
        (
            PrefixFacts(PLACE, PrefixStatus.FOREIGN, BackendName.PIP),
            "was not made by this script; choose another --prefix",
        ),
        (
            PrefixFacts(PLACE, PrefixStatus.FOREIGN, BackendName.PIP, is_clone=True),
            "it is this clone: give the clone another name",
        ),
        (
            PrefixFacts(PLACE, PrefixStatus.MOVED, BackendName.PIP, moved_from="/old"),
            "was made at /old, and its scripts name that place",
        ),
        (
            PrefixFacts(
                PLACE, PrefixStatus.VERIFIED, BackendName.PIP, environment="current"
            ),
            "is of the environment current, not default",
        ),
    ],
)
def test_a_place_where_nothing_may_be_done_is_refused(
    prefix: PrefixFacts, said: str
) -> None:
    with pytest.raises(Stop, match=said):
        plan_installation(request_of(), facts_of(prefix=prefix))


def test_the_remedy_of_another_environment_names_this_prefix_and_this_environment() -> (
    None
):
    """It was `--force` alone, which would build another environment at the usual place."""
    current = environment.find("current")
    prefix = PrefixFacts(
        PLACE, PrefixStatus.VERIFIED, BackendName.PIP, environment="default"
    )
    with pytest.raises(Stop) as stop:
        plan_installation(request_of(environment=current), facts_of(prefix=prefix))
    command = "setup_runpod_environment.sh --prefix /somewhere/env --environment current --force"
    assert command in str(stop.value)


@pytest.mark.parametrize(
    "name, capability", [("B200", "10.0"), ("B300", "10.3"), ("RTX PRO 6000", "12.0")]
)
@pytest.mark.parametrize("backend", list(BackendName))
def test_a_blackwell_gpu_is_refused_in_the_default_environment(
    name: str, capability: str, backend: BackendName
) -> None:
    """Everything was installed, and the quick level said verified."""
    facts = facts_of(gpus=[gpu_of(name, capability)], offers={backend: Offer(True, "")})
    said = remedies(plan_installation(request_of(), facts))
    assert f"{name} has compute capability {capability}, and torch 2.5.1" in said
    assert "kernels for 5.0, 6.0, 7.0, 7.5, 8.0, 8.6, 9.0 alone" in said
    assert "use --environment current, which has them" in said
    current = request_of(environment=environment.find("current"))
    assert plan_installation(current, facts).problems == []


@pytest.mark.parametrize("name, capability", [("V100", "7.0"), ("P100", "6.0")])
def test_a_gpu_too_old_for_current_is_refused_there(name: str, capability: str) -> None:
    current = request_of(environment=environment.find("current"))
    said = remedies(
        plan_installation(current, facts_of(gpus=[gpu_of(name, capability)]))
    )
    assert f"{name} has compute capability {capability}" in said
    assert "use --environment default, which has them" in said


@dataclass(frozen=True)
class Candidate:
    """An environment that is not in this repository: its CUDA and its torch."""

    name: str
    locked_cuda: str
    locked_torch: str

    def cuda(self, backend: BackendName) -> str:
        return self.locked_cuda

    def torch(self, backend: BackendName) -> str:
        return self.locked_torch


def test_an_environment_for_the_cpu_is_no_remedy_and_the_one_for_this_driver_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last one that was looked at was named, and one for the CPU has no kernels for a GPU."""
    others = [
        Candidate("later", "13.2", "2.15.0"),
        Candidate("fitting", "12.8", "2.7.1"),
        Candidate("for-the-cpu", "", "2.15.0"),
    ]
    monkeypatch.setattr(environment, "list_environments", lambda: others)
    facts = facts_of(gpus=[gpu_of("B200", "10.0", "570.86.15")])
    said = remedies(plan_installation(request_of(), facts))
    assert "use --environment fitting, which has them" in said
    assert "for-the-cpu" not in said
    assert "on a pod whose driver" not in said


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "9.0"])
def test_what_torch_has_kernels_for_is_not_refused(capability: str) -> None:
    for wanted in environment.list_environments():
        facts = facts_of(gpus=[gpu_of("a GPU", capability)])
        assert plan_installation(request_of(environment=wanted), facts).problems == []


@pytest.mark.parametrize("driver", ["550.54.14", "575.51.03"])
def test_a_driver_too_old_for_cuda_13_is_named_with_what_runs_on_it(
    driver: str,
) -> None:
    current = request_of(environment=environment.find("current"))
    said = remedies(
        plan_installation(current, facts_of(gpus=[gpu_of("H100", "9.0", driver)]))
    )
    assert f"the driver {driver} of H100 is older than 580.65.06" in said
    assert (
        "use --environment default, which runs on the driver 525.60.13 and newer"
        in said
    )


def test_the_oldest_driver_of_cuda_13_runs_both_environments() -> None:
    facts = facts_of(gpus=[gpu_of("H100", "9.0", "580.65.06")])
    for wanted in environment.list_environments():
        assert plan_installation(request_of(environment=wanted), facts).problems == []


def test_a_driver_that_no_environment_runs_on_has_no_such_remedy() -> None:
    said = remedies(
        plan_installation(
            request_of(), facts_of(gpus=[gpu_of("H100", "9.0", "470.57.02")])
        )
    )
    assert "older than 525.60.13" in said
    assert "--environment" not in said


def test_what_is_in_the_way_is_told_with_the_plan() -> None:
    refusal = Obstacle("give this pod back", "--any-pod continues anyway")
    surroundings = Surroundings(
        pod_refusal=refusal, misleading=[Obstacle("PYTHONPATH", "unset it")]
    )
    facts = facts_of(surroundings=surroundings)
    assert refusal in plan_installation(request_of(), facts).problems
    plan = plan_installation(request_of(any_pod=True), facts)
    assert [problem.what for problem in plan.problems] == ["PYTHONPATH"]


def test_a_rebuild_keeps_the_old_one_until_the_new_one_is_there() -> None:
    """Both must fit, unless the cache holds what the old one links to."""
    changed = PrefixFacts(
        PLACE, PrefixStatus.CHANGED, backend=BackendName.PIP, environment="default"
    )
    whole = plan_installation(request_of(), facts_of()).disks[0].needed
    linked = plan_installation(request_of(), facts_of(prefix=changed)).disks[0].needed
    assert linked < whole / 2
