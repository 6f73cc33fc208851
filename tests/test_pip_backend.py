"""The pip backend, for real: torch and all from PyPI into an empty prefix, by the one command."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import jsonschema
import pytest
from conftest import ROOT, VERIFIED, clean_environ, copy_environment, sh
from lockedenv.backends import index, private_folders, uv_program
from lockedenv.cli import setup
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop
from lockedenv.host import places
from lockedenv.host.disks import has_links_and_locks
from lockedenv.host.places import default_cache
from lockedenv.install.facts import Disk, Facts, PrefixFacts, read_disk
from lockedenv.install.plan import DiskNeed, Purpose, disk_problems, needed_disks
from lockedenv.install.request import Request
from lockedenv.output import Progress
from lockedenv.prefix.lifecycle import ABSENT, Prefix, write_activate, write_guard
from lockedenv.prefix.records import added, read_prefix
from lockedenv.spec import environment, locks

SETUP = ROOT / "scripts/setup_runpod_environment.sh"
SCHEMAS = ROOT / "scripts/lockedenv/schemas"


@pytest.fixture(params=["pip_environment", "current_environment"], ids=["default", "current"])
def prefix(request: pytest.FixtureRequest) -> Path:
    """Both environments, one after the other. Not to be changed."""
    found: Path = request.getfixturevalue(request.param)
    return found


def test_one_command_ends_in_a_verified_environment(prefix: Path) -> None:
    said, of = (prefix / "said.txt").read_text(), environment.find_by_prefix(prefix)
    assert [f"[{n}/6]" in said for n in range(1, 7)] == [True] * 6
    assert "backend      pip: as asked" in said
    assert f"environment  {of.name}: {prefix}\n" in said
    assert f"enter it with:  source {prefix}/activate" in said and "Activate with" not in said
    program = (
        "import torch, transformers, bitsandbytes, peft, accelerate, datasets, scipy, statsmodels;"
        "print(torch.__version__, torch.version.cuda, transformers.__version__)"
    )
    done = sh(prefix / "bin/python", "-c", program, env=clean_environ(CUDA_VISIBLE_DEVICES=""))
    cuda, transformers = of.cuda("pip"), of.version("pip", "transformers")
    assert (
        done.stdout.splitlines()[-1]
        == f"{of.torch('pip')}+cu{cuda.replace('.', '')} {cuda} {transformers}"
    )


def test_a_second_run_has_nothing_to_do(prefix: Path) -> None:
    command = [SETUP, "--backend", "pip", "--prefix", prefix, "--level", "quick"]
    done = sh(*command, env=clean_environ())
    assert (
        "it is verified again" in done.stdout
        and "verified: every check that ran has passed" in done.stdout
    )
    assert (
        "Fetch" not in done.stdout
        and "[1/2] flash-attn" in done.stdout
        and "[2/2] Verify, quick level" in done.stdout
    )
    assert (
        f"\nenter it with:  source {prefix}/activate\n" in done.stdout
    ), "a line to copy, with nothing after it"
    quiet = sh(*command, "--quiet", env=clean_environ())
    assert quiet.stdout.startswith(VERIFIED) and quiet.stdout.count("\n") == 1


def test_without_a_python_there_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    """As on an air-gapped Debian 13, whose Python is another."""
    for name in ("scripts", "locks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("requirements.txt", "conda-lock.yml"):
        shutil.copy2(ROOT / name, tmp_path)
    for name in ("conda-lock.yml", "requirements.txt"):
        lock = tmp_path / name
        lock.write_text(
            re.sub(r'("name": "python", "version": ")[^"]*', r"\g<1>3.19.0", lock.read_text())
        )
    command = [
        tmp_path / "scripts/setup_runpod_environment.sh",
        "--backend",
        "pip",
        "--prefix",
        tmp_path / "env",
    ]
    done = sh(*command, check=False, env=clean_environ())
    assert (
        done.returncode == 1
        and "no Python 3.19 here, and uv could not fetch one: " in done.stdout
        and "put any python3.19 on PATH" in done.stdout
    )
    assert "Traceback" not in done.stdout and not (tmp_path / "env").exists(), done.stdout
    (tmp_path / "offline/wheels").mkdir(parents=True)
    for wheel in [
        f"{pin.name}-{pin.version}-py3-none-any.whl"
        for pin in environment.Environment(ROOT).wheels("pip")
    ]:
        (tmp_path / "offline/wheels" / wheel).touch()
    for path in places.default_cache().glob("wheels/uv-*.whl"):
        (tmp_path / "offline/wheels" / path.name).symlink_to(path)
    done = sh(*command, "--offline", tmp_path / "offline", check=False, env=clean_environ())
    assert (
        done.returncode == 1
        and f"no Python 3.19 here, and {tmp_path}/offline has none: " in done.stdout
    )


@pytest.mark.parametrize(
    "volume, option", [(50, "--prefix {}/env"), (5, "--prefix")], ids=["room on the volume", "none"]
)
def test_a_root_disk_of_5_gb_is_refused_with_the_option_that_works(
    tmp_path: Path, volume: int, option: str
) -> None:
    request = Request(tmp_path / "env", environment.Environment(ROOT), tmp_path / "volume/cache")
    small = Disk(tmp_path / "env", device=1, free=5 * 10**9)
    needs = [
        DiskNeed(small, Purpose.ENVIRONMENT, 6_200_000_000),
        DiskNeed(Disk(request.cache, device=2, free=volume * 10**9), Purpose.CACHE, 3_200_000_000),
    ]
    pod_volume = Disk(tmp_path / "volume", device=2, free=volume * 10**9)
    [problem] = disk_problems(request, "pip", needs, pod_volume)
    said = f"need about 6.2 GB at {tmp_path}/env, 5.0 GB are free; free 1.2 GB, or choose another disk with "
    assert str(problem).endswith(said + option.format(tmp_path / "volume"))


def needed(request: Request) -> List[Tuple[int, str]]:
    """Bytes and purpose of each disk, for the pip backend."""
    found = Facts(
        PrefixFacts(ABSENT),
        prefix_disk=read_disk(request.prefix),
        cache_disk=read_disk(request.cache),
        temporary_disk=read_disk(request.prefix),
        links_and_locks=has_links_and_locks(request.prefix),
    )
    return [(need.needed, need.purpose.value) for need in needed_disks(request, found, "pip")]


@pytest.mark.parametrize("lacking", ["os.link", "fcntl.flock"])
def test_on_a_disk_without_links_or_locks_uv_unpacks_elsewhere_and_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """uv stopped: it could not lock its cache, and that was told as a Python that is not there."""
    request = Request(tmp_path / "env", environment.Environment(ROOT), tmp_path / "cache")
    before = needed(request)
    total = sum(pin.size for pin in request.environment.wheels("pip"))
    has_links_and_locks.cache_clear()

    real = {"os.link": os.link, "fcntl.flock": fcntl.flock}[lacking]

    def refuse(what: Any, *more: Any) -> None:
        if str(tmp_path) in str(getattr(what, "name", what)):
            raise PermissionError("as bindfs says it")
        real(what, *more)

    try:
        with monkeypatch.context() as there:
            there.setattr(lacking, refuse)
            environ = uv_program.uv_environment(request.cache, request.prefix, {})
            after = needed(request)
            there.setattr(tempfile, "tempdir", str(tmp_path))
            with pytest.raises(
                Stop,
                match="neither the disk of .* hard links and file locks, which uv needs: set TMPDIR",
            ):
                uv_program.uv_environment(request.cache, request.prefix, {})
    finally:
        has_links_and_locks.cache_clear()
    assert environ["UV_LINK_MODE"] == "copy" and environ["UV_CACHE_DIR"] == str(
        private_folders.temporary("uv", request.prefix)
    )
    assert (
        uv_program.uv_environment(request.cache, request.prefix, {})["UV_LINK_MODE"] == "hardlink"
    )
    assert [what for _, what in before] == ["the environment and the cache"]
    assert after == [
        (before[0][0] + total, "the environment and the cache"),
        (before[0][0], "what is unpacked"),
    ]


def test_an_environment_without_its_pyvenv_cfg_is_not_taken_for_the_machines_python(
    pip_environment: Path, tmp_path: Path
) -> None:
    """uv installed into the Python that the environment was made of, even once the file was back: it had kept what it knew."""
    env, cache = copy_environment(pip_environment, tmp_path / "env", links=True), tmp_path / "cache"
    uv = default_cache() / f"bin/uv-{uv_program.uv_pin().sha256[:12]}"
    (env / "pyvenv.cfg").rename(tmp_path / "pyvenv.cfg")
    command = [
        ROOT / "scripts/post_create.sh",
        "--prefix",
        env,
        "--cache",
        cache,
        "--level",
        "quick",
    ]
    done = sh(*command, check=False, env=clean_environ())
    assert (
        done.returncode == 1
        and f"{env}/pyvenv.cfg is gone, so the environment's Python is the machine's" in done.stdout
    )
    known = sh(
        uv,
        "pip",
        "list",
        "--python",
        env / "bin/python",
        env=clean_environ(UV_CACHE_DIR=str(cache / "uv")),
    ).stdout
    assert not re.search("^torch ", known, re.M), "uv has seen the machine's Python there"
    (tmp_path / "pyvenv.cfg").rename(env / "pyvenv.cfg")
    environ = uv_program.uv_environment(cache, env, dict(os.environ))
    assert re.search(
        "^torch ", sh(uv, "pip", "list", "--python", env / "bin/python", env=environ).stdout, re.M
    )


def test_without_a_compiler_on_a_gpu_pod_nothing_is_fetched(tmp_path: Path) -> None:
    """torch.compile failed at the very end."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "python3", "curl", "git", "dirname", "readlink"):
        (programs / name).symlink_to(os.path.realpath(str(shutil.which(name))))
    (programs / "nvidia-smi").write_text(
        "#!/bin/bash\necho 'NVIDIA H100 80GB HBM3, 550.54.14, 81559, 9.0, GPU-1, Disabled'\n"
    )
    (programs / "nvidia-smi").chmod(0o755)
    options = ["--backend", "pip", "--prefix", tmp_path / "env", "--cache", tmp_path / "cache"]
    environ = {**clean_environ(PATH=str(programs)), "CXX": ""}
    done = sh(SETUP, *options, check=False, env=environ)
    assert (
        done.returncode == 1
        and "there is no g++ for torch.compile, and CXX is not set; apt-get update" in done.stdout
    )
    assert "[2/6]" not in done.stdout and not (tmp_path / "cache").exists(), done.stdout


