"""The conda backend, end to end, on the local channel: from its origin, a mirror, a folder, a proxy."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict

import pytest
from fixtures.channel import MICROMAMBA_PIN, LocalChannel
from fixtures.commands import ROOT, VERIFIED, apart, sh
from fixtures.conda_environment import CondaEnvironment
from fixtures.fault_server import FaultServer
from fixtures.machine import Machine


def test_one_command_ends_in_a_verified_conda_environment(
    conda_environment: CondaEnvironment,
) -> None:
    said = conda_environment.said
    assert "[2/6] Fetch the archives" in said
    assert "hashes right" in said
    assert VERIFIED in said
    assert VERIFIED in conda_environment.verify("--level", "quick").stdout
    home = conda_environment.cache / "mamba"
    assert home.is_dir(), "micromamba writes its notes under the cache, not under ~"


def test_again_from_the_cache_from_a_mirror_and_offline(
    machine: Machine, server: FaultServer, channel: LocalChannel, tmp_path: Path
) -> None:
    # From a mirror: the origin is gone.
    with FaultServer(channel.root) as mirror:
        lock = machine.project / "conda-lock.yml"
        lock.write_text(lock.read_text().replace(server.address, "http://127.0.0.1:9"))
        secret = mirror.address.replace("http://", "http://user:s3cr3t@")
        done = machine.setup("--mirror", f"{secret},{mirror.address}")
        machine.assert_verified(done)
        assert sum(mirror.requests.values()) >= len(channel.entries)
    # Finished: nothing to do, nothing asked of the network.
    done = machine.setup()
    assert "it is verified again" in done.stdout
    assert done.returncode == 0
    # Anew from the cache, with no network at all.
    offline = apart("--net")
    done = sh(*offline, *machine.command("--force"), check=False, env=machine.environ)
    machine.assert_verified(done)
    assert "0 B fetched now" in done.stdout


def test_download_only_then_offline_without_a_network(
    machine: Machine, micromamba: Path, tmp_path: Path
) -> None:
    del machine.environ["PATH"]
    machine.environ["PATH"] = os.environ[
        "PATH"
    ]  # no micromamba: the pinned one is collected and used
    collected = tmp_path / "collected"
    done = machine.setup("--download-only", collected, "--dry-run")
    assert done.returncode == 0, done.stdout
    assert re.search(
        r"\d+ files, about [\d.]+ [MG]B, and Python 3.11 would go to", done.stdout
    ), done.stdout
    assert not collected.exists()
    done = machine.setup("--download-only", collected)
    assert done.returncode == 0, done.stdout
    assert f"--offline {collected}" in done.stdout, done.stdout
    assert not machine.prefix.exists()
    assert "[3/3] Fetch Python 3.11, for machines without" in done.stdout
    assert (
        list((collected / "python-archives").glob("*3.11*"))
        or "left out: uv could not fetch it" in done.stdout
    ), done.stdout
    names = {p.name for p in (collected / "wheels").iterdir()}
    assert any(n.startswith("flash_attn-") for n in names)
    assert any(n.startswith("uv-") for n in names)
    assert (collected / "pkgs/micromamba-2.5.0-1.tar.bz2").exists()
    offline = apart("--net")
    done = sh(
        *offline,
        *machine.command("--offline", collected),
        check=False,
        env=machine.environ,
    )
    machine.assert_verified(done)
    idna = next((collected / "wheels").glob("idna-*"))
    idna.rename(tmp_path / idna.name)
    done = machine.setup("--offline", collected, "--force", "--dry-run")
    assert done.returncode == 1, done.stdout
    assert f"{collected} lacks 1 of the " in done.stdout, done.stdout
    assert (
        "files of the environment default, conda backend, such as idna; collect"
        in done.stdout
    )
    idna.write_bytes(b"not a wheel")
    sh("rm", "-rf", machine.cache / "uv")
    done = sh(
        *offline,
        *machine.command("--offline", collected, "--force"),
        check=False,
        env=machine.environ,
    )
    assert done.returncode == 1
    assert "installing pip.txt failed" in done.stdout
    assert f"the old environment is as it was at {machine.prefix}" in done.stdout
    machine.assert_verified(machine.setup())


def test_a_machine_with_neither_pip_nor_uv_needs_none_of_them(
    machine: Machine, empty_cache: None
) -> None:
    """The environment has a uv of its own by the time that one is needed."""
    machine.assert_verified(machine.setup(MAXIMALCAI_WITHOUT="pip,uv"))


def test_an_offline_folder_that_lacks_an_archive_is_named(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "collected/pkgs").mkdir(parents=True)
    done = machine.setup("--offline", tmp_path / "collected")
    assert done.returncode == 1, done.stdout
    assert re.search(
        r"collected lacks (\d+) of the \d+ files of the .* default, conda backend, such as certifi; collect",
        done.stdout,
    ), done.stdout
    assert "[2/6]" not in done.stdout
    assert not machine.prefix.exists()


def test_two_runs_for_one_prefix_and_two_prefixes_from_one_cache(
    machine: Machine,
) -> None:
    both = [
        subprocess.Popen(
            machine.command(),
            env=machine.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    other = machine.command()
    other[other.index(str(machine.prefix))] += "-other"
    both.append(
        subprocess.Popen(
            other,
            env=machine.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    said = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both] == [0, 0, 0], said
    assert any(
        re.search(r"env is held by process \d+ on \S+ since .*; waiting for it", text)
        for text in said[:2]
    ), said
    assert any("it is verified again" in text for text in said[:2])


def test_with_the_cache_on_another_disk_all_is_unpacked_beside_the_prefix(
    machine: Machine, tmp_path: Path
) -> None:
    """As on a pod: the cache on the volume, the environment on the container disk. A tmpfs stands in for the volume."""
    script = (
        f'mkdir -p {machine.cache} && mount -t tmpfs -o size=800m none {machine.cache} && "$@" && '
        f"ls -A {machine.cache} {machine.cache}/wheels {machine.folder} && rm -rf {machine.prefix} {machine.prefix}.d && "
        f'exec unshare --net "$@"'
    )
    command = [*apart("--mount"), "bash", "-c", script, "bash", *machine.command()]
    done = sh(*command, check=False, env=machine.environ)
    assert done.returncode == 0, done.stdout
    assert (
        done.stdout.count(VERIFIED) == 2
    ), "the second time without a network, from the volume alone"
    listed = done.stdout.split(VERIFIED)[1]
    assert "idna-" in listed, listed
    assert "env.maximalcai-pkgs" not in listed, listed
    assert "env.maximalcai-uv" not in listed, listed
    assert "\nuv\n" not in listed, listed
    files = [p for p in machine.prefix.rglob("*.py") if p.is_file()]
    assert {p.stat().st_nlink for p in files} == {
        1
    }, "what was unpacked beside it is gone"


@pytest.mark.long
def test_eight_set_ups_at_once_share_a_cache(
    machine: Machine, server: FaultServer, channel: LocalChannel
) -> None:
    """As eight nodes with one cache on a shared disk: each ends verified, and each archive is fetched once."""
    prefixes = [machine.folder / f"env{number}" for number in range(8)]
    runs = [
        subprocess.Popen(
            machine.command("--prefix", prefix),
            stdout=-1,
            stderr=-2,
            text=True,
            env=machine.environ,
        )
        for prefix in prefixes
    ]
    for run, prefix in zip(runs, prefixes):
        said = run.communicate()[0]
        assert run.returncode == 0, said
        assert VERIFIED in said, said
        assert (
            VERIFIED
            in sh(
                prefix / "bin/python",
                machine.project / "scripts/verify_environment.py",
                "--level",
                "quick",
            ).stdout
        )
    archives = {
        name: count
        for name, count in server.requests.items()
        if name.endswith((".conda", ".tar.bz2"))
    }
    assert len(archives) >= len(channel.entries), archives
    assert set(archives.values()) == {1}, archives


def test_through_a_proxy_with_a_password_on_a_pod_with_runpods_variables(
    machine: Machine, channel: LocalChannel, empty_cache: None
) -> None:
    """The channel is reached through the proxy alone; the password is in no output, no file, and no command line."""
    for path in (machine.project / "conda-lock.yml", machine.project / MICROMAMBA_PIN):
        path.write_text(
            path.read_text().replace(machine.address, "http://conda.example")
        )
    elsewhere = machine.folder / "workspace"
    runpod = {
        "PIP_CACHE_DIR": elsewhere,
        "UV_CACHE_DIR": elsewhere,
        "HF_HOME": elsewhere,
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "HF_HUB_ENABLE_HF_TRANSFER": "1",
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib:/usr/local/nvidia/lib64",
    }
    with FaultServer(channel.root) as proxy:
        given = proxy.address.replace("http://", "http://user:hunter2@")
        process = subprocess.Popen(
            machine.command(),
            stdout=-1,
            stderr=-2,
            text=True,
            env={
                **machine.environ,
                **{name: str(value) for name, value in runpod.items()},
                "http_proxy": given,
            },
        )
        seen = ""
        while process.poll() is None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen += (
                        path.read_text()
                        if str(machine.folder) in path.read_text()
                        else ""
                    )
            time.sleep(0.05)
        said = process.communicate()[0]
        assert process.returncode == 0, said
        assert VERIFIED in said, said
        assert sum(
            path.startswith("http://conda.example/") for path in proxy.seen
        ) >= len(channel.entries)
    files = [
        p
        for folder in (machine.prefix, machine.cache)
        for p in folder.rglob("*")
        if p.suffix in (".json", ".log", ".txt")
    ]
    assert files
    assert seen
    assert "hunter2" not in said + seen + "".join(
        p.read_text(errors="replace") for p in files
    )


def test_no_secret_is_printed_or_kept(
    machine: Machine, server: FaultServer, empty_cache: None
) -> None:
    mirror = server.address.replace("http://", "http://user:hunter2@") + "/t/t0k3n"
    server.fault = lambda handler, content, start: (
        handler.answer(404, b"") or True if "t0k3n" in handler.path else False
    )
    done = machine.setup("--mirror", mirror + "?key=k3y", HF_TOKEN="hf_s3cr3t")
    machine.assert_verified(done)
    kept = [
        p
        for folder in (machine.prefix, machine.cache)
        for p in folder.rglob("*")
        if p.suffix in (".json", ".log", ".lock", ".txt")
    ]
    everything = done.stdout + "".join(p.read_text(errors="replace") for p in kept)
    assert not re.search("hunter2|t0k3n|k3y|hf_s3cr3t", everything)


@pytest.fixture
def by_hand(machine: Machine, micromamba: Path, installed: None) -> Dict[str, str]:
    """The variables of an active environment that was made as the README has it: micromamba create."""
    environ: Dict[str, str] = {
        **machine.environ,
        "CONDA_PKGS_DIRS": str(machine.cache / "pkgs"),
    }
    prefix = machine.folder / "by-hand"
    run_micromamba(machine, micromamba, "create", environ)
    path = f"{prefix}/bin:{environ['PATH']}"
    return {**environ, "CONDA_PREFIX": str(prefix), "PATH": path}


def run_micromamba(
    machine: Machine, micromamba: Path, action: str, environ: Dict[str, str]
) -> None:
    lock = machine.project / "conda-lock.yml"
    command = [
        micromamba / "micromamba",
        action,
        "--yes",
        "--no-rc",
        "-p",
        machine.folder / "by-hand",
    ]
    sh(*command, "-f", lock, env=environ)


def post_create(
    machine: Machine, environ: Dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    program = machine.project / "scripts/post_create.sh"
    options = ["--level", "quick", "--cache", machine.cache]
    return sh(program, *options, check=False, env=environ)


def test_post_create_works_on_its_own(
    machine: Machine, by_hand: Dict[str, str]
) -> None:
    """As the README has it: micromamba create, then post_create.sh in the active environment."""
    done = post_create(machine, by_hand)
    assert done.returncode == 0
    assert VERIFIED in done.stdout
    assert re.search(
        r"\[1/3\] Install the wheels +\d+ wheels of locks/pip.txt", done.stdout
    )
    stamp = json.loads((machine.folder / "by-hand/maximalcai.json").read_text())
    assert stamp["backend"] == "conda"
    assert len(stamp["locks"]) == 64


def test_an_environment_made_by_hand_can_be_installed_again(
    machine: Machine, micromamba: Path, by_hand: Dict[str, str]
) -> None:
    """micromamba writes new records, which were other ones than those noted for good."""
    assert post_create(machine, by_hand).returncode == 0
    run_micromamba(machine, micromamba, "install", by_hand)
    for record in (machine.folder / "by-hand/conda-meta").glob("*.json"):
        document = json.loads(record.read_text())
        record.unlink()
        record.write_text(json.dumps({**document, "installed_again": True}, indent=1))
    done = post_create(machine, by_hand)
    assert done.returncode == 0, done.stdout
    assert VERIFIED in done.stdout, done.stdout


def test_the_pinned_micromamba_is_the_one_that_conda_forge_has() -> None:
    """Its hash is recorded in the module; a wrong archive is refused by the fetcher, as any other file is."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from lockedenv.spec.programs import MICROMAMBA

    assert MICROMAMBA.filename == "micromamba-2.5.0-1.tar.bz2"
    assert len(MICROMAMBA.sha256) == 64
