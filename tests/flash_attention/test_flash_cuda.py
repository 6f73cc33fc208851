"""Real CUDA builds, without a GPU: a package of flash-attn's shape, and with --long flash-attn itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from fixtures.conda_environment import copy_environment
from flash_commands import BY_POST_CREATE, copy_project, provide
from lockedenv.host.orphans import end_orphans
from lockedenv.host.places import default_cache
from lockedenv.install.flash_attention.target import GLIBC
from lockedenv.spec.environment import Environment

PACKAGE = Path(__file__).parent / "cuda_package"


@pytest.fixture(scope="session")
def cuda_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nvcc 12 from the distribution and PyPI, kept in the user's cache (about 100 MB to fetch, 10 s)."""
    folder = default_cache() / "tests-cuda-12"
    done = sh(
        ROOT / "tests/flash_attention/cuda_toolkit.sh",
        folder,
        check=False,
        env=clean_environ(),
    )
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def state(tmp_path: Path) -> str:
    """Where the builds of this test are noted."""
    return str(tmp_path / "state")


def pack_source(cache: Path, folder: Path) -> str:
    """The package as a source archive in a cache; gives its sha256."""
    named = folder / "flash_attn-2.8.3"
    shutil.copytree(PACKAGE, named)
    (cache / "wheels").mkdir(parents=True)
    archive = cache / "wheels/flash_attn-2.8.3.tar.gz"
    sh("tar", "-czf", archive, "-C", folder, named.name)
    return sh("sha256sum", archive).stdout.split()[0]


def test_a_real_cuda_build_is_cached_installed_again_and_proven(
    cuda_home: Path, pip_environment: Path, tmp_path: Path, state: str
) -> None:
    """The whole path of post_create.sh --arch 90 with a real nvcc, on a package of flash-attn's shape with one kernel."""
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    cache = tmp_path / "cache"
    sha = pack_source(cache, tmp_path)
    project = copy_project(tmp_path / "project")
    lock = project / "locks/flash-attn.txt"
    # The pin's hash, not those of the header: otherwise flash-attn itself would be built, for hours.
    changed, count = re.subn(
        "--hash=sha256:[0-9a-f]{64}", f"--hash=sha256:{sha}", lock.read_text(), 1
    )
    assert count == 1
    lock.write_text(changed)
    options = ["--cache", cache, "--arch", "90", "--flash-attn", "build"]
    environ = {"CUDA_HOME": str(cuda_home), "XDG_STATE_HOME": state}
    said = provide(prefix, *options, by=BY_POST_CREATE, project=project, **environ)
    version = sh(cuda_home / "bin/nvcc", "--version").stdout
    nvcc = re.findall(r"release (12\.\d+)", version)[0]
    assert f"building for sm_90 with nvcc {nvcc}" in said
    assert "job" in said
    assert "flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl built" in said
    assert "75 wheels as locked, and flash-attn 2.8.3\n" in said
    key = f"flash_attn-2.8.3-{sha[:12]}-torch2.5.1-cu12.4-abi0-cp311-sm90-linux_x86_64"
    pattern = f"{key}-nvcc{nvcc}-gcc*-glibc{GLIBC}-*/wheel.json"
    description = next((cache / "flash-attn").glob(pattern))
    facts = json.loads(description.read_text())
    assert facts["nvcc"] == nvcc
    assert facts["archs"] == ["90"]
    wheel = description.with_name(facts["wheel"])
    assert f"--wheel {wheel} --sha256 {facts['sha256']}" in said, "for another machine"
    library = next(prefix.glob("lib/python3.11/site-packages/flash_attn_2_cuda*.so"))
    assert b"sm_90" in library.read_bytes()
    program = "import torch, flash_attn_2_cuda as f; f.run(torch.ones(4))"
    done = sh(prefix / "bin/python", "-c", program, check=False)
    assert "x must be on a GPU" in done.stdout
    # Again: nothing to do. In another prefix: from the cache, without a compiler.
    again = provide(prefix, *options, project=project, XDG_STATE_HOME=state)
    assert re.search(f"{key}-nvcc.* is installed", again)
    other = copy_environment(pip_environment, tmp_path / "other", links=True)
    said = provide(other, *options, project=project, XDG_STATE_HOME=state)
    assert "flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl from the cache" in said
    sh(other / "bin/python", "-c", "import torch, flash_attn, flash_attn_2_cuda")


@pytest.mark.long
def test_flash_attn_itself(
    cuda_home: Path, pip_environment: Path, tmp_path: Path
) -> None:
    """The whole of flash-attn for sm_90, over an hour on two cores; then again from the cache, as a ratio."""
    options = ["--cache", tmp_path / "cache", "--arch", "90", "--flash-attn", "build"]
    environ = {"CUDA_HOME": str(cuda_home), "XDG_STATE_HOME": str(tmp_path / "state")}
    pin = Environment(ROOT).flash_attn()
    assert pin
    seconds = []
    for name in ("first", "second"):
        prefix = copy_environment(pip_environment, tmp_path / name, links=True)
        started = time.monotonic()
        provide(prefix, *options, **environ)
        seconds.append(time.monotonic() - started)
        program = "import flash_attn; print(flash_attn.__version__)"
        assert sh(prefix / "bin/python", "-c", program).stdout == f"{pin.version}\n"
    first, second = seconds
    print(
        f"\nfirst build {first:.0f} s, from the cache {second:.1f} s: {first / second:.0f} times"
    )


def read_steps(cache: Path) -> list[tuple[int, int]]:
    """(number, total) of the compilers' steps in the logs."""
    steps = []
    for log in cache.glob("logs/*.log"):
        for number, total in re.findall(r"^ *\[(\d+)/(\d+)\]", log.read_text(), re.M):
            steps.append((int(number), int(total)))
    return steps


@pytest.mark.long
def test_a_killed_build_of_flash_attn_itself_compiles_what_is_left(
    cuda_home: Path, pip_environment: Path, tmp_path: Path
) -> None:
    """Killed after two of its 73 steps, with -9; the next run has no more than the others to do. Ten minutes."""
    prefix = copy_environment(pip_environment, tmp_path / "env", links=True)
    cache = tmp_path / "cache"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    options = [
        "--arch",
        "90",
        "--flash-attn",
        "build",
        "--jobs",
        "1",
        "--level",
        "quick",
    ]
    script = ROOT / "scripts/post_create.sh"
    command = [
        str(word) for word in (script, "--prefix", prefix, "--cache", cache, *options)
    ]
    environ = clean_environ(CUDA_HOME=str(cuda_home), TMPDIR=str(temporary))
    totals = []
    for wanted in (2, 1):
        process = subprocess.Popen(
            command,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        steps: list[tuple[int, int]] = []
        while not any(number >= wanted for number, _ in steps):
            assert process.poll() is None
            time.sleep(1)
            steps = read_steps(cache)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        totals.append(steps[-1][1])
        log = next(cache.glob("logs/*.log"))
        log.rename(log.with_suffix(f".{wanted}"))
    end_orphans(f"TMPDIR={next(temporary.glob('maximalcai-flash-attn-*'))}")
    assert totals[1] <= totals[0] - 2, totals
    print(f"\nof {totals[0]} steps, {totals[0] - totals[1]} were not done again")