def test_pips_further_places_are_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """extra-index-url and find-links were ignored."""
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    found = index.index_settings(dict(os.environ))
    assert found["UV_EXTRA_INDEX_URL"] == "http://127.0.0.1:9/simple" and found[
        "UV_FIND_LINKS"
    ] == str(tmp_path / "links")


@pytest.mark.parametrize("quiet", ["PIP_QUIET=1", "pip.conf"])
def test_a_pip_that_is_told_to_be_quiet_still_tells_its_index(
    quiet: str, no_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set-up went past a company's index, in silence."""
    (tmp_path / "pip.conf").write_text(
        f"[global]\nindex-url = http://mine.example/simple\n{'quiet = 1' * (quiet == 'pip.conf')}\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    if quiet == "PIP_QUIET=1":
        monkeypatch.setenv("PIP_QUIET", "1")
    theirs = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("UV_") and name != "PIP_INDEX_URL"
    }
    assert index.index_settings(theirs)["UV_DEFAULT_INDEX"] == "http://mine.example/simple"


def test_what_goes_on_is_shown_while_uv_tries_the_first_index_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """For minutes nothing was said, where pip.conf names further indexes."""
    monkeypatch.setattr(
        Progress, "show", lambda self, text: self.quiet or print(text(), file=sys.stderr)
    )
    command = [sys.executable, "-c", "import time; print('uv says'); time.sleep(0.2)"]
    uv_program.run_uv(
        command,
        {**os.environ, "UV_EXTRA_INDEX_URL": "http://127.0.0.1:9/simple"},
        "installing",
        False,
    )
    said = capfd.readouterr()
    assert "installing, 0 s" in said.err and not said.out, "what uv says belongs to the second try"


def test_auto_says_why_it_takes_the_pip_backend(tmp_path: Path) -> None:
    """Where no channel answers; the mirror here is a port that nobody listens on, and so is the proxy."""
    environ = clean_environ(https_proxy="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
    done = sh(
        SETUP, "--dry-run", "--prefix", tmp_path / "env", "--cache", tmp_path / "cache", env=environ
    )
    assert re.search(
        r"backend      pip: the channel \S+ does not answer \(curl: \(\d+\)", done.stdout
    ), done.stdout
    assert (
        re.search(r"about \d\.\d GB of .* free", done.stdout)
        and "nothing was changed" in done.stdout
    )
    assert (
        not (tmp_path / "env").exists()
        and not (tmp_path / "cache").exists()
        and not list(tmp_path.glob("env.*"))
    )


def test_the_whole_verifier_on_the_real_environment(prefix: Path, tmp_path: Path) -> None:
    """Full level, as a user runs it, from another directory; the document is the documented one."""
    target = tmp_path / "new" / "verify.json"
    program = ROOT / "scripts/verify_environment.py"
    # As one node of a RunPod cluster, whose other nodes do not answer.
    cluster = {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "NODE_RANK": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "9",
    }
    command = [prefix / "bin/python", program, "--json", target]
    done = sh(*command, check=False, cwd=tmp_path, env=clean_environ(**cluster))
    assert done.returncode == 0, done.stdout
    document: Dict[str, Any] = json.loads(target.read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "verify.schema.json").read_text()))
    verdicts = {r["check"]: r["verdict"] for r in document["results"]}
    assert not [name for name, verdict in verdicts.items() if verdict == "fail"]
    ran = "files imports torch-build torch torch-compile sdpa bitsandbytes transformers qlora accelerate datasets tokenizers hub"
    assert [verdicts[name] for name in ran.split()] == ["pass"] * len(ran.split()), done.stdout
    current = environment.find_by_prefix(prefix).name == "current"
    assert (
        verdicts["trainer-resume"] == ("pass" if current else "warn")
        and verdicts["statistics"] == "pass"
    )
    assert verdicts["vulnerabilities"] == ("pass" if current else "warn")
    gpu_only = ["driver", "async-error", "gpu-speed", "gpu-state"]
    assert [verdicts[name] for name in gpu_only] == ["skip"] * 4
    assert verdicts["triton"] == "compiled"
    assert verdicts["flash-attn"] == ("compiled" if current else "skip")
    assert (
        f"{list(verdicts.values()).count('pass')} passed" in done.stdout
        and "skipped" in done.stdout
    )
    assert "\033" not in done.stdout


