"""What the tests share: the local channel, copies of the repository, environments made once."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Iterator, List, Tuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from fault_server import FaultServer  # noqa: E402
from local_channel import WHEELS, build_channels  # noqa: E402
from lockedenv.backends import uv_program, wheels  # noqa: E402
from lockedenv.cli.output import Steps  # noqa: E402
from lockedenv.host.limits import read_memory  # noqa: E402
from lockedenv.host.locking import holding  # noqa: E402
from lockedenv.host.places import default_cache  # noqa: E402
from lockedenv.lock.write import conda_lock_text  # noqa: E402
from lockedenv.prefix.activation import write_activate, write_guard  # noqa: E402
from lockedenv.prefix.inventory import (  # noqa: E402
    INVENTORY,
    complete_inventory,
    locked_packages,
    take_inventory,
    write_inventory,
)
from lockedenv.prefix.place import Prefix  # noqa: E402
from lockedenv.prefix.records import file_sha256  # noqa: E402
from lockedenv.spec import environment, locks  # noqa: E402
from lockedenv.spec.environment import Environment  # noqa: E402
from lockedenv.spec.programs import MICROMAMBA  # noqa: E402
from lockedenv.verify.forks import STACK  # noqa: E402

# A test that uses one of these works on an installed environment; tests/run.sh --fast leaves it out.
INSTALLED = {
    "broken",
    "channel",
    "conda_environment",
    "current_environment",
    "machine",
    "pip_environment",
    "real_prefix",
}
collect_ignore = ["in_environment"]  # run by test_pip_backend.py with the environment's own python
MICROMAMBA_PIN = "scripts/lockedenv/spec/micromamba.json"
PIP_LAYER = [
    "certifi",
    "hf-transfer",
    "idna",
    "safetensors",
]  # small, and without a package of the conda layer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        help="the long proofs too: many kills, a whole flash-attn build",
    )
    parser.addoption(
        "--no-skips", action="store_true", help="a test that cannot run on this machine has failed"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        report.outcome, report.longrepr = "failed", f"{report.longrepr[2]}, and --no-skips was given"  # type: ignore[index]
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    # The longest files begin first, so that all workers end together (tests/run.sh: --no-loadscope-reorder).
    longest = "test_pip_backend test_killed test_rebuild test_added test_verifier test_flash_cuda test_flash_build test_conda_backend test_conda_faults test_ranks_under_torchrun test_mirror".split()
    items.sort(
        key=lambda item: (
            longest.index(item.path.stem) if item.path.stem in longest else len(longest)
        )
    )
    for item in items:
        if INSTALLED & set(getattr(item, "fixturenames", ())):
            item.add_marker("installed")
    if not config.getoption("--long"):
        kept = [item for item in items if "long" not in item.keywords]
        config.hook.pytest_deselected(items=[item for item in items if "long" in item.keywords])
        items[:] = kept


def sh(*command: Any, check: bool = True, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """Runs a command; its output, both streams together, is in stdout."""
    done = subprocess.run(
        [str(c) for c in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )
    if check and done.returncode:
        raise AssertionError(f"{command} exited {done.returncode}:\n{done.stdout}")
    return done


@pytest.fixture(autouse=True)
def variables_as_before() -> Iterator[None]:
    """The tests of a worker share its variables: the test that leaves one behind fails, not a later one."""

    def variables() -> Dict[str, str]:
        return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}

    before = variables()
    yield
    assert variables() == before


@functools.lru_cache()
def not_apart(kind: str) -> str:
    """Why this machine gives no namespace of a kind; empty where it does. Ubuntu 24.04 gives one to mount in, and mounts nothing."""
    tried = {"--net": ["true"], "--mount": ["mount", "-t", "tmpfs", "none", "/mnt"]}[kind]
    done = sh("unshare", kind, "--map-root-user", *tried, check=False)
    return " ".join(done.stdout.split()) if done.returncode else ""


def apart(kind: str) -> List[str]:
    """What starts a command without a network ("--net"), or where it may mount ("--mount"). Skips the test where nothing does."""
    if problem := not_apart(kind):
        pytest.skip(f"no namespace of its own here: {problem}")
    return ["unshare", kind, "--map-root-user"]


@functools.lru_cache()
def uv_settings() -> Dict[str, str]:
    """For the tests' own calls of uv: the machine's index and certificate authorities."""
    ours = uv_program.uv_environment(default_cache(), ROOT, dict(os.environ))
    return {name: ours[name] for name in ("UV_DEFAULT_INDEX", "SSL_CERT_FILE") if name in ours}


def clean_environ(**more: str) -> Dict[str, str]:
    """This process's environment without what would lead the scripts elsewhere."""
    drop = (
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "HF_HOME",
        "LD_LIBRARY_PATH",
        "MAXIMALCAI_MIRROR",
    )
    kept = {k: v for k, v in os.environ.items() if k not in drop}
    return {**kept, **uv_settings(), **more}


