"""The verifier's command: the GPU that should be there, wrong usage, what is a warning, odd surroundings."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from breaking import SITE, dist, uv, write
from fixtures.commands import clean_environ, sh
from fixtures.conda_environment import CondaEnvironment
from lockedenv.prefix.records import read_prefix
from test_faults_around import FAULTS as AROUND
from test_faults_of_files import FAULTS as OF_FILES
from test_faults_of_packages import FAULTS as OF_PACKAGES


def test_there_are_enough_faults_and_each_has_a_name() -> None:
    faults = [*AROUND, *OF_FILES, *OF_PACKAGES]
    names = {fault.name for fault in faults}
    assert len(names) == len(faults) >= 80


def test_the_whole_environment_is_green(conda_environment: CondaEnvironment) -> None:
    done = conda_environment.verify("--level", "quick")
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout, done.stdout
    done = conda_environment.verify("--only", "files")
    assert done.returncode == 0, done.stdout
    assert "all as installed" in done.stdout, done.stdout


def nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{folder}:{clean_environ()['PATH']}"}


H100 = "NVIDIA H100 80GB HBM3, {driver}, 81559, 9.0, GPU-1234, Disabled"


@pytest.mark.parametrize(
    "script, said",
    [
        (
            "echo '" + H100.format(driver="470.82.01") + "'",
            "the driver 470.82.01 of NVIDIA H100 80GB HBM3 is older than 525.60.13",
        ),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "nvidia-smi fails: Failed to initialize NVML",
        ),
        ("echo '[Unknown Error], [N/A]'", "is no answer to name,driver_version"),
    ],
)
def test_a_bad_driver_is_named(
    script: str, said: str, conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    done = conda_environment.verify(
        "--only", "driver", **nvidia_smi(tmp_path / "bin", script)
    )
    assert done.returncode == 1, done.stdout
    assert said in done.stdout, done.stdout
    assert "take another pod" in done.stdout, done.stdout


def test_a_gpu_check_that_cannot_run_where_a_gpu_is_fails(
    conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    environ = nvidia_smi(
        tmp_path / "bin", "echo '" + H100.format(driver="550.54.14") + "'"
    )
    done = conda_environment.verify("--only", "driver,flash-attn", **environ)
    assert done.returncode == 1
    assert (
        "PASS  driver           1 x NVIDIA H100 80GB HBM3, compute capability 9.0, driver 550.54.14"
        in done.stdout
    )
    assert re.search(
        "FAIL  flash-attn       GPU 0: AttributeError: module 'torch' has no attribute",
        done.stdout,
    ), "the stand-in"
    done = conda_environment.verify(
        "--only", "driver,flash-attn", "--gpu", "off", **environ
    )
    assert done.returncode == 0
    assert done.stdout.count("SKIP") == 2
    assert "nothing was checked" in done.stdout


def test_a_gpu_that_is_required_is_missed_whatever_is_checked(
    conda_environment: CondaEnvironment,
) -> None:
    done = conda_environment.verify("--only", "gpu-state", "--gpu", "require")
    assert done.returncode == 1, done.stdout
    assert (
        "FAIL  driver           no GPU found, and --gpu require was given"
        in done.stdout
    ), done.stdout


def test_what_may_be_meant_so_is_a_warning(broken: CondaEnvironment) -> None:
    with (broken.prefix / "activate").open("a") as file:
        file.write("export HF_HOME=/workspace/hf\n")
    done = broken.verify("--only", "present,variables", LD_PRELOAD="libm.so.6")
    assert done.returncode == 0, done.stdout
    assert (
        f"WARN  present          {broken.prefix}/activate has lines that are not the set-up's"
        in done.stdout
    )
    assert (
        "WARN  variables        LD_PRELOAD=libm.so.6 comes before every library"
        in done.stdout
    )
    conf = broken.prefix / "company.conf"
    conf.write_text("[install]\ntarget = /data\n")
    done = broken.verify("--only", "variables", PIP_CONFIG_FILE=str(conf))
    said = f"WARN  variables        pip or uv installs elsewhere, by target = /data in {conf}"
    assert said in done.stdout, done.stdout


def test_wrong_usage_exits_2(
    conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    for options, said in (
        (
            ["--only", "torhc"],
            "no check is named 'torhc'; did you mean torch? (there are: locks, place, conda-layer",
        ),
        (["--json", "/proc/nowhere/x.json"], "/proc/nowhere/x.json cannot be written"),
        (["--json", str(tmp_path)], "cannot be written (it is a folder)"),
        (["--level", "middling"], "invalid choice"),
    ):
        done = conda_environment.verify(*options)
        assert done.returncode == 2, done.stdout
        assert said in done.stdout, done.stdout
    done = conda_environment.verify("--list")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 25


def test_strays_in_a_locked_package_are_a_warning_and_what_extras_own_is_nothing(
    broken: CondaEnvironment,
) -> None:
    site = broken.prefix / SITE
    uv("install", "six==1.16.0")(broken)
    (site / "six_test.pyc").touch()
    assert "PASS  strays" in broken.verify("--only", "strays").stdout
    (site / "tqdm/new").mkdir()
    (site / "tqdm/new/module.py").touch()
    (site / "numpy.py").touch()
    done = broken.verify("--only", "strays,startup")
    assert done.returncode == 0, done.stdout
    assert "WARN  strays" in done.stdout, done.stdout
    assert "tqdm/new/module.py: no package has it, beside locked files" in done.stdout
    assert "numpy.py: no package has it, beside locked files" in done.stdout


def test_what_was_added_and_does_not_fit_is_a_warning(broken: CondaEnvironment) -> None:
    """`pip check` failed, and the verdict did not say so."""
    assert "PASS  requirements" in broken.verify("--only", "requirements").stdout
    uv("install", "--no-deps", "requests==2.32.3")(broken)
    done = broken.verify("--level", "quick", "--verbose")
    assert done.returncode == 0, done.stdout
    assert (
        "WARN  requirements     The package `requests` requires `" in done.stdout
    ), done.stdout


def test_a_uv_that_fails_is_not_taken_for_a_pass(broken: CondaEnvironment) -> None:
    write("bin/uv", lambda _: b"#!/bin/sh\nexit 3\n")(broken)
    (broken.prefix / "bin/uv").chmod(0o755)
    assert (
        "SKIP  requirements     uv does not say"
        in broken.verify("--only", "requirements").stdout
    )


def test_a_device_as_the_target_stays_one_and_a_neighbour_is_not_touched(
    broken: CondaEnvironment, tmp_path: Path
) -> None:
    (tmp_path / "r.json.probe").write_text("precious")
    assert (
        broken.verify("--only", "locks", "--json", str(tmp_path / "r.json")).returncode
        == 0
    )
    assert (tmp_path / "r.json.probe").read_text() == "precious"
    assert (tmp_path / "r.json").is_file()
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(
        ["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True
    )
    assert (
        broken.verify("--only", "locks", "--json", str(tmp_path / "pipe")).returncode
        == 0
    )
    assert '"schema_version"' in reader.communicate()[0]
    assert (tmp_path / "pipe").is_fifo()


def test_a_pipe_where_a_file_is_expected_is_not_waited_for(
    broken: CondaEnvironment,
) -> None:
    for name in (
        "idna/core.py",
        next((broken.prefix / SITE).glob("idna-*.dist-info")).name + "/METADATA",
    ):
        (broken.prefix / SITE / name).unlink()
        os.mkfifo(broken.prefix / SITE / name)
    done = broken.verify("--only", "files,pip-layer")
    assert done.returncode == 1
    assert "idna/core.py: cannot be read" in done.stdout
    assert "no readable METADATA" in done.stdout


def test_a_locale_without_unicode_is_no_traceback(broken: CondaEnvironment) -> None:
    dist("caf\u00e9", "1.0")(broken)
    environ = clean_environ(
        LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="latin-1"
    )
    program = [
        broken.prefix / "bin/python",
        broken.project / "scripts/verify_environment.py",
        "--level",
        "quick",
    ]
    done = sh(*program, check=False, env=environ, errors="replace")
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout, done.stdout


def test_the_name_and_version_are_the_headers_not_the_descriptions(
    tmp_path: Path,
) -> None:
    """distro 1.9.0 was reported as antergos 2015.10, which its description quotes."""
    info = tmp_path / "lib/python3.11/site-packages/distro-1.9.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: distro\nVersion: 1.9.0\n\n    Name: antergos\nName: antergos\nVersion: 2015.10\n"
    )
    assert [(d.name, d.version) for d in read_prefix(tmp_path).dists] == [
        ("distro", "1.9.0")
    ]
