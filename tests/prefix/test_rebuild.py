"""What a second run does: it verifies again, plans, rebuilds, and goes back to the old environment."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict

import jsonschema
from fixtures.commands import ROOT, sh
from fixtures.machine import Machine, relock
from one_command import change_mark, environments, set_up_with


def break_new(machine: Machine) -> None:
    """Another lock, and a verifier that refuses what is made from it."""
    relock(machine)
    machine.refuse_all()


def test_killed_during_verify_with_changed_locks_the_old_one_is_kept_until_the_new_is_verified(
    machine: Machine, installed: None
) -> None:
    """Files damaged, kill -9 during Verify: the next run deleted the old one and printed "verified"."""
    (machine.prefix / "mine.txt").write_text("the old one")
    break_new(machine)
    old = machine.prefix.resolve()
    machine.assert_killed_during("Verify")
    assert machine.prefix.resolve() == old
    [new] = [path for path in environments(machine) if path != old]
    assert change_mark(new)["state"] == "installed"
    done = machine.setup()
    said = f"the new environment did not verify; {machine.prefix} is still the old one"
    assert done.returncode == 1, done.stdout
    assert said in done.stdout, done.stdout
    assert (machine.prefix / "mine.txt").read_text() == "the old one"
    assert environments(machine) == [old]


def test_what_was_put_into_a_new_environment_that_does_not_verify_is_kept(
    machine: Machine, installed: None
) -> None:
    break_new(machine)
    old = machine.prefix.resolve()
    machine.assert_killed_during("Verify")
    [new] = [path for path in environments(machine) if path != old]
    (new / "results.csv").write_text("years of work")
    done = machine.setup()
    kept = re.search(
        r"1 file or folder of yours is now in (\S+):\n  results.csv", done.stdout
    )
    assert done.returncode == 1, done.stdout
    assert kept, done.stdout
    assert Path(kept[1], "results.csv").read_text() == "years of work"


def test_the_old_environment_stays_until_flash_attn_is_there_too(
    machine: Machine, installed: None
) -> None:
    """The stand-in torch cannot be imported, so flash-attn cannot be built; the new environment verifies nevertheless."""
    old = machine.prefix.resolve()
    (machine.prefix / "mine.txt").write_text("the old one")
    done = machine.setup("--force", "--arch", "90")
    assert done.returncode == 1, done.stdout
    assert "torch cannot be imported in" in done.stdout, done.stdout
    assert (
        f"the old environment stays at {old} until all that was asked for"
        in done.stdout
    )
    assert done.stdout.splitlines()[-1].startswith(
        "enter it with:  source "
    ), done.stdout
    assert (old / "mine.txt").exists()
    assert not (machine.prefix / "mine.txt").exists()
    machine.assert_verified(machine.setup())


def test_a_manifest_that_cannot_be_copied_to_the_volume_is_a_warning(
    machine: Machine,
) -> None:
    """A full volume deleted a verified environment."""
    volume = machine.folder / "volume"
    volume.mkdir()
    (volume / "maximalcai-manifests").touch()  # a file where the folder goes
    done = set_up_with(machine, f"volume={volume}", RUNPOD_POD_ID="x")
    assert "warning: the manifest is in the prefix alone" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout
    machine.assert_verified(done)


def test_from_inside_the_activated_environment_through_a_link_and_with_another_backend(
    machine: Machine, installed: None
) -> None:
    inside = {
        "PATH": f"{machine.prefix}/bin:{machine.environ['PATH']}",
        "CONDA_PREFIX": str(machine.prefix),
    }
    machine.assert_verified(machine.setup("--force", **inside))
    relock(machine)
    machine.assert_verified(machine.setup(**inside))
    link = machine.folder / "link"
    real = machine.prefix
    link.symlink_to(real)
    machine.prefix = link
    machine.assert_verified(machine.setup("--force", **inside))
    assert link.readlink() == real
    assert real.readlink().parent.name == "env.d"
    done = machine.setup("--backend", "pip", "--dry-run")
    assert "backend      pip: as asked" in done.stdout, done.stdout
    assert "(rebuilt)" in done.stdout, done.stdout


def test_the_second_run_is_quick_only_if_the_last_full_one_passed(
    machine: Machine, installed: None
) -> None:
    level = machine.command().index("--level")
    command = [
        word for n, word in enumerate(machine.command()) if n not in (level, level + 1)
    ]
    environ = {**machine.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    assert "Verify, full level" in sh(*command, check=False, env=environ).stdout
    change_mark(machine.prefix, verdicts={"full": {"passed": True, "added": []}})
    assert "Verify, quick level" in sh(*command, check=False, env=environ).stdout
    change_mark(
        machine.prefix, verdicts={"full": {"passed": True, "added": ["six==1.16.0"]}}
    )
    assert (
        "Verify, full level" in sh(*command, check=False, env=environ).stdout
    ), "what was added since, no full level has seen"
    assert (
        change_mark(machine.prefix)["verdicts"]["full"]["passed"] is False
    ), "the stand-ins do not train"
    assert "Verify, full level" in sh(*command, check=False, env=environ).stdout


def test_a_finished_prefix_whose_conda_package_was_replaced_is_not_verified(
    machine: Machine, installed: None
) -> None:
    record = next((machine.prefix / "conda-meta").glob("tqdm-*.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": "99.0"}))
    done = machine.setup()
    assert done.returncode == 1
    assert "tqdm: version is 99.0, locked is" in done.stdout
    assert "is not verified" in done.stdout


def planned(machine: Machine, *options: str) -> Dict[str, Any]:
    """What --dry-run --json says."""
    plan: Dict[str, Any] = json.loads(
        machine.setup("--dry-run", "--json", *options).stdout
    )
    jsonschema.validate(
        plan,
        json.loads((ROOT / "scripts/lockedenv/schemas/plan.schema.json").read_text()),
    )
    return plan


def test_a_dry_run_tells_the_whole_plan_and_changes_nothing(machine: Machine) -> None:
    before = sorted(machine.folder.rglob("*"))
    done = machine.setup("--dry-run", "--arch", "90")
    assert (
        "flash-attn   the prebuilt wheel flash_attn-2.8.3" in done.stdout
    ), done.stdout
    done = machine.setup("--dry-run", "--arch", "90", "--flash-attn", "build")
    assert (
        "flash-attn   built for sm_90 with the lock's nvcc and g++, " in done.stdout
    ), done.stdout
    plan = planned(machine)
    assert plan["action"] == "install"
    assert plan["disk"][0]["needed_bytes"] > 0
    assert plan["packages_added"] == []
    assert sorted(machine.folder.rglob("*")) == before
    machine.assert_verified(machine.setup())
    assert planned(machine)["action"] == "verify"
    assert planned(machine, "--force")["action"] == "rebuild"
    done = machine.setup("--json")
    assert done.returncode == 2
    assert "--json is the plan of --dry-run: give both" in done.stdout
    done = machine.setup("--dry-run")
    assert (
        "is installed, from these locks: it is verified again (--force rebuilds it)"
        in done.stdout
    )
    assert "anew" not in done.stdout
    nvcc = machine.folder / "cuda-11.8/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho release 11.8\n")
    nvcc.chmod(0o755)
    options = ["--dry-run", "--arch", "90", "--backend", "pip"]
    environ = {"CUDA_HOME": str(machine.folder / "cuda-11.8")}
    assert (
        "flash-attn   flash-attn needs a torch that is built for CUDA"
        in machine.setup(*options, **environ).stdout
    )
    lines = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line.startswith(("torch==", "nvidia-cuda-run"))
    ]
    lock = machine.project / "requirements.txt"
    pins = [*(line for line in lock.read_text().splitlines() if line[0] != "#"), *lines]
    lock.write_text("\n".join([*pins, f"# {len(pins)} packages", ""]))
    plan = machine.setup(*options, "--flash-attn", "build", **environ)
    assert (
        "flash-attn   flash-attn cannot be built: nvcc is of CUDA 11.8, torch is built for 12.4"
        in plan.stdout
    ), plan.stdout


def test_a_pythonpath_of_the_caller_is_seen_through_the_set_up(
    machine: Machine, installed: None
) -> None:
    done = machine.setup(PYTHONPATH="/usr")
    assert done.returncode == 1, done.stdout
    assert (
        "FAIL  variables: PYTHONPATH=/usr is searched before" in done.stdout
    ), done.stdout
    done = machine.setup("--force", PYTHONPATH="/usr")
    said = "PYTHONPATH=/usr is searched before the environment; unset PYTHONPATH, and run it again"
    assert done.returncode == 1, done.stdout
    assert said in done.stdout, done.stdout
    assert "[2/6]" not in done.stdout, done.stdout
