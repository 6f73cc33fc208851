"""flash-attn through the one command, on an installed prefix: given, prebuilt, cached and wrong."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from fixtures.conda_environment import copy_environment
from fixtures.fault_server import FaultServer
from flash_commands import BY_SETUP, copy_project, provide
from flash_stand_ins import PREBUILT, RIGHT, TORCH, make_flash_attn, pack_as
from lockedenv.backends.cache import find_by_hash
from lockedenv.backends.uv_program import uv_pin
from lockedenv.host.places import default_cache
from lockedenv.install.flash_attention.built_wheels import (
    FOLDER,
    keep_built_wheel,
    make_key,
)
from lockedenv.install.flash_attention.target import GLIBC
from lockedenv.prefix.records import file_sha256
from lockedenv.spec import locks
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName

ENCODED = PREBUILT.replace("+", "%2B")
NO_GPU = "skipped: no GPU. Use --arch 90 to build for an H100 anyway"


def test_a_given_wheel_is_refused_without_its_hash_or_with_another(
    pip_environment: Path, tmp_path: Path
) -> None:
    (tmp_path / PREBUILT).write_bytes(b"not hashed")
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    command = [ROOT / "scripts" / BY_SETUP[0], *BY_SETUP[1:], "--prefix", prefix]
    done = sh(
        *command, "--wheel", tmp_path / PREBUILT, check=False, env=clean_environ()
    )
    said = "--wheel needs --sha256 with the wheel's 64 hex digits"
    assert done.returncode == 2, done.stdout
    assert said in done.stdout, done.stdout
    out = provide(
        prefix, "--wheel", tmp_path / PREBUILT, "--sha256", "0" * 64, check=False
    )
    assert f"not {'0' * 64}: it is not installed" in out, out
    assert "Traceback" not in out, out
    assert not list(prefix.glob("lib/python3.11/site-packages/flash_attn*"))


def test_a_given_wheel_may_have_a_relative_path_and_is_kept(
    pip_environment: Path, tmp_path: Path
) -> None:
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    wheel = make_flash_attn(tmp_path / "source", prefix / "bin/python", "2.8.3", RIGHT)
    (tmp_path / "wheels").mkdir()
    pack_as(wheel, tmp_path / "wheels" / PREBUILT)
    sha256 = file_sha256(tmp_path / "wheels" / PREBUILT)
    given = ["--wheel", f"wheels/{PREBUILT}", "--sha256", sha256]
    command = [ROOT / "scripts" / BY_SETUP[0], *BY_SETUP[1:], "--prefix", prefix]
    command += ["--level", "quick", "--verbose", "--arch", "90"]
    done = sh(*command, *given, cwd=tmp_path, check=False, env=clean_environ())
    assert done.returncode == 0, done.stdout
    assert "flash-attn 2.8.3" in done.stdout, done.stdout
    done = sh(*command, *given, cwd=tmp_path, env=clean_environ())
    assert f"{PREBUILT} is installed\n" in done.stdout
    done = sh(*command, env=clean_environ())
    kept = f"{PREBUILT} is installed, as --wheel gave it"
    assert kept in done.stdout, "nothing is built over it"


# The prebuilt wheel ----------------------------------------------------------------------------------------------

Running = Callable[..., Tuple[int, str]]


def fill_cache(cache: Path) -> None:
    """uv alone, as an earlier run leaves it."""
    (cache / "wheels").mkdir(parents=True)
    shutil.copytree(default_cache() / "bin", cache / "bin", dirs_exist_ok=True)
    for path in default_cache().glob("wheels/uv-*.whl"):
        os.link(path, cache / "wheels" / path.name)


@pytest.fixture
def prebuilt(
    pip_environment: Path, tmp_path: Path
) -> Iterator[Tuple[FaultServer, Running]]:
    """A server with a wheel under the prebuilt one's name; the one command with a lock that names it, on a prefix of its own."""
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    project = copy_project(tmp_path / "project")
    plain = make_flash_attn(tmp_path / "source", prefix / "bin/python", "2.8.3", RIGHT)
    (tmp_path / "served/wheels").mkdir(parents=True)
    wheel = pack_as(plain, tmp_path / "served/wheels" / ENCODED)
    lock = project / "locks/flash-attn.txt"
    locked = (ROOT / "locks/flash-attn.txt").read_text()
    cache = tmp_path / "cache"
    with FaultServer(tmp_path / "served") as server:

        def run(*options: Any, changes: Tuple[str, str] = ("", "")) -> Tuple[int, str]:
            text = re.sub(r"@ \S+/", f"@ {server.address}/wheels/", locked)
            text = re.sub(
                r"(@.*sha256:)\w+", rf"\g<1>{file_sha256(wheel_path(wheel))}", text
            )
            if changes[0]:
                text = re.sub(*changes, text)
            lock.write_text(text)
            if not (cache / "wheels").exists():
                fill_cache(cache)
            where = [
                "--prefix",
                prefix,
                "--level",
                "quick",
                "--verbose",
                "--cache",
                cache,
            ]
            environ = clean_environ(
                MAXIMALCAI_RETRY_SECONDS="0.01", CUDA_HOME="/nowhere"
            )
            command = [
                project / "scripts" / BY_SETUP[0],
                *BY_SETUP[1:],
                *where,
                *options,
            ]
            done = sh(*command, check=False, env=environ)
            return done.returncode, done.stdout

        yield server, run


