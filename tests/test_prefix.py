"""The life of a prefix: what is ours, what comes back, what is never touched. By the one command, on the local channel."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import jsonschema
import pytest
from conftest import ROOT, VERIFIED, CondaEnvironment, Machine, clean_environ, relock, sh
from lockedenv.backends import index, uv_program
from lockedenv.errors import Stop
from lockedenv.host.places import default_cache
from lockedenv.prefix import lifecycle as prefix
from lockedenv.prefix.lifecycle import ABSENT, CHANGED, FOREIGN, MAKING, MOVED
from lockedenv.prefix.lifecycle import VERIFIED as VERIFIED_STATE
from lockedenv.prefix.lifecycle import Prefix
from lockedenv.prefix.records import INSTALLED, MARK

SITE = "lib/python3.11/site-packages"


def mark(folder: Path, **changes: Any) -> Dict[str, Any]:
    path = folder / MARK
    document = json.loads(path.read_text())
    if changes:
        path.write_text(json.dumps({**document, **changes}))
    return dict(document)


# States ----------------------------------------------------------------------------------------------------------


def test_the_states_of_a_folder(tmp_path: Path) -> None:
    place = Prefix(tmp_path / "env")
    assert place.state() == ABSENT
    place.path.mkdir()
    assert place.state() == ABSENT, "an empty folder may be anyone's, and holds nothing to lose"
    (place.path / "thesis.tex").touch()
    assert place.state() == FOREIGN
    (place.path / MARK).touch()
    assert (
        place.state() == FOREIGN
    ), "an empty mark says nothing; a power cut may have emptied someone else's"
    place.write(made_by="setup", path=str(place.path), state="making")
    assert place.state() == MAKING
    place.write(made_by="you", path=str(place.path), state="installed")
    assert place.state() == FOREIGN, "post_create.sh was pointed at it"
    place.write(made_by="setup", locks="a")
    assert place.state("b") == CHANGED and place.state("a") == "installed"
    prefix.record_verdict(place.path, "quick", True)
    assert place.state("a") == VERIFIED_STATE
    prefix.record_verdict(place.path, "full", False)
    assert place.state("a") == "installed"
    place.path.rename(tmp_path / "other")
    assert Prefix(tmp_path / "other").state("a") == MOVED


@pytest.mark.parametrize(
    "name, said",
    [
        ("with:colon", "has ':' in its name"),
        ("with'quote", "in its name, which PATH or a script cannot hold"),
        ("x" * 120 + "/" + "y" * 140, "conda packages have room for 255"),
    ],
)
def test_a_place_where_nothing_can_work_is_refused_first(
    name: str, said: str, machine: Machine
) -> None:
    machine.prefix, before = machine.folder / name, sorted(machine.folder.rglob("*"))
    done = machine.setup()
    assert (
        done.returncode == 1 and said in done.stdout and len(done.stdout.splitlines()) == 1
    ), done.stdout
    assert sorted(machine.folder.rglob("*")) == before


def test_a_cache_in_the_prefix_and_a_mount_point_are_refused(machine: Machine) -> None:
    machine.cache = machine.prefix / "cache"
    done = machine.setup()
    assert (
        done.returncode == 1 and "lies in the prefix" in done.stdout and not machine.prefix.exists()
    )
    machine.cache = machine.folder / "cache"
    done = machine.setup_mounted("mkdir {prefix} && mount -t tmpfs none {prefix}")
    assert (
        done.returncode == 1 and "is a mount point, which cannot be renamed" in done.stdout
    ), done.stdout


def test_a_disk_that_starts_no_program_is_refused(machine: Machine) -> None:
    done = machine.setup_mounted(
        "mkdir {folder}/d && mount -t tmpfs -o noexec none {folder}/d",
        "--cache",
        machine.folder / "d/cache",
    )
    assert (
        done.returncode == 1 and "it is mounted noexec; choose another" in done.stdout
    ), done.stdout


def test_a_name_with_spaces_works_and_the_line_that_enters_it_works_as_printed(
    machine: Machine, zsh: str
) -> None:
    machine.prefix = machine.folder / "my own env"
    done = machine.setup()
    machine.assert_verified(done)
    line = re.search(r"enter it with:  (.*)$", done.stdout, re.M)
    assert line
    shutil.rmtree(machine.cache)  # nothing but the prefix is needed
    hooks = machine.prefix / "etc/conda/activate.d"
    hooks.mkdir(parents=True)
    (hooks / "a.sh").write_text("export FROM_A_HOOK=$CONDA_PREFIX\n")
    for shell in ("bash", zsh):
        script = f"{line[1]} && command -v python && uv --version && echo $FROM_A_HOOK && deactivate && echo ${{CONDA_PREFIX-gone}}"
        said = sh(
            shell, "-c", script, env={"PATH": os.environ["PATH"], "HOME": str(machine.folder)}
        ).stdout.splitlines()
        assert said == [f"{machine.prefix}/bin/python", said[1], str(machine.prefix), "gone"], said


# Whose a folder is -----------------------------------------------------------------------------------------------


def test_a_folder_of_the_users_beside_the_prefix_is_never_touched(
    machine: Machine, installed: None
) -> None:
    """PREFIX.old/results.csv vanished on a plain second run."""
    old = machine.folder / "env.old"
    old.mkdir()
    (old / "results.csv").write_text("years of work")
    machine.assert_verified(machine.setup(), old=True)
    done = machine.setup("--force")
    assert (
        done.returncode == 1
        and "env.old is there and was not made by this script; move it away" in done.stdout
    )
    assert (
        old / "results.csv"
    ).read_text() == "years of work" and VERIFIED in machine.setup().stdout


def test_a_folder_put_where_a_killed_run_was_is_never_touched(machine: Machine) -> None:
    """The mark lies inside: who clears the prefix away clears the mark away."""
    machine.assert_killed_during("Create")
    shutil.rmtree(machine.prefix)
    machine.prefix.mkdir()
    (machine.prefix / "results.csv").write_text("years of work")
    done = machine.setup("--force")
    assert done.returncode == 1 and "was not made by this script" in done.stdout, done.stdout
    assert (machine.prefix / "results.csv").read_text() == "years of work"


def test_an_environment_that_post_create_was_pointed_at_is_never_removed(
    machine: Machine, installed: None
) -> None:
    mine = machine.folder / "mine"
    sh("cp", "-a", machine.prefix, mine)
    for name in (MARK, INSTALLED):
        (mine / name).unlink()
    options = ["--prefix", mine, "--cache", machine.cache, "--level", "quick"]
    done = sh(
        machine.project / "scripts/post_create.sh", *options, check=False, env=machine.environ
    )
    assert mark(mine)["made_by"] == "you" and mark(mine)["state"] == "installed", done.stdout
    machine.prefix = mine
    done = machine.setup("--force")
    assert (
        done.returncode == 1
        and "was not made by this script" in done.stdout
        and (mine / "bin/python").exists()
    )


def test_a_moved_environment_is_said_to_be_moved(machine: Machine, installed: None) -> None:
    made, machine.prefix = machine.prefix, machine.folder / "elsewhere"
    made.rename(machine.prefix)
    verifier = [
        machine.prefix / "bin/python",
        machine.project / "scripts/verify_environment.py",
        "--level",
        "quick",
    ]
    done = sh(*verifier, check=False, env=clean_environ())
    assert (
        done.returncode == 1
        and f"FAIL  place            the environment was made at {made} and moved to" in done.stdout
    )
    done = sh(
        "bash",
        "-c",
        'source "$0/activate"; echo "$CONDA_PREFIX"',
        machine.prefix,
        env=clean_environ(),
    )
    assert (
        done.stdout == f"this environment was made at {made}, and has been moved: move it back\n\n"
    )
    done = machine.setup()
    assert (
        done.returncode == 1
        and f"was made at {made}, and its scripts name that place: move it back" in done.stdout
    )
    machine.assert_verified(machine.setup("--force"))


# What comes back -------------------------------------------------------------------------------------------------


def break_new(machine: Machine) -> None:
    """Another lock, and a verifier that refuses what is made from it."""
    relock(machine)
    module = machine.project / "scripts/lockedenv/verify/checks/libraries.py"
    module.write_text(
        module.read_text().replace("locked.get(name) != version", "locked.get(name) == version")
    )


def test_killed_during_verify_with_changed_locks_the_old_one_is_kept_until_the_new_is_verified(
    machine: Machine, installed: None
) -> None:
    """Files damaged, kill -9 during Verify: the next run deleted the old one and printed "verified"."""
    (machine.prefix / "mine.txt").write_text("the old one")
    break_new(machine)
    machine.assert_killed_during("Verify")
    assert (machine.folder / "env.old/mine.txt").exists() and mark(machine.prefix)[
        "state"
    ] == "installed"
    done = machine.setup()
    assert (
        done.returncode == 1
        and "the new environment did not verify; the old environment is back" in done.stdout
    )
    assert (machine.prefix / "mine.txt").read_text() == "the old one" and not (
        machine.folder / "env.old"
    ).exists()


def test_what_was_put_into_a_new_environment_that_does_not_verify_is_kept(
    machine: Machine, installed: None
) -> None:
    break_new(machine)
    machine.assert_killed_during("Verify")
    (machine.prefix / "results.csv").write_text("years of work")
    done = machine.setup()
    kept = re.search(
        r"1 files or folders of your own were in the environment that was removed; they are in (\S+); the old",
        done.stdout,
    )
    assert done.returncode == 1 and kept, done.stdout
    assert Path(kept[1], "results.csv").read_text() == "years of work"


def test_the_old_environment_stays_until_flash_attn_is_there_too(
    machine: Machine, installed: None
) -> None:
    """The stand-in torch cannot be imported, so flash-attn cannot be built; the new environment verifies all the same."""
    (machine.prefix / "mine.txt").write_text("the old one")
    done = machine.setup("--force", "--arch", "90")
    assert done.returncode == 1 and "torch cannot be imported in" in done.stdout, done.stdout
    assert (
        f"the old environment stays at {machine.prefix}.old until all that was asked for is there"
        in done.stdout
    )
    assert done.stdout.splitlines()[-1].startswith("enter it with:  source "), done.stdout
    assert (machine.folder / "env.old/mine.txt").exists() and not (
        machine.prefix / "mine.txt"
    ).exists()
    machine.assert_verified(machine.setup())


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupt_during_verify_removes_nothing_and_leaves_nothing_running(
    number: int, status: int, machine: Machine
) -> None:
    machine.environ["TMPDIR"] = str(machine.folder / "tmp")
    (machine.folder / "tmp").mkdir()
    process, said = machine.until("Verify", slow_verify=True)
    process.send_signal(number)
    started = time.monotonic()
    rest = process.communicate(timeout=30)[0]
    print(f"ended after {time.monotonic() - started:.2f} s")
    assert (
        process.returncode == status
        and rest.count("interrupted; run it again to go on") == 1
        and "Traceback" not in rest
    ), rest
    assert not sh("pgrep", "-f", machine.folder, check=False).stdout and not [
        p for p in (machine.folder / "tmp").iterdir() if not p.name.startswith("uv-")
    ]
    assert mark(machine.prefix)["state"] == "installed" and sh(
        machine.prefix / "bin/python", "-c", "import numpy"
    )
    machine.slow_verify(False)
    machine.assert_verified(machine.setup())


def test_a_manifest_that_cannot_be_copied_to_the_volume_is_a_warning(machine: Machine) -> None:
    """A full volume deleted a verified environment."""
    volume = machine.folder / "volume"
    volume.mkdir()
    (volume / "maximalcai-manifests").touch()  # a file where the folder goes
    module = machine.project / "scripts/lockedenv/host/places.py"
    module.write_text(module.read_text().replace('Path("/workspace")', f'Path("{volume}")'))
    done = machine.setup(RUNPOD_POD_ID="x")
    assert (
        "warning: the manifest is in the prefix alone" in done.stdout and done.returncode == 0
    ), done.stdout
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
    link, real = machine.folder / "link", machine.prefix
    link.symlink_to(real)
    machine.prefix = link
    machine.assert_verified(machine.setup("--force", **inside))
    assert link.is_symlink() and not real.is_symlink() and real.is_dir()
    done = machine.setup("--backend", "pip", "--dry-run")
    assert "backend      pip: as asked" in done.stdout and "(rebuilt)" in done.stdout, done.stdout


def test_the_second_run_is_quick_only_if_the_last_full_one_passed(
    machine: Machine, installed: None
) -> None:
    level = machine.command().index("--level")
    command = [word for n, word in enumerate(machine.command()) if n not in (level, level + 1)]
    environ = {**machine.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    assert "Verify, full level" in sh(*command, check=False, env=environ).stdout
    mark(machine.prefix, verdicts={"full": {"passed": True, "added": []}})
    assert "Verify, quick level" in sh(*command, check=False, env=environ).stdout
    mark(machine.prefix, verdicts={"full": {"passed": True, "added": ["six==1.16.0"]}})
    assert (
        "Verify, full level" in sh(*command, check=False, env=environ).stdout
    ), "what was added since, no full level has seen"
    assert mark(machine.prefix)["verdicts"]["full"]["passed"] is False, "the stand-ins do not train"
    assert "Verify, full level" in sh(*command, check=False, env=environ).stdout


def test_a_finished_prefix_whose_conda_package_was_replaced_is_not_verified(
    machine: Machine, installed: None
) -> None:
    record = next((machine.prefix / "conda-meta").glob("tqdm-*.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": "99.0"}))
    done = machine.setup()
    assert (
        done.returncode == 1
        and "tqdm: version is 99.0, locked is" in done.stdout
        and "is not verified" in done.stdout
    )


def planned(machine: Machine, *options: str) -> Dict[str, Any]:
    """What --dry-run --json says."""
    plan: Dict[str, Any] = json.loads(machine.setup("--dry-run", "--json", *options).stdout)
    jsonschema.validate(
        plan, json.loads((ROOT / "scripts/lockedenv/schemas/plan.schema.json").read_text())
    )
    return plan


def test_a_dry_run_tells_the_whole_plan_and_changes_nothing(machine: Machine) -> None:
    before = sorted(machine.folder.rglob("*"))
    done = machine.setup("--dry-run", "--arch", "90")
    assert "flash-attn   the prebuilt wheel of flash-attn 2.8.3\n" in done.stdout, done.stdout
    done = machine.setup("--dry-run", "--arch", "90", "--flash-attn", "build")
    assert re.search(
        r"flash-attn   built for sm_90 with the lock's nvcc and g\+\+, 2 jobs at a time: .*: about 108 minutes;",
        done.stdout,
    )
    plan = planned(machine)
    assert (
        plan["action"] == "install"
        and plan["disk"][0]["needed_bytes"] > 0
        and plan["packages_added"] == []
    )
    assert sorted(machine.folder.rglob("*")) == before
    machine.assert_verified(machine.setup())
    assert (
        planned(machine)["action"] == "verify"
        and planned(machine, "--force")["action"] == "rebuild"
    )
    done = machine.setup("--json")
    assert done.returncode == 2 and "--json is the plan of --dry-run: give both" in done.stdout
    done = machine.setup("--dry-run")
    assert (
        "is installed, from these locks: it is verified again (--force rebuilds it)" in done.stdout
        and "anew" not in done.stdout
    )
    nvcc = machine.folder / "cuda-11.8/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho release 11.8\n")
    nvcc.chmod(0o755)
    options, environ = ["--dry-run", "--arch", "90", "--backend", "pip"], {
        "CUDA_HOME": str(machine.folder / "cuda-11.8")
    }
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


# What the user has added -----------------------------------------------------------------------------------------


def test_what_the_user_added_is_listed_kept_and_brought_back(
    machine: Machine, installed: None
) -> None:
    sh(
        machine.prefix / "bin/uv",
        "pip",
        "install",
        "--python",
        machine.prefix / "bin/python",
        "six==1.16.0",
        env=clean_environ(),
    )
    (machine.prefix / "results").mkdir()
    (machine.prefix / "results/loss.csv").write_text("years of work")
    done = machine.setup("--force", "--dry-run")
    assert "comes back   six==1.16.0" in done.stdout, "the default of a rebuild"
    done = machine.setup("--force", "--dry-run", "--drop-extras")
    assert (
        "goes         six==1.16.0 (listed in" in done.stdout
        and "nothing was changed" in done.stdout
    ), done.stdout
    assert "moves        results, your own, to" in done.stdout
    done = machine.setup("--force", "--drop-extras")
    machine.assert_verified(done)
    command = done.stdout.split("this installs them again:\n")[1].splitlines()[0]
    kept = re.search(
        r"1 files or folders of your own were in the environment that was removed; they are in (\S+)",
        done.stdout,
    )
    assert kept and Path(kept[1], "results/loss.csv").read_text() == "years of work"
    assert not list(machine.prefix.glob(f"{SITE}/six*"))
    sh(*command.split(), env=clean_environ())
    assert (machine.prefix / SITE / "six.py").exists()
    done = machine.setup("--force")
    machine.assert_verified(done)
    assert (machine.prefix / SITE / "six.py").exists() and "left out" not in done.stdout


def test_packages_that_could_not_be_brought_back_are_tried_again(
    machine: Machine, installed: None
) -> None:
    """The next run said verified, and removed the old environment, which had them."""
    sh(
        machine.prefix / "bin/uv",
        "pip",
        "install",
        "--python",
        machine.prefix / "bin/python",
        "six==1.16.0",
        env=clean_environ(),
    )
    for options in (["--force"], [], ["--force"]):
        done = machine.setup(*options, HTTPS_PROXY="http://127.0.0.1:9", UV_HTTP_RETRIES="0")
        assert (
            done.returncode == 1 and "your own packages are missing; their list is" in done.stdout
        ), done.stdout
        assert Path(f"{machine.prefix}.old", SITE, "six.py").exists()
    machine.assert_verified(machine.setup())
    assert (machine.prefix / SITE / "six.py").exists() and not Path(
        f"{machine.prefix}.old"
    ).exists()


def test_the_first_remedy_repairs_and_keeps_what_was_added(
    machine: Machine, installed: None
) -> None:
    """The verifier said --force, which removed it; TROUBLESHOOTING said post_create.sh."""
    sh(
        machine.prefix / "bin/uv",
        "pip",
        "install",
        "--python",
        machine.prefix / "bin/python",
        "six==1.16.0",
        env=clean_environ(),
    )
    edit(machine.prefix / SITE / "idna/core.py")
    said = machine.verify("--only", "files")
    assert (
        "idna/core.py: changed" in said
        and "> scripts/post_create.sh puts the pip layer right, and keeps" in said
    ), said
    options = ["--prefix", machine.prefix, "--cache", machine.cache, "--level", "quick"]
    done = sh(
        machine.project / "scripts/post_create.sh", *options, check=False, env=machine.environ
    )
    assert done.returncode == 0 and "PASS  files" in machine.verify("--only", "files"), done.stdout
    assert (machine.prefix / SITE / "six.py").exists()


def test_what_people_write_into_our_own_files_is_not_lost(
    machine: Machine, installed: None
) -> None:
    """pip.conf was written over by post_create.sh, and went with a rebuild."""
    conf, activate = machine.prefix / "pip.conf", machine.prefix / "activate"
    for path, text in (
        (conf, "[global]\nindex-url = https://mine.example/simple\n"),
        (activate, "export MINE=1\n"),
    ):
        path.write_text(path.read_text() + text)
    post_create = [
        machine.project / "scripts/post_create.sh",
        "--prefix",
        machine.prefix,
        "--cache",
        machine.cache,
    ]
    sh(*post_create, "--level", "quick", env=machine.environ)
    assert "mine.example" in conf.read_text() and "MINE" in activate.read_text()
    conf.write_text("[global]\nindex-url = https://other.example/simple\n")
    sh(*post_create, "--level", "quick", env=machine.environ)
    assert (
        "constraint" in conf.read_text()
        and "other.example" in conf.with_name("pip.conf.old").read_text()
    )
    done = machine.setup("--force")
    machine.assert_verified(done)
    kept = next(machine.folder.glob("env.kept-*"))
    assert f"moves        activate, your own, to {machine.prefix}.kept-" in done.stdout
    assert (
        "MINE" in (kept / "activate").read_text()
        and "other.example" in (kept / "pip.conf.old").read_text()
    )
    for path in (activate, machine.prefix / "maximalcai-constraints.txt"):
        path.unlink()
    machine.assert_verified(machine.setup())
    assert (
        "MINE" not in activate.read_text()
        and "idna==" in (machine.prefix / "maximalcai-constraints.txt").read_text()
    )


def test_a_pythonpath_of_the_caller_is_seen_through_the_set_up(
    machine: Machine, installed: None
) -> None:
    done = machine.setup(PYTHONPATH="/elsewhere")
    assert (
        done.returncode == 1
        and "FAIL  variables        PYTHONPATH=/elsewhere is searched before" in done.stdout
    ), done.stdout
    done = machine.setup("--force", PYTHONPATH="/elsewhere")
    said = "PYTHONPATH=/elsewhere is searched before the environment; unset PYTHONPATH, and run it again"
    assert done.returncode == 1 and said in done.stdout and "[2/6]" not in done.stdout, done.stdout


def test_a_token_in_the_address_of_an_added_package_is_not_shown(
    machine: Machine, installed: None
) -> None:
    info = machine.prefix / SITE / "yyy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: yyy\nVersion: 1.0\n")
    (info / "direct_url.json").write_text(
        json.dumps({"url": "https://me:pw@host/yyy.whl?token=SECRET", "archive_info": {}})
    )
    said = [
        machine.setup(*options).stdout
        for options in (["--dry-run", "--force"], ["--dry-run", "--force", "--json"], [])
    ]
    assert "yyy @ https://***@host/yyy.whl" in said[0] and "SECRET" not in "".join(
        [*said, (machine.prefix / MARK).read_text()]
    )


def test_folders_links_and_condas_pins_are_kept_whole(machine: Machine, installed: None) -> None:
    sh("git", "init", "-q", machine.prefix / "src/mine")
    (machine.prefix / "conda-meta/pinned").write_text("numpy <3")
    (machine.prefix / "data").symlink_to("/nowhere")
    done = machine.setup("--force")
    machine.assert_verified(done)
    kept = re.search(
        r"3 files or folders of your own were in the environment that was removed; they are in (\S+)",
        done.stdout,
    )
    assert kept, done.stdout
    sh("git", "-C", Path(kept[1], "src/mine"), "status")
    assert (
        Path(kept[1], "conda-meta/pinned").read_text() == "numpy <3"
        and os.readlink(Path(kept[1], "data")) == "/nowhere"
    )


def test_each_list_of_what_was_added_stays(machine: Machine, installed: None) -> None:
    for name in ("six==1.16.0", "toml==0.10.2"):
        sh(
            machine.prefix / "bin/uv",
            "pip",
            "install",
            "--python",
            machine.prefix / "bin/python",
            name,
            env=clean_environ(),
        )
        (machine.prefix / "maximalcai-installed.json").unlink()  # lost: the lock's names do
        machine.assert_verified(machine.setup("--force", "--drop-extras"))
        time.sleep(1)
    lists = sorted(path.read_text() for path in machine.folder.glob("env.maximalcai-extras-*.txt"))
    assert len(lists) == 2 and "six==1.16.0" in lists[0] and "toml==0.10.2" in lists[1]


def test_the_users_files_with_likely_names_beside_the_prefix_are_not_touched(
    machine: Machine,
) -> None:
    for name in ("uv", "pkgs", "making"):
        (machine.folder / f"env.{name}").mkdir()
        (machine.folder / f"env.{name}/results.csv").write_text("years of work")
    (machine.folder / "env.lock").write_text("years of work")
    machine.assert_verified(machine.setup())
    assert (machine.folder / "env.lock").read_text() == "years of work"
    assert all(
        (machine.folder / f"env.{name}/results.csv").exists() for name in ("uv", "pkgs", "making")
    )


def test_what_is_mounted_in_the_prefix_is_said_before_anything_is_done(
    machine: Machine, installed: None
) -> None:
    (machine.prefix / "data").mkdir()
    done = machine.setup_mounted("mount -t tmpfs none {prefix}/data", "--force")
    assert (
        done.returncode == 1
        and f"{machine.prefix}/data is mounted in the environment" in done.stdout
    ), done.stdout
    machine.assert_verified(machine.setup())


def test_a_verdict_is_not_written_into_another_environments_mark(tmp_path: Path) -> None:
    mark_of = {"state": "installed", "made": 2, "verdicts": {"full": {"passed": False}}}
    (tmp_path / MARK).write_text(json.dumps(mark_of))
    prefix.record_verdict(tmp_path, "full", True, made=1)
    assert mark(tmp_path) == mark_of


# What is installed again is right --------------------------------------------------------------------------------


def edit(path: Path) -> None:
    """Edits a file in place, as an editor or a program does: its links in the cache change with it."""
    with path.open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(content[:-2] + b"#\n")


@pytest.mark.parametrize("name", ["tqdm/std.py", "idna/core.py"], ids=["conda", "pip"])
def test_an_edited_file_does_not_come_back_out_of_the_cache(
    name: str, machine: Machine, installed: None
) -> None:
    edited = machine.prefix / SITE / name
    assert edited.stat().st_nlink > 1, "a link into the cache"
    edit(edited)
    other = Machine(
        machine.channel, machine.folder / "second", machine.address, machine.micromamba, machine.uv
    )
    other.cache = machine.cache
    for again, options in ((other, []), (machine, ["--force"])):
        machine.assert_verified(again.setup(*options), at=again)
        assert "PASS  files" in again.verify("--only", "files")


@pytest.mark.parametrize("name", ["tqdm/std.py", "idna/core.py"], ids=["conda", "pip"])
def test_damage_that_keeps_size_and_time_is_repaired_by_force(
    name: str, machine: Machine, installed: None
) -> None:
    """As bit rot does: the note of size and time does not see it."""
    path = machine.prefix / SITE / name
    stat = path.stat()
    edit(path)
    with path.open("r+b") as file:
        file.truncate(stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert f"{name}: changed since it was installed" in machine.verify("--only", "files")
    machine.assert_verified(machine.setup("--force"))
    assert "PASS  files" in machine.verify("--only", "files")


def test_a_damaged_unpacked_package_is_not_believed(machine: Machine, installed: None) -> None:
    package = next((machine.cache / "pkgs").glob("libcublas-*-0"))
    faults: Dict[str, Callable[[], Any]] = {
        "a file emptied by a power cut": lambda: (
            package / "lib/libcublas.so.12.4.5.8"
        ).write_bytes(b""),
        "a shortened paths.json": lambda: (package / "info/paths.json").write_text(
            '{"paths": [], "paths_version": 1}'
        ),
        "a redirected link": lambda: (
            (package / "lib/libcublas.so.12").unlink(),
            (package / "lib/libcublas.so.12").symlink_to("x"),
        ),
        "a file too many": lambda: (package / "lib/libcublas.so.11").write_text("x"),
    }
    for name, fault in faults.items():
        shutil.rmtree(machine.prefix)
        fault()
        machine.assert_verified(machine.setup())
        assert (machine.prefix / "lib/libcublas.so.12").resolve().read_text() == "cublas", name
        assert not (machine.prefix / "lib/libcublas.so.11").exists()


def test_a_foreign_micromamba_is_never_run(machine: Machine, installed: None) -> None:
    """On PATH or under the pinned one's name in the cache: crashing, empty, or printing bytes."""
    foreign = machine.folder / "bin/micromamba"
    foreign.parent.mkdir()
    foreign.write_text("#!/bin/sh\ntouch $0.was-run\nkill -11 $$\n")
    foreign.chmod(0o755)
    binary = next((machine.cache / "bin").glob("micromamba-*"))
    for content in (foreign.read_text(), ""):
        binary.write_text(content)
        machine.assert_verified(
            machine.setup("--force", PATH=f"{foreign.parent}:{machine.environ['PATH']}")
        )
    assert not list(foreign.parent.glob("*.was-run"))