@pytest.fixture(scope="session")
def wheel_files() -> Dict[str, Path]:
    """The locked wheels of the local channel's packages and pip layer, from PyPI by hash, kept in the user's cache."""
    pins = [p for p in Environment(ROOT).wheels("pip") if p.name in WHEELS + PIP_LAYER] + [
        uv_program.uv_pin()
    ]
    folder, steps = default_cache() / "wheels", Steps(1, True)
    wheels.fetch_files(pins, folder, uv_program.bring_uv(default_cache(), steps), "3.11", steps)
    there = {file_sha256(path): path for path in folder.glob("*.whl")}
    return {pin.name: there[pin.sha256] for pin in pins}


@pytest.fixture(scope="session")
def channel(
    tmp_path_factory: pytest.TempPathFactory, wheel_files: Dict[str, Path], micromamba: Path
) -> "LocalChannel":
    root = tmp_path_factory.mktemp("channel")
    wheels = {name: wheel_files[name] for name in WHEELS}
    return LocalChannel(
        root,
        build_channels(root, wheels, tmp_path_factory.mktemp("files")),
        micromamba / "micromamba",
    )


class LocalChannel:
    """The channels under `root`, and conda-lock's entries for what they hold."""

    def __init__(self, root: Path, entries: List[Dict[str, Any]], micromamba: Path) -> None:
        self.root, self.entries, self.micromamba = root, entries, micromamba

    def lock_text(self, address: str) -> str:
        packages = [{**e, "url": f"{address}/{e['url']}"} for e in self.entries]
        metadata = {
            "content_hash": {"linux-64": "0" * 64},
            "channels": [
                {"url": f"{address}/{name}", "used_env_vars": []}
                for name in ("pytorch", "nvidia", "conda-forge")
            ],
            "platforms": ["linux-64"],
            "sources": [],
        }
        return conda_lock_text(
            {"metadata": metadata, "package": sorted(packages, key=lambda p: str(p["name"]))}
        )

    def project(self, folder: Path, address: str) -> Path:
        """A copy of the repository whose locks are over this channel at `address` and the small pip layer."""
        for name in (
            "scripts",
            "locks",
            "environments",
            "requirements.txt",
            "pyproject.toml",
            "environment.yml",
        ):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / name)
        (folder / "conda-lock.yml").write_text(self.lock_text(address))
        for name, wanted in (
            ("locks/pip.txt", PIP_LAYER),
            ("requirements.txt", PIP_LAYER + WHEELS),
        ):
            lines = (ROOT / name).read_text().splitlines()
            kept = [line for line in lines if line.split("==")[0] in wanted]
            (folder / name).write_text("\n".join([*kept, f"# {len(kept)} packages"]) + "\n")
        # The pinned micromamba is the stand-in, packed as conda-forge packs the real one.
        pin_micromamba(self.root, folder, address, self.micromamba)
        return folder


def pin_micromamba(channel: Path, project: Path, address: str, program: Path) -> None:
    """Makes a program the pinned micromamba of a project, packed as conda-forge packs the real one."""
    archive = channel / "conda-forge/linux-64" / MICROMAMBA.filename
    known = archive.with_suffix(f".{file_sha256(program)[:12]}")
    if not known.exists():
        with tarfile.open(known, "w:bz2", dereference=True) as tar:
            tar.add(program, "bin/micromamba")
            index = {
                "name": "micromamba",
                "version": "2.5.0",
                "build": "1",
                "build_number": 1,
                "depends": [],
                "subdir": "linux-64",
            }
            member, content = tarfile.TarInfo("info/index.json"), json.dumps(index).encode()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    archive.unlink(missing_ok=True)
    os.link(known, archive)
    pinned = project / MICROMAMBA_PIN
    wanted = json.loads((ROOT / MICROMAMBA_PIN).read_text())
    wanted["sha256"] = file_sha256(archive)
    wanted["size"] = 0
    wanted["url"] = wanted["url"].replace("https://conda.anaconda.org", address)
    pinned.write_text(json.dumps(wanted))


