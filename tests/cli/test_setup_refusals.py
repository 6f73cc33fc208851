"""What cannot end well is refused in one line, before anything is fetched."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import List

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.host import places

SETUP = ROOT / "scripts/setup_runpod_environment.sh"


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
    options = [
        "--backend",
        "pip",
        "--prefix",
        tmp_path / "env",
        "--cache",
        tmp_path / "cache",
    ]
    environ = {**clean_environ(PATH=str(programs)), "CXX": ""}
    done = sh(SETUP, *options, check=False, env=environ)
    assert done.returncode == 1
    assert (
        "there is no g++ for torch.compile, and CXX is not set; apt-get update"
        in done.stdout
    )
    assert "[2/6]" not in done.stdout, done.stdout
    assert not (tmp_path / "cache").exists(), done.stdout


@pytest.mark.parametrize(
    "options, status, said",
    [
        (
            ["--environment", "curent"],
            2,
            "--environment curent: there are default and current, and any folder with an environment.yml; this is none of them; did you mean current?",
        ),
        (
            ["--environment", str(ROOT / "environment.yml")],
            2,
            "environment.yml: is a file; give its folder, in which it has the name environment.yml",
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
        (
            ["--wheel", "x.whl"],
            2,
            "--wheel needs --sha256 with the wheel's 64 hex digits",
        ),
        (
            ["--wheel", f"x.whl#sha256={'0' * 64}", "--flash-attn", "none"],
            2,
            "--flash-attn none leaves it out; give one of them",
        ),
        (["--json"], 2, "--json is the plan of --dry-run: give both"),
        (["--json", "--dry-run", "--uninstall"], 2, "give both, and no --uninstall"),
        (
            ["--download-only", "/tmp", "--offline", "/tmp"],
            2,
            "--download-only fetches what",
        ),
        (
            ["--download-only", "/tmp", "--check-pod"],
            2,
            "are different tasks: give one of them",
        ),
        (["--uninstall", "--force"], 2, "--force makes it again: give one of them"),
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
    assert done.returncode == status, done.stdout
    assert said in done.stdout, done.stdout
    assert len(done.stdout.strip().splitlines()) == 1, done.stdout
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
        assert done.returncode == 1
        assert "was not made by this script" in done.stdout
    assert (tmp_path / "env/thesis.tex").read_text() == "years of work"


def test_without_python_there_is_one_clear_line(tmp_path: Path) -> None:
    for program in ("dirname", "readlink"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    for name in ("setup_runpod_environment.sh", "post_create.sh"):
        done = sh(
            "/bin/bash",
            ROOT / "scripts" / name,
            check=False,
            env={"PATH": str(tmp_path)},
        )
        assert done.returncode == 1
        [line] = done.stdout.splitlines()
        assert "needs python3 3.9 or newer to start; install it with" in line


def test_post_create_asks_for_an_environment(tmp_path: Path) -> None:
    done = sh(
        ROOT / "scripts/post_create.sh",
        check=False,
        env=clean_environ(HOME=str(tmp_path)),
    )
    assert done.returncode == 1
    assert "no environment is active; name one with --prefix DIR" in done.stdout
    done = sh(
        ROOT / "scripts/post_create.sh",
        "--prefix",
        tmp_path,
        check=False,
        env=clean_environ(),
    )
    assert done.returncode == 1
    assert "has no bin/python: it is not an environment" in done.stdout


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


def test_auto_says_why_it_takes_the_pip_backend(tmp_path: Path) -> None:
    """Where no channel answers; the mirror here is a port that nobody listens on, and so is the proxy."""
    environ = clean_environ(
        https_proxy="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9"
    )
    done = sh(
        SETUP,
        "--dry-run",
        "--prefix",
        tmp_path / "env",
        "--cache",
        tmp_path / "cache",
        env=environ,
    )
    assert re.search(
        r"backend      pip: the channel \S+ does not answer \(curl: \(\d+\)",
        done.stdout,
    ), done.stdout
    assert re.search(r"about \d\.\d GB of .* free", done.stdout)
    assert "nothing was changed" in done.stdout
    assert not (tmp_path / "env").exists()
    assert not (tmp_path / "cache").exists()
    assert not list(tmp_path.glob("env.*"))
