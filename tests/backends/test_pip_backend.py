"""The pip backend, for real: torch and all from PyPI into an empty prefix, by the one command."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict

import jsonschema
import pytest
from fixtures.commands import ROOT, VERIFIED, clean_environ, sh
from fixtures.conda_environment import copy_environment
from lockedenv.backends import uv_program
from lockedenv.host.places import default_cache
from lockedenv.prefix.activation import write_activate, write_guard
from lockedenv.prefix.extras import list_added
from lockedenv.prefix.make_inventory import complete_inventory
from lockedenv.prefix.place import Prefix
from lockedenv.spec import environment, locks
from lockedenv.spec.layers import BackendName

SETUP = ROOT / "scripts/setup_runpod_environment.sh"
SCHEMAS = ROOT / "scripts/lockedenv/schemas"


@pytest.fixture(
    params=["pip_environment", "current_environment"], ids=["default", "current"]
)
def real_prefix(request: pytest.FixtureRequest) -> Path:
    """Both environments, one after the other. Not to be changed."""
    found: Path = request.getfixturevalue(request.param)
    return found


def test_one_command_ends_in_a_verified_environment(real_prefix: Path) -> None:
    said = (real_prefix / "said.txt").read_text()
    of = environment.find_by_prefix(real_prefix)
    assert [f"[{n}/6]" in said for n in range(1, 7)] == [True] * 6
    assert f"{of.name}, pip backend: as asked; " in said
    assert f"  {real_prefix}: torch {of.torch(BackendName.PIP)}, transformers " in said
    assert len(said.splitlines()) <= 20
    assert f"enter it with:  source {real_prefix}/activate" in said
    assert "Activate with" not in said
    program = (
        "import torch, transformers, bitsandbytes, peft, accelerate, datasets, scipy, statsmodels;"
        "print(torch.__version__, torch.version.cuda, transformers.__version__)"
    )
    done = sh(
        real_prefix / "bin/python",
        "-c",
        program,
        env=clean_environ(CUDA_VISIBLE_DEVICES=""),
    )
    cuda = of.cuda(BackendName.PIP)
    transformers = of.version(BackendName.PIP, "transformers")
    assert (
        done.stdout.splitlines()[-1]
        == f"{of.torch(BackendName.PIP)}+cu{cuda.replace('.', '')} {cuda} {transformers}"
    )


def test_a_second_run_has_nothing_to_do(real_prefix: Path) -> None:
    command = [SETUP, "--backend", "pip", "--prefix", real_prefix, "--level", "quick"]
    done = sh(*command, env=clean_environ())
    assert "it is verified again" in done.stdout
    assert "verified: no check failed" in done.stdout
    assert "Fetch" not in done.stdout
    assert "[1/2] flash-attn" in done.stdout
    assert "[2/2] Verify, quick level" in done.stdout
    assert (
        f"\nenter it with:  source {real_prefix}/activate\n" in done.stdout
    ), "a line to copy, with nothing after it"
    quiet = sh(*command, "--quiet", env=clean_environ())
    compared = "[0-9]+ paths, compared by type, size and modification time"
    assert re.fullmatch(
        rf"{VERIFIED} \(quick level; {compared}\)\n", quiet.stdout
    ), quiet.stdout


def test_an_environment_without_its_pyvenv_cfg_is_not_taken_for_the_machines_python(
    pip_environment: Path, tmp_path: Path
) -> None:
    """uv installed into the Python that the environment was made of, even once the file was back: it had kept what it knew."""
    env = copy_environment(pip_environment, tmp_path / "env", links=True)
    cache = tmp_path / "cache"
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
    assert done.returncode == 1
    assert (
        f"{env}/pyvenv.cfg is gone, so the environment's Python is the machine's"
        in done.stdout
    )
    known = sh(
        uv,
        "pip",
        "list",
        "--python",
        env / "bin/python",
        env=clean_environ(UV_CACHE_DIR=str(cache / "uv")),
    ).stdout
    assert not re.search(
        "^torch ", known, re.M
    ), "uv has seen the machine's Python there"
    (tmp_path / "pyvenv.cfg").rename(env / "pyvenv.cfg")
    environ = uv_program.uv_environment(cache, env, dict(os.environ))
    assert re.search(
        "^torch ",
        sh(uv, "pip", "list", "--python", env / "bin/python", env=environ).stdout,
        re.M,
    )


def test_the_whole_verifier_on_the_real_environment(
    real_prefix: Path, tmp_path: Path
) -> None:
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
    command = [real_prefix / "bin/python", program, "--json", target]
    done = sh(*command, check=False, cwd=tmp_path, env=clean_environ(**cluster))
    assert done.returncode == 0, done.stdout
    document: Dict[str, Any] = json.loads(target.read_text())
    jsonschema.validate(
        document, json.loads((SCHEMAS / "verify.schema.json").read_text())
    )
    verdicts = {r["check"]: r["verdict"] for r in document["results"]}
    assert not [name for name, verdict in verdicts.items() if verdict == "fail"]
    ran = "files imports torch-build torch torch-compile sdpa bitsandbytes transformers qlora accelerate datasets tokenizers hub"
    assert [verdicts[name] for name in ran.split()] == ["pass"] * len(
        ran.split()
    ), done.stdout
    current = environment.find_by_prefix(real_prefix).name == "current"
    assert verdicts["trainer-resume"] == ("pass" if current else "warn")
    assert verdicts["statistics"] == "pass"
    assert verdicts["vulnerabilities"] == ("pass" if current else "warn")
    gpu_only = ["driver", "async-error", "gpu-speed", "gpu-state"]
    assert [verdicts[name] for name in gpu_only] == ["skip"] * 4
    assert verdicts["triton"] == "compiled"
    assert verdicts["flash-attn"] == ("compiled" if current else "skip")
    assert f"{list(verdicts.values()).count('pass')} passed" in done.stdout
    assert "skipped" in done.stdout
    assert "\033" not in done.stdout


def test_what_people_install_leaves_what_is_locked_or_stops(
    real_prefix: Path, tmp_path: Path
) -> None:
    """`pip install trl` took transformers and torch away in silence."""
    env = copy_environment(real_prefix, tmp_path / "my env", links=True)
    of = environment.find_by_prefix(env)
    python = env / "bin/python"
    copied = Prefix(env)
    # In its own place.
    written = write_guard(copied, of.wheels(BackendName.PIP), BackendName.PIP, True)
    complete_inventory(env, [], written + write_activate(copied, BackendName.PIP))
    before = sorted(
        path.name for path in env.glob("lib/python*/site-packages/*.dist-info")
    )
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
        assert done.returncode, done.stdout
        assert re.search(
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
    assert done.returncode, done.stdout
    assert "ResolutionImpossible" in done.stdout, done.stdout
    del settings["PIP_CONSTRAINT"]
    done = sh(
        python,
        "-m",
        "pip",
        "install",
        "trl",
        "--dry-run",
        env=clean_environ(**settings),
    )
    would = re.findall(r"(\S+)-\d\S*", done.stdout.split("Would install")[1])
    assert "trl" in would, would
    assert not {locks.canonical(name) for name in would} & set(of.names()), would
    assert before == sorted(
        path.name for path in env.glob("lib/python*/site-packages/*.dist-info")
    )
    sh(python, "-m", "pip", "install", "humanize", env=clean_environ(**settings))
    # The tools of people who write code change nothing of the base.
    requirements = of.folder / "requirements-dev.txt"
    sh(
        python,
        "-m",
        "pip",
        "install",
        "-r",
        requirements,
        env=clean_environ(**settings),
    )
    sh(python, "-m", "sphinx", "--version", env=clean_environ())
    done = sh(
        python,
        ROOT / "scripts/verify_environment.py",
        "--level",
        "quick",
        env=clean_environ(),
    )
    assert VERIFIED in done.stdout, done.stdout
    assert "beyond the lock: " in done.stdout, done.stdout
    assert "humanize" in str(list_added(env))
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
    assert (
        sh(
            *enter, "printenv", "UV_CONSTRAINT", check=False, env=clean_environ()
        ).returncode
        == 1
    )