@pytest.fixture(scope="session")
def origin(channel: LocalChannel) -> Iterator[FaultServer]:
    """The channel over HTTP: one address, so that what one lock made is right for the next."""
    with FaultServer(channel.root) as running:
        yield running


@pytest.fixture
def server(origin: FaultServer) -> Iterator[FaultServer]:
    """The same, with faults on demand."""
    origin.reset()
    yield origin
    origin.reset()


@pytest.fixture(scope="session")
def micromamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `micromamba` in it: the one of TEST_MICROMAMBA, or the stand-in."""
    folder = tmp_path_factory.mktemp("bin")
    if os.environ.get("TEST_MICROMAMBA"):
        (folder / "micromamba").symlink_to(os.environ["TEST_MICROMAMBA"])
    else:
        stand_in = ROOT / "tests/stand_in_micromamba.py"
        (folder / "micromamba").write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n'
        )
        (folder / "micromamba").chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def pip_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pip backend, really installed into an empty prefix by the one command: torch and all. Not to be changed."""
    return installed_by_pip(tmp_path_factory, "default")


@pytest.fixture(scope="session")
def current_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pip_environment, of environments/current."""
    return installed_by_pip(tmp_path_factory, "current")


def installed_by_pip(folders: pytest.TempPathFactory, name: str) -> Path:
    """Made once, by the worker that asks first: `said.txt` in it comes last."""
    base = folders.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    folder.mkdir(exist_ok=True)
    setup, prefix = ROOT / "scripts/setup_runpod_environment.sh", folder / "env"
    with holding(folder / "lock", f"the environment {name}"):
        if not (prefix / "said.txt").exists():
            options = [
                "--environment",
                name,
                "--backend",
                "pip",
                "--prefix",
                prefix,
                "--level",
                "quick",
            ]
            done = sh(setup, *options, env=clean_environ(), check=False)
            assert done.returncode == 0, done.stdout
            import_the_stack(prefix)
            (prefix / "said.txt").write_text(done.stdout)
    return prefix


def import_the_stack(prefix: Path) -> None:
    """As after a session in it: there is bytecode, without which each of the processes to come compiles the sources.

    It is kept in the user's cache. Python takes what fits the sources' sizes and times, and makes what is missing.
    """
    of = environment.find_by_prefix(prefix)
    kept = (
        default_cache()
        / f"tests-bytecode/{of.name}-{file_sha256(of.folder / 'requirements.txt')[:12]}.tar"
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    if kept.exists():
        sh("tar", "-xf", kept, "-C", prefix)
    imports = "import importlib, importlib.util as u, sys\nfor x in sys.argv[1:]: u.find_spec(x.split('.')[0]) and importlib.import_module(x)"
    written = {
        name: value for name, value in clean_environ().items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    sh(prefix / "bin/python", "-c", imports, *STACK, env=written)
    part = kept.with_suffix(f".{os.getpid()}")
    sh(
        "tar",
        "-cf",
        part,
        "-C",
        prefix,
        *(folder.relative_to(prefix) for folder in (prefix / "lib").rglob("__pycache__")),
    )
    part.replace(kept)


def in_memory(otherwise: Path) -> Iterator[Path]:
    """A folder for prefixes, thousands of small files each: in memory if there is room, since a disk can need seconds for one."""
    shm = os.statvfs("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    free = min(shm.f_bavail * shm.f_frsize, read_memory().free) if shm else 0
    if not shm or shm.f_flag & os.ST_NOEXEC or free < 6 << 30:
        yield otherwise
    else:
        with tempfile.TemporaryDirectory(
            prefix="maximalcai-tests-", dir="/dev/shm", ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield from in_memory(tmp_path)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from in_memory(tmp_path_factory.mktemp("conda"))


@pytest.fixture(scope="session")
def conda_environment(
    session_folder: Path, channel: LocalChannel, origin: FaultServer
) -> "CondaEnvironment":
    """The conda backend over the local channel, end to end by the one command. Copy it (cp -a) before changing it."""
    folder = session_folder
    project = channel.project(folder / "project", origin.address)
    command = [
        project / "scripts/setup_runpod_environment.sh",
        "--backend",
        "conda",
        "--level",
        "quick",
    ]
    done = sh(
        *command,
        "--prefix",
        folder / "env",
        "--cache",
        folder / "cache",
        env=clean_environ(),
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return CondaEnvironment(project, folder / "env", folder / "cache", done.stdout)


class CondaEnvironment:
    def __init__(self, project: Path, prefix: Path, cache: Path, said: str) -> None:
        self.project, self.prefix, self.cache, self.said = project, prefix, cache, said

    def verify(self, *options: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """The project's verifier, run by the prefix's python."""
        program = self.project / "scripts/verify_environment.py"
        return sh(
            self.prefix / "bin/python", program, *options, check=False, env=clean_environ(**environ)
        )


@pytest.fixture
def broken(conda_environment: CondaEnvironment, folder: Path) -> CondaEnvironment:
    """A copy of the conda environment and its project, to break."""
    copy_environment(conda_environment.prefix, folder / "env")
    shutil.copytree(conda_environment.project, folder / "project")
    if not (folder / "env" / INVENTORY).exists():
        packages = locked_packages(Environment(folder / "project"), "conda")
        write_inventory(folder / "env", take_inventory(folder / "env", packages))
    return CondaEnvironment(folder / "project", folder / "env", conda_environment.cache, "")


FAST = {"MAXIMALCAI_RETRY_SECONDS": "0.01", "MAXIMALCAI_STALL_SECONDS": "1"}
VERIFIED = "verified: every check that ran has passed"


SLOW = """# slow
import time
from lockedenv.verify.checks import QUICK, check, passed