def test_the_checks_logic_on_the_cpu(prefix: Path) -> None:
    """tests/in_environment runs in the environment itself: what the numerical checks say of kernels that are wrong.

    What they decide is the same code in both; `current` runs what its own libraries may break.
    """
    python, tests = prefix / "bin/python", ROOT / "tests/in_environment"
    options = [
        "-q",
        "--rootdir",
        tests,
        "--confcutdir",
        tests,
        "-c",
        "/dev/null",
        "-p",
        "no:cacheprovider",
    ]
    options += (
        []
        if environment.find_by_prefix(prefix).name == "default"
        else [
            "-k",
            "documents or fork or bit_for_bit or see_ or flash_attention_4 or triton or system_cuda",
        ]
    )
    done = sh(
        python,
        "-m",
        "pytest",
        *options,
        tests,
        check=False,
        env=clean_environ(PYTHONPATH=str(ROOT / "scripts")),
    )
    assert done.returncode == 0, done.stdout


def test_what_people_install_leaves_what_is_locked_or_stops(prefix: Path, tmp_path: Path) -> None:
    """`pip install trl` took transformers and torch away in silence."""
    env = copy_environment(prefix, tmp_path / "my env", links=True)
    of, python = environment.find_by_prefix(env), env / "bin/python"
    write_guard(Prefix(env), of.wheels("pip"))  # in its own place
    write_activate(env, "pip")
    before = sorted(path.name for path in env.glob("lib/python*/site-packages/*.dist-info"))
    settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    enter = ["bash", "-c", f'source "{env}/activate" && "$@"', "bash"]
    for installer in ([python, "-m", "pip"], [*enter, "uv", "pip"]):
        done = sh(
            *installer,
            "install",
            "transformers==4.50.0",
            check=False,
            env=clean_environ(**settings),
        )
        assert done.returncode and re.search(
            "ResolutionImpossible|No solution found", done.stdout
        ), done.stdout
    (tmp_path / "more.txt").write_text(
        "six<2\n"
    )  # a variable of the image would take the place of pip.conf's constraint
    settings["PIP_CONSTRAINT"] = str(tmp_path / "more.txt")
    done = sh(
        *enter,
        "python",
        "-m",
        "pip",
        "install",
        "transformers==4.50.0",
        check=False,
        env=clean_environ(**settings),
    )
    assert done.returncode and "ResolutionImpossible" in done.stdout, done.stdout
    del settings["PIP_CONSTRAINT"]
    done = sh(python, "-m", "pip", "install", "trl", "--dry-run", env=clean_environ(**settings))
    would = re.findall(r"(\S+)-\d\S*", done.stdout.split("Would install")[1])
    assert "trl" in would and not {locks.canonical(name) for name in would} & set(of.names()), would
    assert before == sorted(path.name for path in env.glob("lib/python*/site-packages/*.dist-info"))
    sh(python, "-m", "pip", "install", "humanize", env=clean_environ(**settings))
    # The tools of people who write code change nothing of the base.
    requirements = of.folder / "requirements-dev.txt"
    sh(python, "-m", "pip", "install", "-r", requirements, env=clean_environ(**settings))
    sh(python, "-m", "sphinx", "--version", env=clean_environ())
    done = sh(
        python, ROOT / "scripts/verify_environment.py", "--level", "quick", env=clean_environ()
    )
    assert VERIFIED in done.stdout and "beyond the lock: " in done.stdout, done.stdout
    assert "humanize" in str(added(read_prefix(env)))
    # Without the guard.
    (env / "pip.conf").unlink()
    done = sh(
        python,
        "-m",
        "pip",
        "install",
        "transformers==4.50.0",
        "--dry-run",
        "--no-deps",
        env=clean_environ(**settings),
    )
    assert "Would install transformers-4.50.0" in done.stdout
    assert sh(*enter, "printenv", "UV_CONSTRAINT", check=False, env=clean_environ()).returncode == 1


