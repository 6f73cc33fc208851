"""Breaks a real environment, one fault at a time: the verdict, the message, and that only the named check sees it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import pytest
from conftest import CondaEnvironment, clean_environ, remark, sh
from lockedenv.prefix.records import read_prefix

SITE = "lib/python3.11/site-packages"
Break = Callable[[CondaEnvironment], Any]


class Fault(NamedTuple):
    name: str
    check: str
    said: str
    do: Break
    environ: Dict[str, str] = {}
    options: List[str] = []


def meta(env: CondaEnvironment, name: str) -> Path:
    return next(
        p
        for p in (env.prefix / "conda-meta").glob(f"{name}-*.json")
        if json.loads(p.read_text())["name"] == name
    )


def record(name: str, **changes: Any) -> Break:
    """Changes fields of a package's conda record."""

    def do(env: CondaEnvironment) -> None:
        path = meta(env, name)
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return do


def removed(name: str) -> Break:
    return lambda env: meta(env, name).unlink()


def dist(name: str, version: str, text: str = "") -> Break:
    """Puts a distribution there as pip would."""

    def do(env: CondaEnvironment) -> None:
        info = env.prefix / SITE / f"{name}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            text or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text("")

    return do


def undist(name: str) -> Break:
    return lambda env: shutil.rmtree(next((env.prefix / SITE).glob(f"{name}-*.dist-info")))


def both(*steps: Break) -> Break:
    def do(env: CondaEnvironment) -> None:
        for step in steps:
            step(env)

    return do


def uv(*arguments: str) -> Break:
    def do(env: CondaEnvironment) -> None:
        sh(
            env.prefix / "bin/uv",
            "pip",
            *arguments,
            "--python",
            env.prefix / "bin/python",
            env=clean_environ(),
        )

    return do


def link(path: str, target: str) -> Break:
    def do(env: CondaEnvironment) -> None:
        (env.prefix / path).unlink(missing_ok=True)
        (env.prefix / path).symlink_to(target)

    return do


def write(path: str, change: Callable[[bytes], bytes]) -> Break:
    """Rewrites a file of the prefix, in a new file: the old one is linked with the cache."""

    def do(env: CondaEnvironment) -> None:
        content = (env.prefix / path).read_bytes() if (env.prefix / path).exists() else b""
        (env.prefix / path).unlink(missing_ok=True)
        (env.prefix / path).parent.mkdir(parents=True, exist_ok=True)
        (env.prefix / path).write_bytes(change(content))

    return do


def lock(path: str, change: Callable[[str], str]) -> Break:
    return lambda env: (env.project / path).write_text(change((env.project / path).read_text()))


def module(code: str) -> Break:
    """A tokenizers package that does this when it is imported by its check's child."""
    return write(f"{SITE}/tokenizers/__init__.py", lambda _: code.encode())


def write_info(name: str, file: str, change: Callable[[bytes], bytes]) -> Break:
    """Rewrites a file of a distribution's dist-info."""

    def do(env: CondaEnvironment) -> None:
        path = next((env.prefix / SITE).glob(f"{name}-*.dist-info")) / file
        content = change(path.read_bytes())
        path.unlink()
        path.write_bytes(content)

    return do


def editable(name: str) -> Break:
    """`pip install -e` of an altered package that says that it is of the locked version."""

    def do(env: CondaEnvironment) -> None:
        info = next((env.prefix / SITE).glob(f"{name}-*.dist-info"))
        source = env.prefix.parent / "altered"
        source.mkdir()
        (source / f"{name}.py").write_text("altered = True\n")
        version = info.name.split("-")[1][: -len(".dist")]
        (source / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "{version}"\n[tool.setuptools]\npy-modules = ["{name}"]\n'
        )
        options = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-e", source]
        sh(env.prefix / "bin/python", "-m", "pip", *options, env=clean_environ())

    return do