@check("slow", "sleeps", QUICK, child=True)
def slow(device):
    time.sleep(600)
    return passed("slept")


CHECKS.append(slow)
"""


class Machine:
    """A project over the channel at `address`, a place for its prefix and cache, and the one command."""

    def __init__(
        self, channel: LocalChannel, folder: Path, address: str, micromamba: Path, uv: Path
    ) -> None:
        self.project = channel.project(folder / "project", address)
        self.prefix, self.cache, self.folder = folder / "env", folder / "cache", folder
        (self.cache / "wheels").mkdir(
            parents=True
        )  # the installer, which pip takes seconds to bring
        shutil.copy2(uv, self.cache / "wheels")
        self.environ = clean_environ(**FAST)
        self.channel, self.address, self.micromamba, self.uv = channel, address, micromamba, uv

    def pin(self, program: Path) -> None:
        """Makes another program the micromamba that is fetched."""
        program.chmod(0o755)
        pin_micromamba(self.channel.root, self.project, self.address, program)

    def command(self, *options: Any) -> List[str]:
        places = [
            "--prefix",
            self.prefix,
            "--cache",
            self.cache,
            "--backend",
            "conda",
            "--level",
            "quick",
        ]
        return [
            str(x)
            for x in (self.project / "scripts/setup_runpod_environment.sh", *places, *options)
        ]

    def setup(self, *options: Any, **environ: str) -> "subprocess.CompletedProcess[str]":
        return sh(*self.command(*options), check=False, env={**self.environ, **environ})

    def setup_mounted(self, script: str, *options: Any) -> "subprocess.CompletedProcess[str]":
        """After a script in a mount namespace of its own; {folder} and {prefix} are filled in."""
        prepare = script.format(folder=self.folder, prefix=self.prefix) + ' && exec "$@"'
        return sh(
            *apart("--mount"),
            "bash",
            "-c",
            prepare,
            "bash",
            *self.command(*options),
            check=False,
            env=self.environ,
        )

    def setup_on_small_disk(self, size: str) -> "subprocess.CompletedProcess[str]":
        """With the prefix on a disk of its own, a tmpfs of this size."""
        self.prefix = self.folder / "small/env"
        return self.setup_mounted(
            f"mkdir {{folder}}/small && mount -t tmpfs -o size={size} none {{folder}}/small"
        )

    def verify(self, *options: Any) -> str:
        program = self.project / "scripts/verify_environment.py"
        return sh(
            self.prefix / "bin/python", program, *options, check=False, env=clean_environ()
        ).stdout

    def assert_verified(
        self,
        done: "subprocess.CompletedProcess[str]",
        old: bool = False,
        at: "Machine | None" = None,
    ) -> None:
        assert done.returncode == 0 and VERIFIED in done.stdout, done.stdout
        assert VERIFIED in (at or self).verify("--level", "quick")
        container = self.prefix.with_name(f"{self.prefix.name}.d")
        if container.is_dir():
            assert (len([*container.iterdir()]) > 1) == old, [*container.iterdir()]

    def slow_verify(self, slow: bool) -> None:
        """Makes the verification last: a check in a child of its own sleeps."""
        module = self.project / "scripts/lockedenv/verify/checklist.py"
        text = module.read_text().split("# slow")[0]
        if slow:
            text += SLOW
        module.write_text(text)

    def until(
        self, step: str, *options: Any, slow_verify: bool = False
    ) -> "Tuple[subprocess.Popen[str], str]":
        """Starts the command and waits until a step begins; with `slow_verify`, until the check that sleeps does."""
        self.slow_verify(slow_verify)
        process = subprocess.Popen(
            self.command(*options),
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        said = ""
        assert process.stdout
        for line in process.stdout:
            said += line
            if re.match(rf"\[\d/\d\] {step}", line):
                break
        while (
            slow_verify
            and not sh("pgrep", "-f", f"{self.folder}.*verify.child slow", check=False).stdout
        ):
            assert process.poll() is None, said
            time.sleep(0.05)
        return process, said

    def assert_killed_during(self, step: str) -> None:
        process, said = self.until(step)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout and re.search(rf"\] {step}", said), said
        process.stdout.close()


def remark(folder: Path, **changes: Any) -> None:
    """Changes what a prefix's mark says."""
    path = folder / "maximalcai.json"
    text = json.dumps({**json.loads(path.read_text()), **changes})
    path.unlink()  # it may be a link to another prefix's
    path.write_text(text)


