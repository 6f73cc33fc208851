"""The Dockerfile, really built on a Debian made by debootstrap, and what the image says of itself where it can write nothing.

buildah keeps what it has in one folder, and each command has mounts of its own: that folder is all that is to be removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List
from urllib.parse import urlsplit

import pytest
from conftest import ROOT, VERIFIED, sh
from lockedenv.backends import index as package_index
from lockedenv.spec.environment import Environment

pytestmark = pytest.mark.long
PREFIX, LOCK = "/opt/environment/maximalcai", Environment(ROOT).digest("pip")
# Debian 12 has the locked Python. The machine's certificates are in it, as a company's are in its base.
MAKE_BASE = """
container=$(buildah from scratch) && root=$(buildah mount "$container")
debootstrap --variant=minbase bookworm "$root"
install -D --mode=644 "$1" "$root/usr/local/share/ca-certificates/machine.crt"
buildah commit --quiet --rm "$container" base
"""
# docker run --read-only --network none --tmpfs /tmp:exec
RUN_READ_ONLY = """
mount --options bind,ro "$root" "$2" && mount --types sysfs --options ro sysfs "$2/sys" && mount --rbind /dev "$2/dev"
mount --types tmpfs tmpfs "$2/dev/shm" && mount --types tmpfs tmpfs "$2/tmp"
exec unshare --net --pid --fork --root="$2" --wd="$3" --mount-proc --setgid="$4" --setuid="$4" env -i HOME=/tmp "${@:5}"
"""


class Engine:
    """buildah, the project's files that an image is made of, and the machine's package index for the build."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder, folder / "project"
        places = f'graphroot = "{folder}/storage"\nrunroot = "{folder}/run"'
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\n{places}\n'
        )  # vfs copies 6 GB for each layer
        ours = {
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": f"{folder}/tmp",
        }
        self.environ = {**os.environ, **ours}
        for name in ("tmp", "root"):
            (folder / name).mkdir()
        shutil.copytree(
            ROOT, self.project, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        )
        settings = package_index.index_settings(dict(os.environ))
        self.certificates = settings.get("SSL_CERT_FILE", os.devnull)
        index = {
            name: settings[uv] for name, uv in package_index.UV_NAMES.items() if uv in settings
        }
        (folder / "pip.conf").write_text(
            "[global]\n" + "".join(f"{name} = {value}\n" for name, value in index.items())
        )
        local = [
            Path(urlsplit(word).path)
            for word in " ".join(index.values()).split()
            if word.startswith(("file:", "/"))
        ]
        shown = {
            path.parent if path.name == "simple" else path for path in local if path.exists()
        }  # its files lie beside it
        self.index = [
            f"--volume={folder}/pip.conf:/etc/pip.conf:ro",
            *(f"--volume={path}:{path}:ro" for path in shown),
        ]

    def sh(
        self, script: str, *arguments: Any, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        command = ["unshare", "--mount", "bash", "-euc", script, "bash", *arguments]
        return sh(*command, check=check, env=self.environ)

    def build(self, target: str) -> Dict[str, Any]:
        """The image of a target: its configuration as Docker has it, and its layers' sizes, the lowest first."""
        given = {
            "BASE": "localhost/base",
            "BACKEND": "pip",
            "FLASH_ATTN": "none",
            "ENVIRONMENT": "default",
            "LOCK_DIGEST": LOCK,
        }
        words = [f"--build-arg={name}={value}" for name, value in given.items()]
        options = [
            "--format=docker",
            "--layers",
            "--network=host",
            "--disable-compression=false",
        ]  # each layer lies there 4 times
        self.sh(
            'buildah build "$@"',
            *options,
            f"--target={target}",
            f"--tag={target}",
            *words,
            *self.index,
            self.project,
        )
        found: Dict[str, Any] = json.loads(
            self.sh('buildah inspect --type image "$1"', target).stdout
        )["Docker"]
        known = json.loads((self.folder / "storage/overlay-layers/layers.json").read_text())
        sizes = {
            layer["diff-digest"]: layer["diff-size"] for layer in known if "diff-digest" in layer
        }
        return {
            **found["config"],
            "name": target,
            "layers": {digest: sizes[digest] for digest in found["rootfs"]["diff_ids"]},
        }

    def run(
        self, image: Dict[str, Any], command: List[str], before: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command as the image's user in its folder with its variables; `before` may change its files."""
        script = f'root=$(buildah mount "$(buildah from "$1")")\n{before}\n{RUN_READ_ONLY}'
        place = [image["name"], self.folder / "root", image["WorkingDir"], image["User"]]
        return self.sh(script, *place, *image["Env"], *command, check=False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if os.getuid():
        pytest.skip("an image is built and mounted here by root alone: run the tests as root")
    if lacking := [name for name in ("buildah", "debootstrap") if not shutil.which(name)]:
        pytest.skip(
            f"no {' and no '.join(lacking)} here to build an image with: apt-get install {' '.join(lacking)}"
        )
    folder = tmp_path_factory.mktemp("image")
    if (free := shutil.disk_usage(folder).free) < 25e9:
        pytest.skip(
            f"building an image takes 25 GB of disk at {folder}, {free / 1e9:.0f} GB are free: free some"
        )
    try:
        made = Engine(folder)
        if (done := made.sh("buildah info", check=False)).returncode:
            pytest.skip(f"buildah cannot mount layers here: {done.stdout.splitlines()[-1]}")
        made.sh(MAKE_BASE, made.certificates)
        yield made
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(engine: Engine) -> Dict[str, Any]:
    return engine.build("image")


def gigabytes(image: Dict[str, Any]) -> List[str]:
    return [digest for digest, size in image["layers"].items() if size > 1e9]


def test_the_image_verifies_itself_as_its_user_where_nothing_can_be_written(
    engine: Engine, image: Dict[str, Any]
) -> None:
    assert image["User"] == "1000"
    assert (
        "Read-only file system" in engine.run(image, ["touch", PREFIX]).stdout
    ), "its user owns the folder"
    done = engine.run(image, image["Cmd"])
    print(done.stdout)
    assert done.returncode == 0 and VERIFIED in done.stdout, done.stdout
    assert re.findall(r"^(?:FAIL|WARN) +(\S+)", done.stdout, re.M) == [
        "vulnerabilities",
        "trainer-resume",
    ], done.stdout
    reasons = re.findall(r"^SKIP +\S+ +(.+)", done.stdout, re.M)
    assert [
        why
        for why in reasons
        if not why.startswith(("no NVIDIA GPU", "not a conda prefix", "wheels"))
    ] == [], done.stdout
    module = f"{PREFIX}/lib/python{Environment(ROOT).python}/site-packages/idna/core.py"
    done = engine.run(image, [*image["Cmd"], "--only", "files"], f'echo >>"$root{module}"')
    assert done.returncode == 1 and "idna/core.py" in done.stdout, done.stdout


def test_the_image_says_what_it_is_and_how_it_is_asked_for_its_health(
    engine: Engine, image: Dict[str, Any]
) -> None:
    labels = {
        name: value for name, value in image["Labels"].items() if name.startswith("maximalcai.")
    }
    assert labels == {"maximalcai.environment": "default", "maximalcai.lock-digest": LOCK}
    kind, *command = image["Healthcheck"]["Test"]
    assert kind == "CMD" and command[-2:] == ["--level", "quick"]
    done = engine.run(image, command)
    assert done.returncode == 0 and VERIFIED in done.stdout, done.stdout
    done = engine.run(image, command, f'rm "$root{PREFIX}"/lib/python*/site-packages/idna/core.py')
    assert done.returncode == 1 and "idna/core.py" in done.stdout, done.stdout


def test_the_gigabytes_are_one_layer_which_other_files_do_not_change(
    engine: Engine, image: Dict[str, Any]
) -> None:
    print(*image["layers"].items(), sep="\n")
    before = list(image["layers"])
    [big] = gigabytes(image)
    above = before[before.index(big) + 1 :]
    assert above and sum(image["layers"][digest] for digest in above) < 5e6
    for name in (
        "README.md",
        "scripts/lock.sh",
        "scripts/lockedenv/lock/locking.py",
        "environments/current/requirements.txt",
    ):
        with (engine.project / name).open("a") as file:
            file.write("# changed\n")
    after = list(engine.build("image")["layers"])
    assert after != before and after[: before.index(big) + 1] == before[: before.index(big) + 1]


def test_a_pod_is_the_same_layer_of_gigabytes_and_a_shell_in_the_environment(
    engine: Engine, image: Dict[str, Any]
) -> None:
    pod = engine.build("pod")
    assert gigabytes(pod) == gigabytes(image) and pod["User"] == "0" and pod["Cmd"] != image["Cmd"]
    assert not any(PREFIX in value for value in pod["Env"]), "the base's python starts its Jupyter"
    done = engine.run(pod, ["env", "HOME=/root", "bash", "-ic", "command -v python"])
    assert done.stdout.splitlines()[-1] == f"{PREFIX}/bin/python", done.stdout