@pytest.mark.parametrize(
    "options, status, said",
    [
        (
            ["--environment", "curent"],
            2,
            "--environment curent: there are default and current, and any folder with an environment.yml; this is none of them; did you mean current?",
        ),
        (["--prefix", "/proc/env"], 1, "/proc/env cannot be made"),
        (
            ["--offline", "/nowhere"],
            2,
            "--offline /nowhere: is not a folder; make it with --download-only /nowhere",
        ),
        (["--arch", "70"], 1, "flash-attn cannot be built for compute capability 7.0"),
        (["--sha256", "0"], 2, "--sha256 is the hash of --wheel; give both"),
        (["--jobs", "0"], 2, "give a positive number"),
        (["--wheel", "x.whl"], 2, "--wheel needs --sha256 with the wheel's 64 hex digits"),
        (["--json"], 2, "--json is the plan of --dry-run: give both"),
        (["--download-only", "/tmp", "--offline", "/tmp"], 2, "--download-only fetches what"),
        (
            ["--flash-atn", "none"],
            2,
            "unrecognized arguments: --flash-atn none; did you mean --flash-attn?",
        ),
    ],
)
def test_a_refusal_is_one_line_before_anything_is_downloaded(
    options: List[str], status: int, said: str, tmp_path: Path
) -> None:
    more = [] if "--prefix" in options else ["--prefix", tmp_path / "env"]
    done = sh(
        SETUP,
        "--backend",
        "pip",
        "--cache",
        tmp_path / "cache",
        *more,
        *options,
        check=False,
        env=clean_environ(),
    )
    assert (
        done.returncode == status
        and said in done.stdout
        and len(done.stdout.strip().splitlines()) == 1
    ), done.stdout
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_is_not_ours_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env/thesis.tex").write_text("years of work")
    for more in ([], ["--force"]):
        done = sh(
            SETUP,
            "--backend",
            "pip",
            "--prefix",
            tmp_path / "env",
            *more,
            check=False,
            env=clean_environ(),
        )
        assert done.returncode == 1 and "was not made by this script" in done.stdout
    assert (tmp_path / "env/thesis.tex").read_text() == "years of work"