def copy_environment(source: Path, target: Path, links: bool = False) -> Path:
    """A copy of an environment, or one of hard links, that says that it was made at its own place."""
    sh("cp", "-al" if links else "-a", source.resolve(), target)
    remark(target, path=str(target), id="")
    return target


def relock(machine: Machine) -> None:
    """Another lock: without one of its packages."""
    lock = machine.project / "conda-lock.yml"
    text = lock.read_text()
    *lines, count = [line for line in text.splitlines() if '"name": "libcufft"' not in line]
    number = int(count.split()[1]) - 1
    lock.write_text("\n".join([*lines, f"# {number} packages"]) + "\n")
    assert len(locks.read_conda_lock(lock).packages) == number


@pytest.fixture
def machine(
    channel: LocalChannel,
    folder: Path,
    server: FaultServer,
    micromamba: Path,
    wheel_files: Dict[str, Path],
) -> Machine:
    return Machine(channel, folder, server.address, micromamba, wheel_files["uv"])


@pytest.fixture
def empty_cache(machine: Machine) -> None:
    """The installer is not there yet either: pip or the environment's uv must bring it."""
    shutil.rmtree(machine.cache)


@pytest.fixture
def installed(machine: Machine, conda_environment: CondaEnvironment) -> None:
    """The machine after its setup(): a copy of what the same command made, with the links between prefix and cache."""
    shutil.rmtree(machine.cache)
    made = conda_environment.prefix.resolve()
    container = machine.prefix.with_name(f"{machine.prefix.name}.d")
    # One cp, which keeps the links between both.
    sh("cp", "-a", made.parent, conda_environment.cache, machine.folder)
    prefix = Prefix(container / made.name, machine.prefix)
    machine.prefix.symlink_to(f"{container.name}/{made.name}")
    remark(prefix.path, path=str(prefix.path))
    (prefix.path / "pip.conf").unlink()
    pins = locks.read_pip_lock(machine.project / "requirements.txt")
    written = write_activate(prefix, "conda") + write_guard(prefix, pins, "conda", True)
    complete_inventory(prefix.path, [], written)


@pytest.fixture(scope="session")
def zsh(tmp_path_factory: pytest.TempPathFactory) -> str:
    """zsh: the machine's, or Debian's package unpacked in the user's cache. Nothing is installed on the machine."""
    folder = default_cache() / "tests-zsh"
    if not shutil.which("zsh") and not [*folder.glob("**/bin/zsh")]:
        work = tmp_path_factory.mktemp("zsh")
        (work / "lists/partial").mkdir(parents=True)
        apt = [
            "apt-get",
            "-qq",
            "-o",
            f"Dir::State::lists={work}/lists",
            "-o",
            "APT::Sandbox::User=root",
        ]
        sh(*apt, "update")
        sh(*apt, "download", "zsh", cwd=work)
        sh("dpkg", "-x", next(work.glob("zsh_*.deb")), folder)
    return shutil.which("zsh") or str(
        next(folder.glob("**/bin/zsh"))
    )  # bin on Debian 12, usr/bin on 13


@pytest.fixture
def quiet_steps() -> Steps:
    return Steps(1, True)


Runner = Callable[..., "subprocess.CompletedProcess[str]"]
