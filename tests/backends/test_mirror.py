"""A folder of --download-only is a mirror at any address: complete, by hash, with the origin behind it or with none."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from fixtures.channel import MICROMAMBA_PIN, LocalChannel
from fixtures.commands import ROOT, sh
from fixtures.fault_server import FaultServer
from fixtures.machine import Machine
from lockedenv.backends import mirror, pip, uv_program
from lockedenv.backends.base import Job, Sources
from lockedenv.backends.cache import CacheFolder
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop
from lockedenv.host.places import default_cache
from lockedenv.prefix.place import Prefix
from lockedenv.prefix.records import file_sha256
from lockedenv.spec.environment import Environment

NOWHERE = "http://127.0.0.1:9"  # nobody listens there
CUT_OFF = {name: NOWHERE for name in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL")}


@pytest.fixture(scope="module")
def collected(
    channel: LocalChannel,
    micromamba: Path,
    wheel_files: Dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What the small project needs, as --download-only collects it. Not to be changed."""
    folder = tmp_path_factory.mktemp("collected")
    with FaultServer(channel.root) as origin:
        machine = Machine(
            channel, folder, origin.address, micromamba, wheel_files["uv"]
        )
        done = machine.setup("--download-only", folder / "all")
    assert done.returncode == 0, done.stdout
    assert (folder / "all" / mirror.INDEX).exists(), done.stdout
    return folder / "all"


@pytest.fixture
def machine(machine: Machine) -> Machine:
    """With nothing in its cache."""
    shutil.rmtree(machine.cache)
    return machine


@pytest.fixture
def served(collected: Path, machine: Machine, tmp_path: Path) -> Iterator[FaultServer]:
    """A copy of it, served; the channel that the machine's lock names answers no more."""
    sh("cp", "-a", collected, tmp_path / "served")
    for path in (machine.project / "conda-lock.yml", machine.project / MICROMAMBA_PIN):
        path.write_text(path.read_text().replace(machine.address, NOWHERE))
    with FaultServer(tmp_path / "served") as running:
        yield running


def assert_installed(machine: Machine, done: Any, backend: str) -> None:
    """The small project has no torch, which its pip backend fails for, and for that alone."""
    if backend == "conda":
        return machine.assert_verified(done)
    assert "10 wheels as locked" in done.stdout, done.stdout
    assert re.findall("^ +FAIL  ([a-z-]+): ", done.stdout, re.MULTILINE) == [
        "torch-origin"
    ]
    assert re.search(
        r", 1 failed, .*\n(.*\n)*FAILED: torch-origin \(torch ", done.stdout
    )


@pytest.mark.parametrize(
    "option, backend",
    [("--offline", "conda"), ("--offline", "pip"), ("--mirror", "conda")],
)
def test_everything_from_a_served_folder_with_every_origin_gone(
    machine: Machine, served: FaultServer, option: str, backend: str
) -> None:
    done = machine.setup(option, served.address, "--backend", backend, **CUT_OFF)
    assert_installed(machine, done, backend)
    assert "files of wheels from the mirror, hashes right" in done.stdout
    assert max(served.requests.values()) == 1, served.requests
    done = machine.setup(
        option, served.address, "--backend", backend, "--force", **CUT_OFF
    )
    assert_installed(machine, done, backend)
    assert served.requests.pop("files.json") == 2, "the list alone is asked for again"
    assert max(served.requests.values()) == 1, "the list alone is asked for again"


def test_the_backend_follows_from_what_a_served_folder_has(
    machine: Machine, served: FaultServer
) -> None:
    plan = machine.setup(
        "--dry-run",
        "--json",
        "--offline",
        served.address,
        "--backend",
        "auto",
        **CUT_OFF,
    ).stdout
    assert json.loads(plan)["backend"] == "conda"
    assert json.loads(plan)["backend_reason"].endswith("has its archives")
    index = served.root / mirror.INDEX
    index.write_text(
        json.dumps(
            {
                k: v
                for k, v in json.loads(index.read_text()).items()
                if not v.startswith("pkgs")
            }
        )
    )
    done = machine.setup("--offline", served.address, "--backend", "auto", **CUT_OFF)
    assert_installed(machine, done, "pip")
    assert "default, pip backend: " in done.stdout


