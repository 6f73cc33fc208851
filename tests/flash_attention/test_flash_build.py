"""The builder, with real processes on a package of flash-attn's shape."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Callable

import pytest
from fixtures.commands import ROOT, apart, clean_environ, sh
from fixtures.conda_environment import CondaEnvironment
from fixtures.listener import Listener
from flash_stand_ins import TORCH
from lockedenv.errors import Stop
from lockedenv.install.flash_attention import build, sources, toolchain
from lockedenv.install.flash_attention.build import (
    BuildJob,
    build_wheel,
    find_cause,
    follow_build,
    unpack_source,
)
from lockedenv.install.flash_attention.built_wheels import make_full_key
from lockedenv.install.flash_attention.sources import BuiltFromSource, Wanted
from lockedenv.install.flash_attention.target import GLIBC
from lockedenv.install.flash_attention.toolchain import Toolchain
from lockedenv.install.request import FlashRequest, Installation
from lockedenv.prefix.place import Prefix
from lockedenv.spec.environment import Environment

PROGRAMS = Path(__file__).parent / "programs"
SETUP = """
import os, pathlib, subprocess, sys, time
from setuptools import setup
from setuptools.command.build_ext import build_ext
assert os.environ["FLASH_ATTENTION_FORCE_BUILD"] == "TRUE"
{before}
setup(name="flash_attn", version="1.0", py_modules=["flash_attn"])
"""


def python_path() -> str:
    return ":".join([str(ROOT / "scripts"), str(ROOT / "tests"), str(PROGRAMS.parent)])


@pytest.mark.parametrize(
    "log, kind, said",
    [
        (
            "nvcc error   : 'cicc' died due to signal 9 (Kill signal)",
            "memory",
            "killed for memory",
        ),
        (
            "c++: fatal error: Killed signal terminated program cc1plus",
            "memory",
            "killed for memory",
        ),
        ("/tmp/x.o: No space left on device", "disk", "No space left on device"),
        (
            "host_config.h:143: error: -- unsupported GNU version! gcc versions later than 13",
            "gcc",
            "does not take this gcc",
        ),
        (
            "RuntimeError: The detected CUDA version (13.0) mismatches the version that was used to compile",
            "nvcc",
            "another CUDA",
        ),
        (
            "x.cu:3:10: fatal error: cutlass/numeric_types.h: No such file or directory",
            "header",
            "cutlass/numeric_types.h",
        ),
        ("ModuleNotFoundError: No module named 'packaging'", "module", "packaging"),
        ("something else", "unknown", "not known"),
    ],
)
def test_the_likely_cause_of_a_failed_build(log: str, kind: str, said: str) -> None:
    cause = find_cause("[1/73] nvcc ...\n" + log, "12.4")
    assert cause.kind == kind
    assert said in cause.text
    assert cause.remedy


# Building --------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/flash_attn.py").write_text("__version__ = '1.0'\n")
    return tmp_path / "source"


@pytest.fixture
def tools(tmp_path: Path) -> Toolchain:
    usr = Path("/usr/bin")
    return Toolchain(
        tmp_path / "cuda", "12.4", usr / "gcc", usr / "g++", "12.2", tmp_path
    )


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def build_with(
    source: Path,
    tools: Toolchain,
    tmp_path: Path,
    conda_environment: CondaEnvironment,
    listener: Listener,
) -> Callable[..., Path]:
    """Builds the source with a setup.py that begins with the given lines, with the conda environment's pip."""

    def run(before: str, jobs: int = 4) -> Path:
        (source / "setup.py").write_text(SETUP.format(before=before))
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        prefix = conda_environment.prefix
        job = BuildJob(source, work, prefix, tools, ("90",), jobs, tmp_path / "log")
        return build_wheel(job, listener)

    return run