def owned_by(name: str, path: str) -> Break:
    """A distribution of no lock whose RECORD names a file of site-packages, with its hash."""

    def do(env: CondaEnvironment) -> None:
        dist(name, "1.0")(env)
        digest = (
            base64.urlsafe_b64encode(
                hashlib.sha256((env.prefix / SITE / path).read_bytes()).digest()
            )
            .decode()
            .rstrip("=")
        )
        (env.prefix / SITE / f"{name}-1.0.dist-info/RECORD").write_text(
            f"{path},sha256={digest},1\n{name}-1.0.dist-info/RECORD,,\n"
        )

    return do


def flip(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


CHILD = ["--only", "tokenizers"]
FILES = ["--only", "files"]
FAULTS = [
    Fault(
        "conda package removed",
        "conda-layer",
        "tqdm: missing",
        both(removed("tqdm"), undist("tqdm")),
    ),
    Fault(
        "conda package of another version",
        "conda-layer",
        "tqdm: version is 4.0, locked is",
        record("tqdm", version="4.0"),
    ),
    Fault(
        "another build",
        "conda-layer",
        "libcublas: build is 1, locked is 0",
        record("libcublas", build="1"),
    ),
    Fault(
        "another channel",
        "conda-layer",
        "libcublas: channel is defaults, locked is nvidia",
        record("libcublas", channel="https://repo.example/pkgs/defaults", url=""),
    ),
    Fault(
        "another archive (sha256)",
        "conda-layer",
        "mkl: archive sha256 is 00",
        record("mkl", sha256="0" * 64),
    ),
    Fault(
        "another archive (md5)",
        "conda-layer",
        "mkl: archive md5 is 00",
        record("mkl", md5="0" * 32),
    ),
    Fault(
        "no hash recorded",
        "conda-layer",
        "mkl: its conda record has no hash",
        record("mkl", sha256="", md5=""),
    ),
    Fault(
        "two conda records",
        "conda-layer",
        "mkl: has 2 conda records",
        lambda env: shutil.copy(
            meta(env, "mkl"), env.prefix / "conda-meta/mkl-2022.1.0-again.json"
        ),
    ),
    Fault(
        "a record that is no JSON",
        "conda-layer",
        "is not a conda record",
        lambda env: meta(env, "tqdm").write_text("{"),
    ),
    Fault(
        "pip reinstalled a conda package",
        "conda-layer",
        "tqdm: pip put",
        uv("install", "--reinstall", "--no-deps", "tqdm==4.70.0"),
    ),
    Fault(
        "pip put another version over conda's",
        "conda-layer",
        "packaging: pip put 24.2 over conda's",
        uv("install", "--no-deps", "packaging==24.2"),
    ),
    Fault(
        "installed by pip, not by conda",
        "conda-layer",
        "tqdm: installed by pip",
        both(uv("uninstall", "tqdm"), removed("tqdm"), dist("tqdm", "4.70.0")),
    ),
    Fault(
        "a conda package's dist-info is gone",
        "conda-layer",
        "tqdm: its dist-info is gone",
        undist("tqdm"),
    ),
    Fault("wheel removed", "pip-layer", "idna: missing, locked is", uv("uninstall", "idna")),
    Fault(
        "wheel downgraded",
        "pip-layer",
        "idna: version is 3.7, locked is",
        uv("install", "--no-deps", "idna==3.7"),
    ),
    Fault("wheel installed twice", "pip-layer", "idna: installed 2 times", dist("idna", "3.1")),
    Fault(
        "wheel put there by conda",
        "pip-layer",
        "idna: installed by conda, locked from PyPI",
        lambda env: (env.prefix / "conda-meta/idna-1-0.json").write_text(
            json.dumps(
                {
                    "name": "idna",
                    "version": "1",
                    "build": "0",
                    "channel": "conda-forge",
                    "paths_data": {
                        "paths": [
                            {
                                "_path": str(
                                    next((env.prefix / SITE).glob("idna-*.dist-info")).relative_to(
                                        env.prefix
                                    )
                                )
                                + "/METADATA"
                            }
                        ]
                    },
                }
            )
        ),
    ),
    Fault(
        "a package of no lock, twice",
        "pip-layer",
        "trl: installed 2 times",
        both(dist("trl", "1.0"), dist("trl", "2.0")),
    ),
    Fault(
        "METADATA missing",
        "pip-layer",
        "has no readable METADATA; reinstall idna",
        lambda env: next((env.prefix / SITE).glob("idna-*.dist-info/METADATA")).unlink(),
    ),
    Fault(
        "mkl 2024.1",
        "blas",
        "mkl is 2024.1.0: torch and numpy are locked with 2022.1.0",
        record("mkl", version="2024.1.0"),
    ),
    Fault(
        "OpenBLAS instead of MKL",
        "blas",
        "numpy's BLAS is not MKL",
        record("libblas", build="16_linux64_openblas"),
    ),
    Fault(
        "libblas links elsewhere",
        "blas",
        "libblas.so.3 is libopenblas.so.0",
        both(
            write("lib/libopenblas.so.0", lambda _: b"blas"),
            link("lib/libblas.so.3", "libopenblas.so.0"),
        ),
    ),
    Fault(
        "numpy from pip",
        "blas",
        "numpy 2.4.6 was put there by pip: its BLAS is OpenBLAS",
        uv("install", "--reinstall", "--no-deps", "numpy==2.4.6"),
    ),
    Fault(
        "a second OpenMP runtime",
        "openmp",
        "2 OpenMP runtimes: libgomp.so.1, libomp.so",
        write("lib/libgomp.so.1", lambda _: b"another"),
    ),
    Fault(
        "another CUDA on LD_LIBRARY_PATH",
        "variables",
        "LD_LIBRARY_PATH has",
        write("../elsewhere/libnvJitLink.so.12", lambda _: b""),
        {"LD_LIBRARY_PATH": "{prefix}/../elsewhere"},
    ),
    Fault(
        "BNB_CUDA_VERSION",
        "variables",
        "BNB_CUDA_VERSION=118",
        lambda env: None,
        {"BNB_CUDA_VERSION": "118"},
    ),
    Fault(
        "PYTHONPATH",
        "variables",
        "PYTHONPATH=/elsewhere is searched before",
        lambda env: None,
        {"PYTHONPATH": "/elsewhere"},
    ),
    Fault(
        "hf-transfer enabled and missing",
        "hf-transfer",
        "is set and hf_transfer is not installed",
        uv("uninstall", "hf-transfer"),
        {"HF_HUB_ENABLE_HF_TRANSFER": "1"},
    ),
    Fault(
        "torchao that breaks peft",
        "companions",
        "torchao 0.10: it is not of the lock",
        dist("torchao", "0.10"),
    ),
    Fault(
        "setuptools missing",
        "companions",
        "setuptools is missing: triton imports it",
        undist("setuptools"),
    ),
    Fault(
        "pip's CUDA libraries beside conda's",
        "cuda-libraries",
        "nvidia-cublas-cu12 12.8.3 (pip's CUDA library beside",
        dist(
            "nvidia_cublas_cu12",
            "12.8.3",
            "Metadata-Version: 2.1\nName: nvidia-cublas-cu12\nVersion: 12.8.3\n",
        ),
    ),
    Fault(
        "a CUDA library of 12.8",
        "cuda-libraries",
        "libcufft 11.3.3.83 (locked is 11.2.1.3)",
        record("libcufft", version="11.3.3.83"),
    ),
    Fault("no torch", "torch-origin", "torch is not installed", undist("torch")),
    Fault(
        "pip's torch over conda's",
        "torch-origin",
        "torch 2.6.0 was put there by pip",
        dist("torch", "2.6.0"),
    ),
    Fault(
        "lock missing",
        "locks",
        "conda-lock.yml: cannot be read",
        lambda env: (env.project / "conda-lock.yml").unlink(),
    ),
    Fault(
        "lock malformed",
        "locks",
        "not as scripts/lock.sh writes it",
        lock("conda-lock.yml", lambda t: t.replace('"hash":', '"hash"')),
    ),
    Fault(
        "lock of another version",
        "locks",
        "not a conda-lock file of version 1",
        lock("conda-lock.yml", lambda t: t.replace("version: 1\n", "version: 9\n", 1)),
    ),
    Fault(
        "pip lock cut short",
        "locks",
        "pip.txt:4: not as scripts/lock.sh writes it",
        lock("locks/pip.txt", lambda t: t[:-60]),
    ),
    Fault(
        "pip lock cut at a line",
        "locks",
        "pip.txt: is cut short: it ends after 3 packages",
        lock("locks/pip.txt", lambda t: "".join(t.splitlines(True)[:3])),
    ),
    Fault(
        "file truncated",
        "files",
        "tqdm/std.py: changed since it was installed",
        write(f"{SITE}/tqdm/std.py", lambda c: c[:50]),
        {},
        FILES,
    ),
    Fault(
        "file emptied",
        "files",
        "tqdm/std.py: empty",
        write(f"{SITE}/tqdm/std.py", lambda c: b""),
        {},
        FILES,
    ),
    Fault(
        "one byte flipped in a conda file",
        "files",
        "tqdm/std.py: changed",
        write(f"{SITE}/tqdm/std.py", flip),
        {},
        FILES,
    ),
    Fault(
        "one byte flipped in a wheel's file",
        "files",
        "idna/core.py: changed",
        write(f"{SITE}/idna/core.py", flip),
        {},
        FILES,
    ),
    Fault(
        "an added package's file in a locked one's place",
        "files",
        "idna/core.py: changed since it was installed",
        both(write(f"{SITE}/idna/core.py", flip), owned_by("zzz", "idna/core.py")),
        {},
        FILES,
    ),
    Fault(
        "an added package's file in a conda one's place",
        "files",
        "tqdm/std.py: changed since it was installed",
        both(write(f"{SITE}/tqdm/std.py", flip), owned_by("aaa", "tqdm/std.py")),
        {},
        FILES,
    ),
    Fault(
        "an added package's module before a locked one",
        "files",
        "idna/core/__init__.py: Python takes it in place of lib/python3.11/site-packages/idna/core.py",
        both(
            write(f"{SITE}/idna/core/__init__.py", lambda c: b""),
            owned_by("zzz", "idna/core/__init__.py"),
        ),
        {},
        FILES,
    ),
    Fault(
        "a library of nobody's before a locked module",
        "files",
        "idna/codec.abi3.so: Python takes it in place of",
        write(f"{SITE}/idna/codec.abi3.so", lambda c: b""),
        {},
        FILES,
    ),
    Fault(
        "shared library deleted",
        "files",
        "lib/libcublas.so.12.4.5.8: missing",
        lambda env: (env.prefix / "lib/libcublas.so.12.4.5.8").unlink(),
        {},
        FILES,
    ),
    Fault(
        "a link redirected",
        "files",
        "lib/libcublas.so.12: links to libcufft.so.11.2.1.3, not to libcublas.so.12.4.5.8",
        link("lib/libcublas.so.12", "libcufft.so.11.2.1.3"),
        {},
        FILES,
    ),
    Fault(
        "a link deleted",
        "files",
        "lib/libcublas.so.12: missing",
        lambda env: (env.prefix / "lib/libcublas.so.12").unlink(),
        {},
        FILES,
    ),
    Fault(
        "a link replaced by a file",
        "files",
        "lib/libcublas.so.12: no longer a link",
        write("lib/libcublas.so.12", lambda c: c),
        {},
        FILES,
    ),
    Fault(
        "an entry point edited",
        "files",
        "bin/pip: changed since it was installed",
        write("bin/pip", flip),
        {},
        FILES,
    ),
    Fault(
        "an entry point deleted",
        "files",
        "bin/pip: missing",
        lambda env: (env.prefix / "bin/pip").unlink(),
        {},
        FILES,
    ),
    Fault(
        "a wheel's RECORD emptied",
        "pip-layer",
        "RECORD lists no files",
        write_info("idna", "RECORD", lambda c: b""),
    ),
    Fault(
        "a wheel's RECORD shortened",
        "pip-layer",
        "its RECORD is not the one that the install by hash left",
        write_info("idna", "RECORD", lambda c: b"\n".join(c.splitlines()[:-2])),
    ),
    Fault(
        "a wheel from elsewhere, of the locked version",
        "pip-layer",
        "idna: installed from file://",
        editable("idna"),
    ),
    Fault(
        "sitecustomize",
        "startup",
        "sitecustomize.py: no package has it, and it runs at every start",
        write(f"{SITE}/sitecustomize.py", lambda _: b"pass"),
    ),
    Fault(
        "usercustomize beside the standard library",
        "startup",
        "lib/python3.11/usercustomize.py: no package",
        write("lib/python3.11/usercustomize.py", lambda _: b"pass"),
    ),
    Fault(
        "a .pth file",
        "startup",
        "zz.pth: no package has it",
        write(f"{SITE}/zz.pth", lambda _: b"import os"),
    ),
    Fault(
        "a .pth file edited",
        "startup",
        "changed since it was installed, and may run at every start",
        lambda env: next((env.prefix / SITE).glob("*.pth")).write_text("import os"),
    ),
    Fault(
        "a zip before the standard library",
        "startup",
        "lib/python311.zip: no package has it",
        write("lib/python311.zip", lambda _: b"PK"),
    ),
    Fault(
        "a module in the standard library's folder",
        "startup",
        "lib/python3.11/tqdm.py: no package",
        write("lib/python3.11/tqdm.py", lambda _: b"pass"),
    ),
    Fault(
        "sitecustomize among the built extensions",
        "startup",
        "lib-dynload/sitecustomize.py: no package",
        write("lib/python3.11/lib-dynload/sitecustomize.py", lambda _: b"pass"),
    ),
    Fault(
        "pyvenv.cfg",
        "startup",
        "pyvenv.cfg: no package has it",
        write("pyvenv.cfg", lambda _: b"home = /elsewhere\n"),
    ),
    Fault(
        "a package's folder removed",
        "present",
        "tqdm/__init__.py: missing",
        lambda env: shutil.rmtree(env.prefix / SITE / "tqdm"),
    ),
    Fault(
        "what the installation left is lost",
        "present",
        "maximalcai-installed.json is missing or damaged",
        lambda env: (env.prefix / "maximalcai-installed.json").unlink(),
    ),
    Fault(
        "a conda record edited with its file",
        "conda-layer",
        "tqdm: its conda record is not the one that",
        record("tqdm", paths_data={"paths": []}),
    ),
    Fault(
        "another wheel of the same version is locked",
        "pip-layer",
        "idna: was installed from another wheel than the one that is locked now",
        lock(
            "locks/pip.txt",
            lambda t: re.sub(r"(idna==.* --hash=sha256:)\w{64}", r"\g<1>" + "f" * 64, t),
        ),
    ),
    Fault(
        "a program that nobody may start",
        "present",
        "bin/pip: no program any more",
        lambda env: (env.prefix / "bin/pip").chmod(0o644),
    ),
    Fault(
        "nothing to enter it with",
        "place",
        "/activate is missing",
        lambda env: (env.prefix / "activate").unlink(),
    ),
    Fault("moved", "place", "and moved to", lambda env: remark(env.prefix, path="/elsewhere")),
    Fault(
        "a conda record that is a list",
        "conda-layer",
        "is not a conda record",
        lambda env: meta(env, "tqdm").write_text("[]"),
    ),
    Fault(
        "a conda record that is null",
        "conda-layer",
        "is not a conda record",
        lambda env: meta(env, "tqdm").write_text("null"),
    ),
    Fault(
        "a conda record without paths",
        "conda-layer",
        "is not a conda record",
        record("tqdm", paths_data=None),
    ),
    Fault(
        "child segfaults",
        "tokenizers",
        "killed by SIGSEGV: it crashed",
        module("import ctypes; ctypes.string_at(0)"),
        {},
        CHILD,
    ),
    Fault(
        "child aborts",
        "tokenizers",
        "killed by SIGABRT",
        module("import os; os.abort()"),
        {},
        CHILD,
    ),
    Fault(
        "child hangs",
        "tokenizers",
        "no answer within 2 s; stopped",
        module("import time; time.sleep(600)"),
        {},
        [*CHILD, "--timeout", "2"],
    ),
    Fault(
        "child killed",
        "tokenizers",
        "killed by SIGKILL: out of memory, or someone stopped it",
        module("import os; os.kill(os.getpid(), 9)"),
        {},
        CHILD,
    ),
    Fault(
        "child ends without an answer",
        "tokenizers",
        "ended without an answer (exit 3): gone",
        module("import os; os.write(2, b'gone\\n'); os._exit(3)"),
        {},
        CHILD,
    ),
    Fault(
        "child raises",
        "tokenizers",
        "ImportError: undefined symbol: __nvJitLinkComplete_12_4",
        module("raise ImportError('undefined symbol: __nvJitLinkComplete_12_4')"),
        {},
        CHILD,
    ),
    Fault(
        "no GPU where one is required",
        "driver",
        "no GPU found, and --gpu require was given",
        lambda env: None,
        {},
        ["--gpu", "require", "--level", "quick"],
    ),
]


def test_there_are_enough_faults_and_the_whole_environment_is_green(
    conda_environment: CondaEnvironment,
) -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25
    done = conda_environment.verify("--level", "quick")
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout
    done = conda_environment.verify("--only", "files")
    assert done.returncode == 0 and "all as installed" in done.stdout, done.stdout


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_seen_and_named_by_its_check_alone(
    fault: Fault, broken: CondaEnvironment
) -> None:
    fault.do(broken)
    environ = {k: v.format(prefix=broken.prefix) for k, v in fault.environ.items()}
    options = fault.options or ["--level", "quick"]
    done = broken.verify(*options, **environ)
    line = next(
        (line for line in done.stdout.splitlines() if re.match(f"FAIL  {fault.check} ", line)), ""
    )
    assert done.returncode == 1 and line, done.stdout
    lines = done.stdout[done.stdout.index(line) :].split("\nPASS")[0]
    assert fault.said in lines, lines
    assert "\n      > " in lines, "no remedy"
    without = broken.verify(*options, "--skip", fault.check, **environ)
    assert not re.search(f"^FAIL  {fault.check} .*{re.escape(fault.said)}", without.stdout, re.M)


def nvidia_smi(folder: Path, script: str) -> Dict[str, str]:
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
        ("echo '[Unknown Error], [N/A]'", "which is not a GPU"),
    ],
)
def test_a_bad_driver_is_named(
    script: str, said: str, conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    done = conda_environment.verify("--only", "driver", **nvidia_smi(tmp_path / "bin", script))
    assert (
        done.returncode == 1 and said in done.stdout and "take another pod" in done.stdout
    ), done.stdout


def test_a_gpu_check_that_cannot_run_where_a_gpu_is_fails(
    conda_environment: CondaEnvironment, tmp_path: Path
) -> None:
    environ = nvidia_smi(tmp_path / "bin", "echo '" + H100.format(driver="550.54.14") + "'")
    done = conda_environment.verify("--only", "driver,flash-attn", **environ)
    assert done.returncode == 1
    assert (
        "PASS  driver           1 x NVIDIA H100 80GB HBM3, compute capability 9.0, driver 550.54.14"
        in done.stdout
    )
    assert re.search(
        "FAIL  flash-attn       GPU 0: AttributeError: module 'torch' has no attribute", done.stdout
    ), "the stand-in"
    done = conda_environment.verify("--only", "driver,flash-attn", "--gpu", "off", **environ)
    assert (
        done.returncode == 0
        and done.stdout.count("SKIP") == 2
        and "nothing was checked" in done.stdout
    )


def test_a_gpu_that_is_required_is_missed_whatever_is_checked(
    conda_environment: CondaEnvironment,
) -> None:
    done = conda_environment.verify("--only", "gpu-state", "--gpu", "require")
    assert (
        done.returncode == 1
        and "FAIL  driver           no GPU found, and --gpu require was given" in done.stdout
    ), done.stdout


def test_what_may_be_meant_so_is_a_warning(broken: CondaEnvironment) -> None:
    with (broken.prefix / "activate").open("a") as file:
        file.write("export HF_HOME=/workspace/hf\n")
    done = broken.verify("--only", "place,variables", LD_PRELOAD="libm.so.6")
    assert done.returncode == 0, done.stdout
    assert (
        f"WARN  place            {broken.prefix}/activate has lines that are not the set-up's"
        in done.stdout
    )
    assert "WARN  variables        LD_PRELOAD=libm.so.6 comes before every library" in done.stdout


def test_wrong_usage_exits_2(conda_environment: CondaEnvironment, tmp_path: Path) -> None:
    for options, said in (
        (["--only", "torhc"], "no check is named 'torhc'; there are: locks, place, conda-layer"),
        (["--json", "/proc/nowhere/x.json"], "/proc/nowhere/x.json cannot be written"),
        (["--json", str(tmp_path)], "cannot be written (it is a folder)"),
        (["--level", "middling"], "invalid choice"),
    ):
        done = conda_environment.verify(*options)
        assert done.returncode == 2 and said in done.stdout, done.stdout
    done = conda_environment.verify("--list")
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 25


def test_strays_in_a_locked_package_are_a_warning_and_what_extras_own_is_nothing(
    broken: CondaEnvironment,
) -> None:
    site = broken.prefix / SITE
    uv("install", "six==1.16.0")(broken)
    (site / "six_test.pyc").touch()
    assert "PASS  files" in broken.verify("--only", "files").stdout
    (site / "tqdm/new").mkdir()
    (site / "tqdm/new/module.py").touch()
    (site / "numpy.py").touch()
    done = broken.verify("--only", "files,startup")
    assert done.returncode == 0 and "WARN  files" in done.stdout, done.stdout
    assert "tqdm/new/module.py: is of no package, beside tqdm's own files" in done.stdout
    assert "numpy.py: is of no package, beside numpy's own files" in done.stdout


def test_what_was_added_and_does_not_fit_is_a_warning(broken: CondaEnvironment) -> None:
    """`pip check` failed, and the verdict did not say so."""
    assert "PASS  requirements" in broken.verify("--only", "requirements").stdout
    uv("install", "--no-deps", "requests==2.32.3")(broken)
    done = broken.verify("--level", "quick")
    assert (
        done.returncode == 0
        and "WARN  requirements     The package `requests` requires `" in done.stdout
    ), done.stdout


def test_a_uv_that_fails_is_not_taken_for_a_pass(broken: CondaEnvironment) -> None:
    write("bin/uv", lambda _: b"#!/bin/sh\nexit 3\n")(broken)
    (broken.prefix / "bin/uv").chmod(0o755)
    assert (
        "SKIP  requirements     uv does not say" in broken.verify("--only", "requirements").stdout
    )


def test_a_device_as_the_target_stays_one_and_a_neighbour_is_not_touched(
    broken: CondaEnvironment, tmp_path: Path
) -> None:
    (tmp_path / "r.json.probe").write_text("precious")
    assert broken.verify("--only", "locks", "--json", str(tmp_path / "r.json")).returncode == 0
    assert (tmp_path / "r.json.probe").read_text() == "precious" and (tmp_path / "r.json").is_file()
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    assert broken.verify("--only", "locks", "--json", str(tmp_path / "pipe")).returncode == 0
    assert '"schema_version"' in reader.communicate()[0] and (tmp_path / "pipe").is_fifo()


def test_a_pipe_where_a_file_is_expected_is_not_waited_for(broken: CondaEnvironment) -> None:
    for name in (
        "idna/core.py",
        next((broken.prefix / SITE).glob("idna-*.dist-info")).name + "/METADATA",
    ):
        (broken.prefix / SITE / name).unlink()
        os.mkfifo(broken.prefix / SITE / name)
    done = broken.verify("--only", "files,pip-layer")
    assert (
        done.returncode == 1
        and "idna/core.py: cannot be read" in done.stdout
        and "no readable METADATA" in done.stdout
    )


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
    assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout


def test_the_name_and_version_are_the_headers_not_the_descriptions(tmp_path: Path) -> None:
    """distro 1.9.0 was reported as antergos 2015.10, which its description quotes."""
    info = tmp_path / "lib/python3.11/site-packages/distro-1.9.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: distro\nVersion: 1.9.0\n\n    Name: antergos\nName: antergos\nVersion: 2015.10\n"
    )
    assert [(d.name, d.version) for d in read_prefix(tmp_path).dists] == [("distro", "1.9.0")]