def test_what_a_mirror_lacks_or_has_wrong_comes_from_the_origin(
    machine: Machine, collected: Path, tmp_path: Path
) -> None:
    sh("cp", "-a", collected, tmp_path / "collected")
    next((tmp_path / "collected/pkgs").glob("tqdm-*")).unlink()
    wheel = next((tmp_path / "collected/wheels").glob("idna-*"))
    wheel.write_bytes(b"x" * wheel.stat().st_size)
    with FaultServer(tmp_path / "collected") as running:
        done = machine.setup(
            "--mirror", running.address.replace("http://", "http://user:s3cr3t@")
        )
        machine.assert_verified(done)
        assert done.stdout.count("not all is on the mirror: ") == 2, done.stdout
        assert "s3cr3t" not in done.stdout, done.stdout
        sh("rm", "-rf", machine.prefix, f"{machine.prefix}.d", machine.cache)
        done = machine.setup("--offline", running.address)
    assert done.returncode == 1, done.stdout
    assert "tqdm" in done.stdout, done.stdout
    assert "files could not be fetched" in done.stdout, done.stdout
    assert not machine.prefix.exists()


def test_a_right_hash_under_a_wrong_name_is_left_to_the_origin(
    machine: Machine, collected: Path, tmp_path: Path
) -> None:
    """It would lie in the cache for good, and what looks for it by its name would not see it."""
    sh("cp", "-a", collected, tmp_path / "collected")
    index = tmp_path / "collected" / mirror.INDEX
    found = json.loads(index.read_text())
    for old, new in (
        ("wheels/idna-", "wheels/zzz-9.9-py3-none-any.whl"),
        ("wheels/certifi-", "wheels/certifi-1-py2-none-any.whl"),
    ):
        sha, path = next(
            (sha, path) for sha, path in found.items() if path.startswith(old)
        )
        (tmp_path / "collected" / path).rename(tmp_path / "collected" / new)
        found[sha] = new
    index.write_text(json.dumps(found))
    with FaultServer(tmp_path / "collected") as running:
        machine.assert_verified(machine.setup("--mirror", running.address))
        assert not running.requests["zzz-9.9-py3-none-any.whl"]
        assert not running.requests["certifi-1-py2-none-any.whl"]
    machine.assert_verified(machine.setup("--force"))


def test_the_mirror_of_the_environment_variable_is_asked(
    machine: Machine, served: FaultServer
) -> None:
    machine.assert_verified(
        machine.setup(MAXIMALCAI_MIRROR=f"{NOWHERE},{served.address}", **CUT_OFF)
    )
    assert served.requests["files.json"] == 1


def test_a_finished_environment_takes_uv_from_a_served_folder(
    machine: Machine, collected: Path, served: FaultServer
) -> None:
    """It ended in a KeyError where the cache was gone, because no backend is asked then."""
    machine.assert_verified(machine.setup("--offline", collected, **CUT_OFF))
    shutil.rmtree(machine.cache)
    done = machine.setup("--offline", served.address, **CUT_OFF)
    machine.assert_verified(done)
    assert list(machine.cache.glob("wheels/uv-*.whl")), done.stdout


def test_post_create_takes_the_wheels_from_a_served_folder(
    machine: Machine, collected: Path, served: FaultServer
) -> None:
    machine.assert_verified(machine.setup("--offline", collected, **CUT_OFF))
    sh(
        "rm",
        "-rf",
        machine.cache,
        *machine.prefix.glob("lib/python3.11/site-packages/idna*"),
    )
    command = [
        machine.project / "scripts/post_create.sh",
        "--prefix",
        machine.prefix,
        "--cache",
        machine.cache,
    ]
    done = sh(
        *command,
        "--level",
        "quick",
        "--offline",
        served.address,
        check=False,
        env={**machine.environ, **CUT_OFF},
    )
    machine.assert_verified(done)