def test_without_python_there_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    for name in ("setup_runpod_environment.sh", "post_create.sh"):
        done = sh("/bin/bash", ROOT / "scripts" / name, check=False, env={"PATH": str(tmp_path)})
        assert (
            done.returncode == 1
            and "needs python3 3.9 or newer to start; install it with" in done.stdout
        )


def test_post_create_asks_for_an_environment(tmp_path: Path) -> None:
    done = sh(ROOT / "scripts/post_create.sh", check=False, env=clean_environ(HOME=str(tmp_path)))
    assert (
        done.returncode == 1
        and "no environment is active; name one with --prefix DIR" in done.stdout
    )
    done = sh(
        ROOT / "scripts/post_create.sh", "--prefix", tmp_path, check=False, env=clean_environ()
    )
    assert done.returncode == 1 and "has no bin/python: it is not an environment" in done.stdout


def test_only_a_pods_volume_is_taken_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A plain folder /workspace moved everyone's cache."""
    for name in ("RUNPOD_POD_ID", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(places, "POD_VOLUME", tmp_path)
    assert places.default_cache() == Path.home() / ".cache/maximalcai"
    monkeypatch.setenv("RUNPOD_POD_ID", "x")
    assert places.default_cache() == tmp_path / ".cache/maximalcai"


@pytest.fixture
def no_memory() -> Iterator[None]:
    index.pip_command.cache_clear()
    yield
    index.pip_command.cache_clear()


def test_a_virtual_environment_without_pip_asks_the_python_that_it_was_made_of(
    no_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert index.pip_command()[0] == sys._base_executable  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "_base_executable", "/bin/false")
    monkeypatch.setenv("PATH", "/nowhere")
    index.pip_command.cache_clear()
    with pytest.raises(
        Stop, match="no pip here to fetch uv with; install it with: apt-get install python3-pip"
    ):
        uv_program.bring_uv(tmp_path, Steps(1, True))


@pytest.mark.parametrize(
    "command", ["--backend pip --prefix {0}/env --cache {0}/cache", "--download-only {0}/cache"]
)
def test_without_pip_that_is_said_before_anything_is_done(
    command: str,
    no_memory: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was said in the second step; --download-only said it after three gigabytes."""
    for name in ("executable", "_base_executable"):
        monkeypatch.setattr(sys, name, "/bin/false")
    monkeypatch.setenv("PATH", "/nowhere")
    arguments = setup.parser().parse_args(command.format(tmp_path).split())
    with pytest.raises(
        Stop, match="no pip here to fetch uv with; install it with: apt-get install python3-pip"
    ):
        setup.work(arguments)
    assert (
        capsys.readouterr() == ("", "")
        and not (tmp_path / "cache").exists()
        and not (tmp_path / "env").exists()
    )


def test_the_wheels_of_debians_ensurepip_are_a_source_of_pip(
    no_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its python3-venv keeps them elsewhere, in a folder that the configuration names."""
    (tmp_path / "pip-1-py3-none-any.whl").touch()
    (tmp_path / "pip.py").write_text("raise ImportError\n")
    (tmp_path / "ensurepip.py").touch()
    (tmp_path / "python3").write_text(
        f"#!{sys.executable}\nimport sys, sysconfig\nsys.path.insert(0, {str(tmp_path)!r})\n"
        f"sysconfig.get_config_vars()['WHEEL_PKG_DIR'] = {str(tmp_path)!r}\nexec(sys.argv[2])\n"
    )
    (tmp_path / "python3").chmod(0o755)
    for name in ("executable", "_base_executable"):
        monkeypatch.setattr(sys, name, str(tmp_path / "python3"))
    assert index.pip_command() == [
        str(tmp_path / "python3"),
        f"{tmp_path}/pip-1-py3-none-any.whl/pip",
    ]
