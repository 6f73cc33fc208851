"""What follows from the locks of an environment, and that no module knows by heart what a lock can change."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Callable, Iterator

import pytest
from fixtures.commands import ROOT
from lockedenv.spec import environment
from lockedenv.spec.cuda import VERSIONS, find_cuda
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName, Layer
from lockedenv.spec.platform_tags import GLIBC

TABLES = {
    "cuda.py",
    "gpu_support.py",
    "platform_tags.py",
}  # the modules that may know a version


def versions(env: Environment) -> Iterator[str]:
    """What the locks of an environment could change, as a program would spell it."""
    for backend in BackendName:
        cuda = env.cuda(backend)
        digits = cuda.replace(".", "")
        yield from (
            env.torch(backend),
            cuda,
            env.cudnn(backend),
            env.version(backend, "mkl"),
        )
        yield from (f"cu{digits}", f"cuda{digits}")
        yield from (f"gcc-{find_cuda(cuda).gcc}", f"g++-{find_cuda(cuda).gcc}")
    yield from (
        env.python,
        f"cp{env.python.replace('.', '')}",
        env.version(BackendName.CONDA, "gcc"),
    )


def constants(path: Path) -> Iterator[str]:
    """The texts and numbers in a program, without what is only said about it: docstrings and comments."""
    if path.suffix == ".sh":
        for line in path.read_text().splitlines():
            yield line.split(" #")[0]
        return
    tree = ast.parse(path.read_text())
    documentation = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            documentation.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in documentation:
            yield str(node.value)


def test_no_module_knows_a_version_by_heart(tmp_path: Path) -> None:
    known = set()
    for env in environment.list_environments():
        known.update(version for version in versions(env) if version)
        assert {
            env.torch(BackendName.PIP),
            env.cuda(BackendName.PIP),
            env.cudnn(BackendName.CONDA),
            env.python,
        } <= known
    alternatives = "|".join(
        re.escape(version) for version in sorted(known, key=len, reverse=True)
    )
    pattern = re.compile(rf"(?<![\w.])({alternatives}|{GLIBC})(?![\w]|\.\d)")
    example = tmp_path / "example.py"
    example.write_text(
        f'"""Made for {GLIBC}."""\nA = "{GLIBC}"  # {GLIBC}\nB = "lib/python3.11"\n'
    )
    assert [text for text in constants(example) if pattern.search(text)] == [GLIBC]
    found = []
    for path in sorted((ROOT / "scripts").rglob("*.*")):
        if path.suffix in (".py", ".sh") and path.name not in TABLES:
            for text in constants(path):
                if pattern.search(text):
                    found.append(f"{path.name}: {text}")
    assert found == [], "\n".join(found)


def test_the_default_environment() -> None:
    """Its torch is the last one of the pytorch channel, with the CUDA that is asked for by name."""
    env = Environment(ROOT)
    assert env.python == "3.11"
    assert env.mkl
    for backend, layer in (
        (BackendName.CONDA, Layer.CONDA),
        (BackendName.PIP, Layer.PIP),
    ):
        assert env.torch(backend) == "2.5.1"
        assert env.torch_layer(backend) is layer
        assert env.cuda(backend) == "12.4"
        assert env.cudnn(backend).split(".")[:3] == ["9", "1", "0"]
        assert env.cxx11abi(backend) is False
    assert find_cuda(env.cuda(BackendName.PIP)).archs == ("80", "90")
    assert env.flash_attn()
    assert env.flash_wheel()
    assert env.digest(BackendName.CONDA) != env.digest(BackendName.PIP)


def test_the_current_environment_is_the_same_on_both_backends() -> None:
    """torch comes from PyPI on the conda backend too; no lock of conda's has anything of CUDA."""
    env = environment.find("current")
    conda_names = {package.name for package in env.conda()}
    assert not [
        name
        for name in conda_names
        if re.search("torch|cuda|^lib(cu|np)|blas|numpy", name)
    ]
    assert (
        env.torch_layer(BackendName.CONDA)
        is env.torch_layer(BackendName.PIP)
        is Layer.PIP
    )
    for ask in (env.torch, env.cuda, env.cudnn, env.cxx11abi):
        assert ask(BackendName.CONDA) == ask(BackendName.PIP) != ""
    assert env.cxx11abi(BackendName.PIP) is True
    assert env.mkl is False
    source = env.flash_attn()  # for --flash-attn build alone
    assert source
    assert source.version == "2.8.3.post2"
    assert env.flash_wheel() is None
    conda_layer = {package.name: package for package in env.wheels(BackendName.CONDA)}
    both = {package.name: package for package in env.wheels(BackendName.PIP)}
    assert {"torch", "triton", "numpy", "scipy", "flash-attn-4"} <= set(conda_layer)
    assert all(both[name] == package for name, package in conda_layer.items())


def locked_archive(
    build: str, channel: str
) -> Callable[[Environment], list[environment.CondaPackage]]:
    url = f"https://conda.anaconda.org/{channel}/linux-64/pytorch-2.9.0-{build}.conda"
    package = environment.CondaPackage("pytorch", "2.9.0", url, "a" * 32, "b" * 64)
    return lambda env: [package]


@pytest.mark.parametrize(
    "build, channel, cuda, cudnn, abi",
    [
        ("py3.11_cuda12.4_cudnn9.1.0_0", "pytorch", "12.4", "9.1.0", False),
        ("cuda129_mkl_py312_h1234567_300", "conda-forge", "12.9", "", True),
        ("cpu_mkl_py312_h1234567_100", "conda-forge", "", "", True),
    ],
)
def test_what_a_build_string_says(
    build: str,
    channel: str,
    cuda: str,
    cudnn: str,
    abi: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Environment, "conda", locked_archive(build, channel))
    monkeypatch.setattr(Environment, "wheels", lambda env, backend: [])
    env = Environment(Path())
    assert env.torch_layer(BackendName.CONDA) is Layer.CONDA
    assert env.torch(BackendName.CONDA) == "2.9.0"
    assert env.cuda(BackendName.CONDA) == cuda
    assert env.cudnn(BackendName.CONDA) == cudnn
    assert env.cxx11abi(BackendName.CONDA) is abi


def test_the_facts_of_a_cuda_between_two_rows() -> None:
    assert (
        find_cuda("12.6") == find_cuda("12.4") != find_cuda("12.8") == find_cuda("12.9")
    )
    assert find_cuda("11.8") == find_cuda("12.0")
    assert find_cuda("") == find_cuda("99.0")
    assert find_cuda("13.2").driver == "580.65.06"
    assert find_cuda("13.2").oldest_gpu == "7.5"


def test_newer_cudas_ask_for_newer_drivers_and_take_newer_compilers() -> None:
    rows = [VERSIONS[version] for version in sorted(VERSIONS)]
    for older, newer in zip(rows, rows[1:]):
        assert older.gcc <= newer.gcc
        assert set(older.archs) <= set(newer.archs)
        assert [int(part) for part in older.driver.split(".")] <= [
            int(part) for part in newer.driver.split(".")
        ]