@pytest.mark.parametrize(
    "content, said",
    [
        (
            None,
            "has no files.json: it is no folder made by --download-only; check the address",
        ),
        (
            "{",
            "files.json is not the list of a folder made by --download-only; make it anew",
        ),
        ('["x"]', "is not the list of a folder"),
        (json.dumps({"0" * 64: "../../.bashrc"}), "is not the list of a folder"),
        (json.dumps({"0" * 64: "wheels/../../x"}), "is not the list of a folder"),
        (json.dumps({"0" * 64: "/etc/passwd"}), "is not the list of a folder"),
        (
            json.dumps({"0" * 64: "models/weights.safetensors"}),
            "is not the list of a folder",
        ),
        (json.dumps({"0" * 64: "pkgs/.."}), "is not the list of a folder"),
        (json.dumps({"0" * 64: "pkgs/\ud800"}), "is not the list of a folder"),
        (json.dumps({"0" * 64: "pkgs/" + "x" * 300}), "is not the list of a folder"),
        (
            json.dumps({"0" * 64: "pkgs/x", "1" * 64: "pkgs/x"}),
            "is not the list of a folder",
        ),
        ("[" * 200000, "is not the list of a folder"),
    ],
)
def test_an_address_that_is_no_such_folder_is_refused(
    content: Any, said: str, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    if content:
        (tmp_path / "site" / mirror.INDEX).write_text(content)
    with FaultServer(tmp_path / "site") as running:
        done = machine.setup("--offline", running.address)
    assert done.returncode == 1, done.stdout
    assert said in done.stdout, done.stdout
    assert not machine.prefix.exists(), done.stdout
    done = machine.setup("--offline", NOWHERE)
    assert done.returncode == 1
    assert f"{NOWHERE} does not answer" in done.stdout


def test_python_comes_from_the_archive_that_was_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv's own archive of Python, as it is kept by --download-only, makes the environment with no network; another is refused."""
    base = Path(
        os.path.realpath(
            Path(
                sh(
                    "python3.11", "-c", "import sys; print(sys.base_prefix)"
                ).stdout.strip()
            )
        )
    )
    archive = tmp_path / "python.tar.gz"
    target = Prefix(tmp_path / "env")
    leave_out = "site-packages test __pycache__ lib-dynload config-3.11-x86_64-linux-gnu sitecustomize.py".split()  # Debian's is a link

    def slim(info: tarfile.TarInfo) -> Any:
        return None if Path(info.name).name in leave_out else info

    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name in (
            "bin/python3.11",
            "lib/python3.11",
            *(f"lib/{path.name}" for path in base.glob("lib/libpython3.11.so.1.0")),
        ):
            tar.add(base / name, f"python/{name}", filter=slim)
    version = dict(
        name="cpython",
        arch={"family": "x86_64", "variant": None},
        os="linux",
        libc="gnu",
        major=3,
        minor=11,
        patch=99,
    )
    version.update(
        prerelease="",
        variant=None,
        build="1",
        sha256=file_sha256(archive),
        url=f"{NOWHERE}/1/cpython-3.11.99.tar.gz",
    )
    known = tmp_path / "known.json"
    known.write_text(json.dumps({"cpython-3.11.99-linux-x86_64-gnu": version}))
    ours = {
        "UV_PYTHON_DOWNLOADS_JSON_URL": str(known),
        "UV_PYTHON_PREFERENCE": "only-managed",
    }
    monkeypatch.setattr(uv_program, "ALWAYS", {**uv_program.ALWAYS, **ours})
    offline = tmp_path / "offline"
    (offline / CacheFolder.PYTHON.value).mkdir(parents=True)
    monkeypatch.setattr(pip, "find_python", lambda *a, **k: None)
    job = Job(Environment(ROOT), target, tmp_path / "cache", Sources(offline=offline))
    uv = uv_program.bring_uv(default_cache(), Steps(1, True))
    with pytest.raises(
        Stop,
        match="no Python 3.11 here, and .*offline has none: .*put any python3.11 on PATH",
    ):
        pip.create_venv(job, uv, Steps(1, True))
    kept = (
        offline
        / CacheFolder.PYTHON.value
        / f"{file_sha256(archive)[:9]}-cpython-3.11.99.tar.gz"
    )
    archive.rename(kept)
    pip.create_venv(job, uv, Steps(1, True))
    assert str(job.cache / "python") in os.path.realpath(
        target.path / "bin/python"
    ), "not in the folder, which may go"
    sh("rm", "-rf", job.cache, target.path)
    kept.write_bytes(kept.read_bytes() + b"x")
    with pytest.raises(Stop, match="Hash mismatch"):
        pip.create_venv(job, uv, Steps(1, True))