def test_a_build_tells_its_progress(
    build_with: Callable[..., Path], tmp_path: Path, listener: Listener
) -> None:
    wheel = build_with('print("[1/2] nvcc"); print("[2/2] nvcc", flush=True)')
    assert wheel.name == "flash_attn-1.0-py3-none-any.whl"
    assert f"the full log: {tmp_path / 'log'}" in listener.text
    with (tmp_path / "log").open("a") as log:
        follow = follow_build(log)
        assert follow("a warning") is None
        assert str(follow("[9/73] nvcc")).startswith("9 of 73 kernels, about ")
    lines = (tmp_path / "log").read_text().splitlines()
    assert "[2/2] nvcc" in map(str.strip, lines)
    assert lines[-2:] == ["a warning", "[9/73] nvcc"]


def test_killed_for_memory_it_tries_once_more_with_half_the_jobs(
    build_with: Callable[..., Path], tmp_path: Path, listener: Listener
) -> None:
    before = (
        f'open({str(tmp_path / "jobs")!r}, "a").write(os.environ["MAX_JOBS"] + " ")\n'
        'if int(os.environ["MAX_JOBS"]) > 2 and "bdist_wheel" in sys.argv:\n'
        "    sys.exit(\"nvcc error : 'cicc' died due to signal 9 (Kill signal)\")"
    )
    assert build_with(before, jobs=4).exists()
    assert (
        "a compiler was killed for memory; trying once more with 2 jobs"
        in listener.text
    )
    assert set((tmp_path / "jobs").read_text().split()) == {"4", "2"}
    refused = "a compiler was killed for memory; use --jobs with fewer"
    with pytest.raises(Stop, match=refused) as error:
        build_with(before, jobs=8)
    assert f"The full log: {tmp_path / 'log'}" in str(error.value)


def test_an_oom_killed_compiler_is_recognised(build_with: Callable[..., Path]) -> None:
    """A real process, really killed with SIGKILL under the build."""
    before = (
        'code = subprocess.call(["sh", "-c", "kill -9 $$"])\n'
        'sys.exit(f"x.cu died due to signal {-code} (Kill signal)")'
    )
    with pytest.raises(Stop, match="killed for memory"):
        build_with(before, jobs=1)


def test_a_full_disk_is_named_by_the_build(
    source: Path, tmp_path: Path, conda_environment: CondaEnvironment
) -> None:
    """A file system of 1 MB, in a mount namespace of its own."""
    before = 'open("big", "wb").write(bytes(4_000_000))'
    (source / "setup.py").write_text(SETUP.format(before=before))
    small = tmp_path / "small"
    small.mkdir()
    program = f"{sys.executable} {PROGRAMS}/build_flash_attn.py"
    command = (
        f"mount -t tmpfs -o size=1m none {small} && cp -r {source} {small}/s && "
        f"exec {program} {tmp_path} {small}/s {small} {conda_environment.prefix}"
    )
    environ = clean_environ(PYTHONPATH=python_path())
    done = sh(*apart("--mount"), "bash", "-c", command, env=environ, check=False)
    assert (
        "building flash-attn failed: No space left on device; free some disk"
        in done.stdout
    ), done.stdout