def test_the_users_settings_do_not_reach_the_tools(machine: Machine, empty_cache: None) -> None:
    home = machine.folder / "home"
    (home / ".config/uv").mkdir(parents=True)
    (home / ".config/uv/uv.toml").write_text('[pip]\ntarget = "/elsewhere"\n')
    (home / ".condarc").write_text("pkgs_dirs: [/elsewhere]\n")
    (home / "pip.conf").write_text(
        "[install]\ntarget = /elsewhere\n[global]\nconstraint = /elsewhere\n"
    )
    theirs = {
        "CONDA_PKGS_DIRS": "/elsewhere",
        "MAMBA_ROOT_PREFIX": "/elsewhere",
        "UV_TARGET": "/elsewhere",
        "PIP_USER": "1",
        "UV_NO_BINARY": "1",
        "PIP_CONSTRAINT": "/elsewhere",
        "PIP_TARGET": "/elsewhere",
        "PIP_REQUIRE_VIRTUALENV": "1",
    }
    machine.assert_verified(machine.setup(HOME=str(home), **theirs))


def test_pip_is_asked_once_for_its_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It takes as long to start as all else that a set-up does before uv installs."""
    said: List[Any] = []

    def ask(command: Any, **options: Any) -> Tuple[int, str, str]:
        said.append(command)
        return 0, "global.index-url='https://pypi.example/simple'\n", ""

    monkeypatch.setattr(index, "ask", ask)
    monkeypatch.setattr(index, "pip_command", lambda: ["pip"])
    environ = {"HOME": str(tmp_path)}
    found = [
        uv_program.uv_environment(tmp_path, tmp_path / name, dict(environ))["UV_DEFAULT_INDEX"]
        for name in "ab"
    ]
    assert found == ["https://pypi.example/simple"] * 2 and len(said) == 1
    uv_program.uv_environment(tmp_path, tmp_path, {**environ, "PIP_INDEX_URL": "x"})
    assert len(said) == 2, "of other variables it has other settings"


def test_from_a_folder_whose_modules_have_pythons_names_and_through_a_link(
    machine: Machine,
) -> None:
    (machine.folder / "platform.py").write_text("raise SystemExit('not yours')")
    (machine.folder / "link.sh").symlink_to(machine.project / "scripts/setup_runpod_environment.sh")
    command = [machine.folder / "link.sh", *machine.command()[1:]]
    machine.assert_verified(
        sh(*command, check=False, cwd=machine.folder, env={**machine.environ, "CDPATH": "/usr"})
    )


def test_an_output_that_is_closed_is_no_traceback(machine: Machine) -> None:
    for redirection in (">&-", "2>&-", "<&-"):
        script = f"{' '.join(machine.command('--dry-run'))} {redirection}"
        done = sh("bash", "-c", script, check=False, env=machine.environ)
        assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout


def test_without_a_home_and_with_a_missing_tmpdir_there_is_one_clear_line(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(
        Stop, match="HOME is not set; set it, or name both places with --prefix and --cache"
    ):
        default_cache()
    done = machine.setup(TMPDIR="/nowhere")
    assert (
        done.returncode == 1
        and "TMPDIR=/nowhere is not a folder that you may write to" in done.stdout
    ), done.stdout
    assert not machine.prefix.exists()


def test_what_nobody_foresaw_ends_in_one_line_and_a_log(machine: Machine) -> None:
    module = machine.project / "scripts/lockedenv/cli/setup.py"
    module.write_text(module.read_text().replace("    refuse_other_machines()\n", "    1 / 0\n", 1))
    text = module.read_text()
    assert "1 / 0" in text
    done = machine.setup("--mirror", "http://u:p@ss@m.example", TMPDIR=str(machine.folder))
    found = re.fullmatch(
        r"setup_runpod_environment.sh: (\S+) has what happened \(ZeroDivisionError\): .*\n",
        done.stdout,
    )
    assert done.returncode == 1 and found, done.stdout
    log = Path(found[1]).read_text()
    assert "Traceback" in log and "Python 3" in log and "ss@" not in log


# Killed anywhere -------------------------------------------------------------------------------------------------


def contents(folder: Path) -> Dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def kill_and_recover(machine: Machine, kills: int) -> int:
    """Kills a run that replaces an old environment at random moments: install, verify, roll-back, removal.

    After each, the old one or the new one is there, whole, and nothing of the user's own folders beside it is gone.
    """
    foreign = machine.folder / "env.making"
    foreign.mkdir()
    (foreign / "results.csv").write_text("years of work")
    good, chance, killed = (machine.project / "conda-lock.yml").read_text(), random.Random(3), 0
    libraries = machine.project / "scripts/lockedenv/verify/checks/libraries.py"
    sound = libraries.read_text()
    started = time.monotonic()
    machine.assert_verified(machine.setup("--force"))
    whole = time.monotonic() - started
    while killed < kills:
        (machine.prefix / "mine.txt").write_text(str(killed))
        failing = (
            killed % 3 == 0
        )  # every third new one does not verify: the kill may meet the roll-back
        if failing:
            libraries.write_text(
                sound.replace("locked.get(name) != version", "locked.get(name) == version")
            )
        process = subprocess.Popen(
            machine.command("--force"),
            env=machine.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(chance.uniform(0.1, whole * 1.05))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        whole_ones = [
            p
            for p in (machine.prefix, machine.folder / "env.old")
            if (p / MARK).exists() and mark_state(p) == "installed"
        ]
        assert whole_ones, sorted(p.name for p in machine.folder.iterdir())
        libraries.write_text(sound)
        machine.assert_verified(machine.setup())
        mine = [machine.prefix / "mine.txt", *machine.folder.glob("env.kept-*/mine.txt")]
        assert str(killed - 1 if process.returncode == -9 else killed) in [
            p.read_text() for p in mine if p.exists()
        ], "a file of the user's"
        assert (machine.project / "conda-lock.yml").read_text() == good
        assert (foreign / "results.csv").read_text() == "years of work"
        for kept in machine.folder.glob("env.kept-*"):
            shutil.rmtree(kept)
    return killed


def mark_state(folder: Path) -> str:
    text = (folder / MARK).read_text()
    return str(json.loads(text)["state"]) if text else "making"


def test_killed_while_an_old_environment_is_replaced(machine: Machine, installed: None) -> None:
    assert kill_and_recover(machine, 3) == 3


@pytest.mark.long
def test_killed_at_forty_moments_while_an_old_environment_is_replaced(
    machine: Machine, installed: None
) -> None:
    print(f"\n{kill_and_recover(machine, 40)} kills, wrong outcomes: 0")


def test_the_verifier_run_by_another_python_says_which_one_it_is(
    conda_environment: CondaEnvironment,
) -> None:
    done = sh(
        "/usr/bin/python3", ROOT / "scripts/verify_environment.py", check=False, env=clean_environ()
    )
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 1
    assert (
        "this is /usr/bin/python3, where no lock was installed; run the environment's own"
        in done.stdout
    ), done.stdout


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_verifier_leaves_nothing_running(
    number: int, status: int, machine: Machine, installed: None
) -> None:
    """Ctrl-C took 30 s and ended in a traceback; SIGTERM orphaned the checks."""
    machine.slow_verify(True)
    program = [
        machine.prefix / "bin/python",
        machine.project / "scripts/verify_environment.py",
        "--level",
        "quick",
    ]
    process = subprocess.Popen(
        program, env=machine.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not sh("pgrep", "-f", f"{machine.folder}.*verify.child slow", check=False).stdout:
        assert process.poll() is None
    process.send_signal(number)
    said = process.communicate(timeout=20)[0]
    assert (
        process.returncode == status
        and said.count("interrupted; run it again to go on") == 1
        and "Traceback" not in said
    ), said
    assert not sh("pgrep", "-f", f"{machine.folder}.*verify.child slow", check=False).stdout


def test_a_reader_that_goes_away_is_no_traceback(conda_environment: CondaEnvironment) -> None:
    program = conda_environment.project / "scripts/verify_environment.py"
    script = f"{conda_environment.prefix}/bin/python {program} --level quick | head -n 1; echo ${{PIPESTATUS[0]}}"
    said = sh("bash", "-c", script, env=clean_environ()).stdout.splitlines()
    assert len(said) == 2 and said[1] in ("0", "141"), said
    assert not list((conda_environment.project / "scripts").rglob("__pycache__"))
