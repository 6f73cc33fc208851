"""What people have added to an environment: packages come back, files are kept, edits too."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from fixtures.commands import clean_environ, sh
from fixtures.machine import Machine
from lockedenv.prefix.inventory import INVENTORY
from lockedenv.spec.environment import MARK
from one_command import SITE, add_package, edit


def test_what_the_user_added_is_listed_kept_and_brought_back(
    machine: Machine, installed: None
) -> None:
    add_package(machine, "six==1.16.0")
    (machine.prefix / "results").mkdir()
    (machine.prefix / "results/loss.csv").write_text("years of work")
    done = machine.setup("--force", "--dry-run")
    assert "comes back   six==1.16.0" in done.stdout, "the default of a rebuild"
    done = machine.setup("--force", "--drop-extras", "--dry-run")
    assert "removed      six==1.16.0 (listed in" in done.stdout, done.stdout
    assert "nothing was changed" in done.stdout, done.stdout
    assert "moved        results, your own, to" in done.stdout
    done = machine.setup("--force", "--drop-extras")
    machine.assert_verified(done)
    command = done.stdout.split("installs them again:\n")[1].splitlines()[0]
    kept = re.search(
        r"1 file or folder of yours is now in (\S+):\n  results", done.stdout
    )
    assert kept
    assert Path(kept[1], "results/loss.csv").read_text() == "years of work"
    assert not list(machine.prefix.glob(f"{SITE}/six*"))
    sh(*command.split(), env=clean_environ())
    assert (machine.prefix / SITE / "six.py").exists()
    for options in (["--force"], ["--force", "--keep-extras"]):
        done = machine.setup(*options)
        machine.assert_verified(done)
        assert (machine.prefix / SITE / "six.py").exists()
        assert "again:\n" not in done.stdout


def test_packages_that_could_not_be_brought_back_are_tried_again(
    machine: Machine, installed: None
) -> None:
    """The next run said verified, and removed the old environment, which had them."""
    add_package(machine, "six==1.16.0")
    old = machine.prefix.resolve()
    for options in (["--force"], [], ["--force", "--keep-extras"]):
        done = machine.setup(
            *options, HTTPS_PROXY="http://127.0.0.1:9", UV_HTTP_RETRIES="0"
        )
        assert done.returncode == 1, done.stdout
        assert (
            "your own packages are missing; their list is" in done.stdout
        ), done.stdout
        assert (old / SITE / "six.py").exists()
    machine.assert_verified(machine.setup())
    assert (machine.prefix / SITE / "six.py").exists()
    assert not old.exists()


def test_the_first_remedy_repairs_and_keeps_what_was_added(
    machine: Machine, installed: None
) -> None:
    """The verifier said --force, which removed it; TROUBLESHOOTING said post_create.sh."""
    add_package(machine, "six==1.16.0")
    edit(machine.prefix / SITE / "idna/core.py")
    said = machine.verify("--only", "files")
    assert "idna/core.py: changed" in said, said
    assert "scripts/post_create.sh --prefix" in said, said
    options = ["--prefix", machine.prefix, "--cache", machine.cache, "--level", "quick"]
    done = sh(
        machine.project / "scripts/post_create.sh",
        *options,
        check=False,
        env=machine.environ,
    )
    assert done.returncode == 0, done.stdout
    assert "PASS  files" in machine.verify("--only", "files"), done.stdout
    assert (machine.prefix / SITE / "six.py").exists()


def test_what_people_write_into_our_own_files_is_not_lost(
    machine: Machine, installed: None
) -> None:
    """pip.conf was written over by post_create.sh, and went with a rebuild."""
    conf = machine.prefix / "pip.conf"
    activate = machine.prefix / "activate"
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
    assert "mine.example" in conf.read_text()
    assert "MINE" in activate.read_text()
    conf.write_text("[global]\nindex-url = https://other.example/simple\n")
    sh(*post_create, "--level", "quick", env=machine.environ)
    assert "constraint" in conf.read_text()
    assert "other.example" in conf.with_name("pip.conf.old").read_text()
    done = machine.setup("--force")
    machine.assert_verified(done)
    kept = next(machine.folder.glob("env.kept-*"))
    assert f"moved        activate, your own, to {machine.prefix}.kept-" in done.stdout
    assert "MINE" in (kept / "activate").read_text()
    assert "other.example" in (kept / "pip.conf.old").read_text()
    for path in (activate, machine.prefix / "maximalcai-constraints.txt"):
        path.unlink()
    machine.assert_verified(machine.setup())
    assert "MINE" not in activate.read_text()
    assert "idna==" in (machine.prefix / "maximalcai-constraints.txt").read_text()


def test_a_token_in_the_address_of_an_added_package_is_not_shown(
    machine: Machine, installed: None
) -> None:
    info = machine.prefix / SITE / "yyy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: yyy\nVersion: 1.0\n")
    (info / "direct_url.json").write_text(
        json.dumps(
            {"url": "https://me:pw@host/yyy.whl?token=SECRET", "archive_info": {}}
        )
    )
    said = [
        machine.setup(*options).stdout
        for options in (
            ["--dry-run", "--force"],
            ["--dry-run", "--force", "--json"],
            [],
        )
    ]
    assert "yyy @ https://***@host/yyy.whl" in said[0]
    assert "SECRET" not in "".join([*said, (machine.prefix / MARK).read_text()])


def test_folders_links_and_condas_pins_are_kept_whole(
    machine: Machine, installed: None
) -> None:
    sh("git", "init", "-q", machine.prefix / "src/mine")
    (machine.prefix / "conda-meta/pinned").write_text("numpy <3")
    (machine.prefix / "data").symlink_to("/nowhere")
    done = machine.setup("--force")
    machine.assert_verified(done)
    kept = re.search(r"3 files or folders of yours are now in (\S+):\n", done.stdout)
    assert kept, done.stdout
    sh("git", "-C", Path(kept[1], "src/mine"), "status")
    assert Path(kept[1], "conda-meta/pinned").read_text() == "numpy <3"
    assert os.readlink(Path(kept[1], "data")) == "/nowhere"


def test_each_list_of_what_was_added_stays(machine: Machine, installed: None) -> None:
    for name in ("six==1.16.0", "toml==0.10.2"):
        add_package(machine, name)
        (machine.prefix / INVENTORY).unlink()  # lost: the lock's names do
        machine.assert_verified(machine.setup("--force", "--drop-extras"))
        time.sleep(1)
    lists = sorted(
        path.read_text() for path in machine.folder.glob("env.maximalcai-extras-*.txt")
    )
    assert len(lists) == 2
    assert "six==1.16.0" in lists[0]
    assert "toml==0.10.2" in lists[1]