def wheel_path(wheel: Path) -> Path:
    """The served wheel, which one test gives its plain name."""
    return wheel if wheel.exists() else wheel.with_name(PREBUILT)


def test_the_prebuilt_wheel_end_to_end(
    prebuilt: Tuple[FaultServer, Running], tmp_path: Path
) -> None:
    server, run = prebuilt
    for changes, why in (
        ((r"glibc 2\.32", "glibc 99.32"), "it needs glibc 99.32"),
        (("(@.*sha256:)....", r"\g<1>0000"), "not 0000"),
    ):
        status, said = run("--arch", "90", changes=changes)
        assert status == 1, said
        assert "the prebuilt wheel is not taken: " in said, said
        assert why in said, said
        assert "flash-attn cannot be built" in said, said
        assert "verified, but not all that was asked for is there" in said, said
        is_fetched = bool(server.requests[ENCODED])
        assert "0000" in why or not is_fetched, "nothing is fetched that does not fit"
    status, said = run("--flash-attn", "wheel", changes=("/wheels/", "/gone/"))
    assert status == 1
    assert "HTTP 404" in said
    assert "cannot be built" not in said, "asked for alone, nothing is built"
    status, said = run("--flash-attn", "build", "--arch", "90")
    assert status == 1
    assert "flash-attn cannot be built" in said
    assert "the prebuilt wheel" not in said
    status, said = run()
    assert status == 0
    assert NO_GPU in said
    before = server.requests[ENCODED]
    status, said = run("--arch", "90")
    assert status == 0, said
    assert f"{PREBUILT} is installed\n" in said, said
    assert "75 wheels as locked, and flash-attn 2.8.3\n" in said, said
    status, said = run("--arch", "90")
    assert status == 0
    assert f"{PREBUILT} is installed\n" in said
    assert (
        server.requests[ENCODED] == before + 1
    ), "it is in the cache, and in the prefix"
    # From a folder that --download-only made, with no network.
    shutil.rmtree(tmp_path / "cache")
    offline = tmp_path / "served"
    (offline / "wheels" / ENCODED).rename(offline / "wheels" / PREBUILT)
    for pin in [*Environment(ROOT).wheels(BackendName.PIP), uv_pin()]:
        pattern = f"{pin.name.replace('-', '_')}-*"
        found = find_by_hash(default_cache() / "wheels", pattern, pin.sha256)
        if found:
            os.link(found, offline / "wheels" / found.name)
    (tmp_path / "env/maximalcai-flash-attn").unlink()
    status, said = run("--offline", offline, "--flash-attn", "wheel")
    assert f"{PREBUILT} is installed\n" in said, said
    assert server.requests[PREBUILT] == 0, said


# The cache -------------------------------------------------------------------------------------------------------


def test_a_wheel_that_is_not_right_is_not_left_anywhere(
    pip_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It installs and does not import: it is removed from the prefix and from the cache."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    cache = tmp_path / "cache"
    (cache / FOLDER).mkdir(parents=True)
    pin = locks.read_pip_lock(ROOT / "locks/flash-attn.txt")[0]
    full_key = f"{make_key(pin, TORCH, ('90',))}-nvcc12.4-gcc12.2-glibc{GLIBC}"
    code = "raise ImportError('undefined symbol: _ZN3c104cuda')"
    wheel = make_flash_attn(
        tmp_path / "source", prefix / "bin/python", pin.version, code
    )
    kept = keep_built_wheel(wheel, cache / FOLDER, full_key, {})
    options = ["--cache", cache, "--arch", "90", "--flash-attn", "build"]
    said = provide(
        prefix, *options, check=False, XDG_STATE_HOME=str(tmp_path / "state")
    )
    removed = (
        "was installed and is not right, so it was removed again, from the cache too"
    )
    assert f"{removed}: it does not import: ImportError" in said
    assert not kept.path.parent.exists()
    assert not list(prefix.glob("lib/python3.11/site-packages/flash_attn*"))
    assert "verified: no check failed" in said, "the environment works without it"
    last = said.splitlines()[-3:]
    missing = "verified, but not all that was asked for is there: flash-attn is missing"
    assert last[0].startswith(missing), last
    assert last[1].startswith(
        f"  {prefix}, with the exception above: torch 2.5.1, "
    ), last
    assert last[2].startswith("enter it with:  source "), last
