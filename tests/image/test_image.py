"""--long: the Dockerfile, really built on a Debian made by debootstrap, and what the image says of itself."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from engine import Engine, Image
from fixtures.commands import ROOT, VERIFIED
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName

pytestmark = pytest.mark.long
PREFIX = "/opt/environment/maximalcai"
LOCK = Environment(ROOT).digest(BackendName.PIP)
NEEDED = 25e9  # bytes of disk
# Reasons for which a check may be skipped on a machine without a GPU.
USUAL = ("no NVIDIA GPU", "not a conda prefix", "wheels")
# What may change without a new layer of gigabytes.
OTHER_FILES = (
    "README.md",
    "scripts/lock.sh",
    "scripts/lockedenv/lock/locking.py",
    "environments/current/requirements.txt",
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if os.getuid():
        pytest.skip(
            "an image is built and mounted here by root alone: run the tests as root"
        )
    missing = [name for name in ("buildah", "debootstrap") if not shutil.which(name)]
    if missing:
        install = f"apt-get install {' '.join(missing)}"
        pytest.skip(
            f"no {' and no '.join(missing)} here to build an image with: {install}"
        )
    folder = tmp_path_factory.mktemp("image")
    free = shutil.disk_usage(folder).free
    if free < NEEDED:
        pytest.skip(
            f"building an image takes 25 GB at {folder}, {free / 1e9:.0f} GB are free"
        )
    try:
        made = Engine(folder)
        info = made.sh("buildah info", check=False)
        if info.returncode:
            pytest.skip(
                f"buildah cannot mount layers here: {info.stdout.splitlines()[-1]}"
            )
        made.make_base()
        yield made
    finally:
        shutil.rmtree(folder)


def build(engine: Engine, target: str) -> Image:
    return engine.build(target, ENVIRONMENT="default", LOCK_DIGEST=LOCK)


@pytest.fixture(scope="module")
def image(engine: Engine) -> Image:
    return build(engine, "image")


def test_the_image_verifies_itself_as_its_user_where_nothing_can_be_written(
    engine: Engine, image: Image
) -> None:
    assert image.config["User"] == "1000"
    touched = engine.run(image, ["touch", f"{PREFIX}/file"])
    assert "Read-only file system" in touched.stdout, "its user owns the folder"
    command = image.config["Cmd"]
    done = engine.run(image, command)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert VERIFIED in done.stdout, done.stdout
    odd = re.findall(r"^(?:FAIL|WARN) +(\S+)", done.stdout, re.M)
    assert odd == ["vulnerabilities", "trainer-resume"], done.stdout
    reasons = re.findall(r"^SKIP +\S+ +(.+)", done.stdout, re.M)
    assert [
        reason for reason in reasons if not reason.startswith(USUAL)
    ] == [], done.stdout
    module = f"{PREFIX}/lib/python{Environment(ROOT).python}/site-packages/idna/core.py"
    damage = f'echo >>"$root{module}"'
    done = engine.run(image, [*command, "--only", "files"], damage)
    assert done.returncode == 1, done.stdout
    assert "idna/core.py" in done.stdout, done.stdout


def test_the_prefix_is_a_link_that_holds_wherever_the_image_is_mounted(
    engine: Engine, image: Image
) -> None:
    done = engine.run(image, ["readlink", PREFIX])
    assert re.fullmatch(r"maximalcai\.d/\S+\n", done.stdout), done.stdout


def test_the_image_says_what_it_is_and_how_it_is_asked_for_its_health(
    engine: Engine, image: Image
) -> None:
    labels = {}
    for name, value in image.config["Labels"].items():
        if name.startswith("maximalcai."):
            labels[name] = value
    assert labels == {
        "maximalcai.environment": "default",
        "maximalcai.lock-digest": LOCK,
    }
    kind, *command = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert command[-2:] == ["--level", "quick"]
    done = engine.run(image, command)
    assert done.returncode == 0, done.stdout
    assert VERIFIED in done.stdout, done.stdout
    damage = f'rm "$root{PREFIX}"/lib/python*/site-packages/idna/core.py'
    done = engine.run(image, command, damage)
    assert done.returncode == 1, done.stdout
    assert "idna/core.py" in done.stdout, done.stdout


def test_the_gigabytes_are_one_layer_which_other_files_do_not_change(
    engine: Engine, image: Image
) -> None:
    print(*image.layers.items(), sep="\n")
    before = list(image.layers)
    [big] = image.gigabytes()
    unchanged = before[: before.index(big) + 1]
    above = before[before.index(big) + 1 :]
    assert above
    assert sum(image.layers[digest] for digest in above) < 5e6
    for name in OTHER_FILES:
        with (engine.project / name).open("a") as file:
            file.write("# changed\n")
    after = list(build(engine, "image").layers)
    assert after != before
    assert after[: len(unchanged)] == unchanged


def test_a_pod_is_the_same_layer_of_gigabytes_and_a_shell_in_the_environment(
    engine: Engine, image: Image
) -> None:
    pod = build(engine, "pod")
    assert pod.gigabytes() == image.gigabytes()
    assert pod.config["User"] == "0"
    assert pod.config["Cmd"] != image.config["Cmd"]
    on_path = [value for value in pod.config["Env"] if PREFIX in value]
    assert on_path == [], "the base's python starts its Jupyter"
    done = engine.run(pod, ["env", "HOME=/root", "bash", "-ic", "command -v python"])
    assert done.stdout.splitlines()[-1] == f"{PREFIX}/bin/python", done.stdout