def test_the_users_pip_settings_do_not_reach_the_build(
    build_with: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_CONSTRAINT", "PIP_CONFIG_FILE", "PIP_TARGET"):
        monkeypatch.setenv(name, "/nowhere")
    assert build_with("pass").exists()


def list_builders(folder: Path) -> list[str]:
    """The processes that work in a build's folder."""
    environs = Path("/proc").glob("[0-9]*/environ")
    wanted = f"TMPDIR={folder}/maximalcai-flash-attn"
    return sh("grep", "-lsa", wanted, *environs, check=False).stdout.split()


def test_a_killed_build_leaves_nothing_in_the_cache_and_the_next_one_goes_on(
    source: Path, tmp_path: Path, conda_environment: CondaEnvironment
) -> None:
    cache = tmp_path / "cache"
    before = (
        "made = pathlib.Path('made')\n"
        "print('[2/9]' if made.exists() else '[1/9]', 'nvcc', flush=True)\n"
        "made.touch()\n"
        "time.sleep(float(os.environ['SLOW']))"
    )
    (source / "setup.py").write_text(SETUP.format(before=before))
    archive = tmp_path / "flash_attn-1.0.tar.gz"
    sh("tar", "-czf", archive, "-C", tmp_path, "source")
    environ = clean_environ(
        PYTHONPATH=python_path(),
        TMPDIR=str(tmp_path),
        XDG_STATE_HOME=str(tmp_path / "state"),
    )
    program = [sys.executable, str(PROGRAMS / "find_or_build.py")]
    command = [*program, str(cache), str(conda_environment.prefix), str(archive)]
    slow = subprocess.Popen(
        command,
        env={**environ, "SLOW": "600"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    logs: list[Path] = []
    while not (logs and "[1/9]" in logs[0].read_text()):
        assert slow.poll() is None
        time.sleep(0.1)
        logs = list(cache.glob("logs/*.log"))
    os.killpg(slow.pid, signal.SIGKILL)
    slow.wait()
    assert not list((cache / "flash-attn").glob("*-glibc*"))
    assert list_builders(
        tmp_path
    ), "pip ends with the killed one; what pip had started still runs"
    # Two at once: one builds, the other takes what was built.
    both = []
    for _ in range(2):
        quick = {**environ, "SLOW": "0"}
        both.append(
            subprocess.Popen(command, env=quick, stdout=subprocess.PIPE, text=True)
        )
    # The second says before that it waits.
    said = sorted(process.communicate()[0].strip().splitlines()[-1] for process in both)
    assert said == ["cached", "flash_attn-1.0-py3-none-any.whl"]
    text = logs[0].read_text()
    assert "[2/9]" in text, "it goes on from what the killed one has made"
    assert "[1/9]" not in text, "it goes on from what the killed one has made"
    assert not list_builders(tmp_path)
    assert not list(tmp_path.glob("maximalcai-flash-attn-*"))


# The source ------------------------------------------------------------------------------------------------------


def test_a_folder_that_a_build_has_left_holds_the_archives_own_source(
    tmp_path: Path,
) -> None:
    """A flipped byte in it was compiled, and cached under the archive's hash."""
    (tmp_path / "source/csrc").mkdir(parents=True)
    (tmp_path / "source/setup.py").write_text("setup")
    (tmp_path / "source/csrc/a.cu").write_text("kernel")
    archive = tmp_path / "flash_attn-1.0.tar.gz"
    work = tmp_path / "work"
    sh("tar", "-czf", archive, "-C", tmp_path, "source")
    folder = unpack_source(archive, work)
    (folder / "csrc/a.o").write_text("object")
    (folder / "csrc/a.cu").write_text("kernex")
    (folder / "setup.py").unlink()
    (folder / "setup.py").symlink_to(tmp_path / "elsewhere")
    (work / "in").symlink_to(tmp_path / "source")
    before = (folder / "csrc/a.o").stat()
    assert unpack_source(archive, work) == folder
    assert {path.name for path in work.iterdir()} == {folder.name}
    assert (folder / "csrc/a.cu").read_text() == "kernel"
    assert (folder / "setup.py").read_text() == "setup"
    assert not (folder / "setup.py").is_symlink()
    assert (folder / "csrc/a.o").stat() == before
    assert (tmp_path / "source").is_dir()


def make_archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make_member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = ""
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


@pytest.mark.parametrize(
    "member, said",
    [
        (make_member("../thesis.tex"), "would write to '../thesis.tex'"),
        (make_member("source/../../thesis.tex"), "would write to"),
        (make_member("/tmp/thesis.tex"), "would write to '/tmp/thesis.tex'"),
        (
            make_member("source/link", tarfile.SYMTYPE, "/etc"),
            "holds a link or a device",
        ),
        (
            make_member("source/link", tarfile.LNKTYPE, "../../x"),
            "holds a link or a device",
        ),
        (make_member("source/pipe", tarfile.FIFOTYPE), "holds a link or a device"),
        (make_member("setup.py"), "does not hold one folder"),
    ],
    ids=[
        "up",
        "up from inside",
        "absolute",
        "symbolic link",
        "hard link",
        "pipe",
        "no folder",
    ],
)
def test_an_archive_writes_nothing_elsewhere(
    member: tarfile.TarInfo, said: str, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path / "flash_attn-1.0.tar.gz", (member, b""))
    (tmp_path / "work").mkdir()
    with pytest.raises(Stop, match=said):
        unpack_source(archive, tmp_path / "work")
    assert not (tmp_path / "thesis.tex").exists()
    assert not Path("/tmp/thesis.tex").exists()


def test_an_archive_is_unpacked_within_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [(make_member(f"source/{number}"), bytes(1000)) for number in range(20)]
    archive = make_archive(tmp_path / "flash_attn-1.0.tar.gz", *members)
    (tmp_path / "work").mkdir()
    for limit, value in (("UNPACKED_BYTES", 10_000), ("UNPACKED_FILES", 10)):
        with monkeypatch.context() as patch:
            patch.setattr(build, limit, value)
            with pytest.raises(Stop, match="holds more than"):
                unpack_source(archive, tmp_path / "work")
    assert len(list(unpack_source(archive, tmp_path / "work").iterdir())) == 20


def test_the_part_that_flash_attn_4_has_too_can_be_left_out(tmp_path: Path) -> None:
    members = []
    for name in ("setup.py", "flash_attn/__init__.py", "flash_attn/cute/__init__.py"):
        members.append((make_member(f"flash_attn-1.0/{name}"), b"text"))
    archive = make_archive(tmp_path / "flash_attn-1.0.tar.gz", *members)
    work = tmp_path / "work"
    work.mkdir()
    folder = unpack_source(archive, work)
    assert (folder / "flash_attn/cute/__init__.py").exists()
    for _ in range(2):
        assert unpack_source(archive, work, sources.SHARED_FOLDER) == folder
        assert not (folder / "flash_attn/cute").exists()
        assert (folder / "flash_attn/__init__.py").exists()


@pytest.mark.parametrize("make", ["link", "open", "file"])
def test_flash_attn_is_built_in_a_folder_of_ones_own_alone(
    make: str, tmp_path: Path, tools: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name in the folder for temporary files can be guessed: another user's setup.py was run, a linked folder emptied."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(toolchain, "find_toolchain", lambda *arguments: tools)
    archive = tmp_path / "flash_attn-1.0.tar.gz"
    monkeypatch.setattr(sources, "bring_source", lambda *arguments: archive)
    job = Installation(
        environment=Environment(ROOT),
        prefix=Prefix(tmp_path / "env"),
        cache=tmp_path / "cache",
        flash=FlashRequest(mode="build"),
    )
    wanted = Wanted(job, TORCH, ("90",))
    folder = wanted.cache / make_full_key(wanted.key, tools, GLIBC)
    work = sources.private_folders.temporary("flash-attn", folder)
    assert work.parent == tmp_path
    (tmp_path / "precious").mkdir(mode=0o700)
    (tmp_path / "precious/thesis.tex").write_text("years of work")
    if make == "link":
        work.symlink_to(tmp_path / "precious")
    elif make == "open":
        work.mkdir(mode=0o755)
    else:
        work.touch()
    with pytest.raises((Stop, OSError)) as error:
        BuiltFromSource().bring(wanted, Listener())
    refused = "is not a folder of yours alone, and what is unpacked or built there is installed"
    assert make == "file" or refused in str(error.value)
    assert (tmp_path / "precious/thesis.tex").exists()


def test_no_secret_gets_into_the_log_of_a_build(
    build_with: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(Stop) as error:
        build_with(
            'sys.exit("https://user:s3cret@index.example/x failed with HF_TOKEN=abcd")'
        )
    log = (tmp_path / "log").read_text()
    assert "https://***@index.example/x failed with HF_TOKEN=***" in log
    assert "s3cret" not in log + str(error.value)
    assert "=abcd" not in log + str(error.value)
