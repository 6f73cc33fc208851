"""The repository's locks are sound; each property is also seen to fail on a broken copy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

import pytest
import rattler
import yaml
from fixtures.commands import ROOT
from fixtures.lock_damage import Change, copy_locks, replaced, version_of
from lockedenv.lock import check
from lockedenv.lock.solve import PROGRAMS
from lockedenv.lock.specification import pypi_name
from lockedenv.spec import environment, locks
from lockedenv.spec.cuda import find_cuda
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName, Layer
from packaging.requirements import Requirement
from packaging.version import Version

FLOORS = (
    "torch>=2.1.0 transformers>=4.35.0 accelerate>=0.24.0 bitsandbytes>=0.41.0 peft>=0.6.0 hf-transfer>=0.1.0 numpy>=1.24.0 "
    "scipy>=1.11.0 datasets>=2.14.0 tqdm>=4.66.0 flash-attn>=2.3.0 statsmodels>=0.14.0 pytest>=7.4.0"
).split()
OURS = environment.list_environments()


# Each property gives what is wrong in a repository's root: a list, empty for a sound lock.


def conda_entries(root: Path) -> list[str]:
    wrong = []
    channels = yaml.safe_load((root / "environment.yml").read_text())["channels"]
    for package in locks.read_conda_lock(root / "conda-lock.yml").packages:
        if package.channel not in channels:
            wrong.append(
                f"{package.name}: {package.url} is of no channel of environment.yml"
            )
        if not package.url.startswith("https://conda.anaconda.org/"):
            wrong.append(f"{package.name}: {package.url} is of another host")
    return wrong


def dependencies_met(root: Path) -> list[str]:
    """Every dependency of the conda layer is locked in a version that fits, or is of the machine."""
    records = {}
    for package in locks.read_conda_lock(root / "conda-lock.yml").packages:
        build = rattler.BuildString(package.build)
        subdir = package.url.split("/")[-2]
        records[package.name] = rattler.PackageRecord(
            package.name, package.version, build, 0, subdir
        )
    subdirs = yaml.safe_load((root / "locks/virtual-packages.yml").read_text())[
        "subdirs"
    ]
    for name, value in subdirs["linux-64"]["packages"].items():
        version, _, words = str(value).partition(" ")
        build = rattler.BuildString(words or "0")
        records[name] = rattler.PackageRecord(name, version, build, 0, "linux-64")
    wrong = []
    for entry in yaml.safe_load((root / "conda-lock.yml").read_text())["package"]:
        for name, version in entry["dependencies"].items():
            spec = rattler.MatchSpec(f"{name} {version}")
            if name not in records or not spec.matches(records[name]):
                wrong.append(
                    f"{entry['name']} needs {spec}, locked is {records.get(name)}"
                )
    return wrong


# name -> channel, version, build of what torch 2.5.1 is made for; an empty build is any
CUDA_12_4 = {
    "pytorch": ("pytorch", "2.5.1", "py3.11_cuda12.4_cudnn9.1.0_0"),
    "pytorch-cuda": ("pytorch", "12.4", ""),
    "torchtriton": ("pytorch", "3.1.0", "py311"),
    "pytorch-mutex": ("pytorch", "1.0", "cuda"),
    "blas": ("conda-forge", "1.0", "mkl"),
    "libcurand": ("nvidia", "10.3.5.147", ""),
    "libcufile": ("nvidia", "1.9.1.3", ""),
    "cuda-opencl": ("nvidia", "12.4.127", ""),
    "libnvfatbin": ("nvidia", "12.4.127", ""),
    "cuda-nvcc": ("nvidia", "12.4.131", ""),
    "cuda-cudart-dev": ("nvidia", "12.4.127", ""),
    "cuda-cccl": ("nvidia", "12.4.127", ""),
}
COMPILERS = ("gcc", "gxx", "gcc_impl_linux-64", "gxx_impl_linux-64")


def cuda_is_12_4(root: Path) -> list[str]:
    packages = {
        p.name: p for p in locks.read_conda_lock(root / "conda-lock.yml").packages
    }
    wrong = [f"{name} is not locked" for name in CUDA_12_4 if name not in packages]
    for name, (channel, version, build) in CUDA_12_4.items():
        p = packages.get(name)
        if p is None:
            continue
        if (p.channel, p.version) != (channel, version) or build not in ("", p.build):
            wrong.append(f"{name} is {p.channel} {p.version} {p.build}")
    for p in packages.values():
        of_cuda = p.channel == "nvidia" and p.name.startswith("cuda-")
        if of_cuda and not p.version.startswith("12.4"):
            wrong.append(f"{p.name} is {p.version}")
        if p.name in COMPILERS and not p.version.startswith("13."):
            wrong.append(f"{p.name} is {p.version}, nvcc 12.4 takes 13")
        if p.name == "mkl" and not rattler.Version(p.version) < rattler.Version(
            "2024.1"
        ):
            wrong.append(f"mkl is {p.version}")
        if p.name == "libblas" and "mkl" not in p.build:
            wrong.append(f"libblas is {p.build}")
    return wrong


def of_pypi(package: locks.CondaPackage) -> bool:
    return package.needs_python or package.name in PROGRAMS


def what_follows_fits(root: Path) -> list[str]:
    """The compilers and CUDA of the conda layer are those that torch and the table of CUDA versions ask for."""
    env = Environment(root)
    packages = {p.name: p for p in env.conda()}
    cuda = env.cuda(BackendName.CONDA)
    newest_gcc = find_cuda(cuda).gcc
    wrong = []
    wanted = {"python": env.python}
    if env.torch_layer(BackendName.CONDA) is Layer.CONDA:
        wanted["cuda-nvcc"] = cuda
        wanted["cuda-cudart-dev"] = cuda
        wanted["gcc"] = str(newest_gcc)
        if not env.mkl:
            wrong.append("no MKL, which torch was built with")
    elif int(packages["gcc"].version.split(".")[0]) > newest_gcc:
        wrong.append(f"gcc is {packages['gcc'].version}, newer than CUDA {cuda} takes")
    for name, version in wanted.items():
        if name not in packages or not packages[name].version.startswith(f"{version}."):
            wrong.append(f"{name} is {packages.get(name)}, not {version}")
    wheels = {p.name: p.version for p in env.wheels(BackendName.PIP)}
    if not cuda or wheels["torch"] != env.torch(BackendName.CONDA):
        wrong.append("no CUDA, or another torch from PyPI")
    for p in packages.values():
        other = wheels.get(pypi_name(p.name), p.version)
        if of_pypi(p) and other != p.version:
            wrong.append(f"{p.name} is {p.version}, and {other} as a wheel")
    return wrong


def layers_are_apart(root: Path) -> list[str]:
    packages = locks.read_conda_lock(root / "conda-lock.yml").packages
    conda = {
        pypi_name(p.name) for p in packages if of_pypi(p) or p.name == "torchtriton"
    }
    pip = {p.name for p in locks.read_pip_lock(root / "locks/pip.txt")}
    wrong = [f"{name} comes from both layers" for name in conda & pip]
    if "torch" in conda:
        for name in pip:
            if name in ("torch", "triton") or name.startswith("nvidia"):
                wrong.append(f"{name} is in the pip layer")
    return wrong


def floors_hold(root: Path) -> list[str]:
    packages = locks.read_conda_lock(root / "conda-lock.yml").packages
    versions = {pypi_name(p.name): p.version for p in packages}
    for name in ("pip.txt", "flash-attn.txt"):
        if (root / "locks" / name).exists():
            versions.update(
                {p.name: p.version for p in locks.read_pip_lock(root / "locks" / name)}
            )
    floors = {Requirement(floor).name: Requirement(floor).specifier for floor in FLOORS}
    if Version(versions["huggingface-hub"]) >= Version("1"):
        del floors["hf-transfer"]  # the hub leaves it aside
    if "flash-attn-4" in versions:
        del floors["flash-attn"]
    wrong = []
    for name, specifier in floors.items():
        if name not in versions or versions[name] not in specifier:
            wrong.append(f"{name} {versions.get(name)} is not {specifier}")
    return wrong


GENERATED = (
    "conda-lock.yml",
    "requirements.txt",
    "requirements-dev.txt",
    "locks/pip.txt",
    "locks/flash-attn.txt",
    "locks/tools.txt",
)


def names_no_index(root: Path) -> list[str]:
    wrong = []
    for name in GENERATED:
        if not (root / name).exists():
            continue
        text = (root / name).read_text()
        if not text.startswith("# Written by scripts/lock.sh"):
            wrong.append(f"{name} does not say what writes it")
        for address in re.findall(r"https?://([^/\s]+)", text):
            of_flash_attn = (name, address) == ("locks/flash-attn.txt", "github.com")
            if address != "conda.anaconda.org" and not of_flash_attn:
                wrong.append(f"{name} names {address}")
    return wrong


def stale(root: Path) -> list[str]:
    return check.find_stale(Environment(root))


PROPERTIES: dict[str, Callable[[Path], list[str]]] = {
    prove.__name__: prove
    for prove in (
        conda_entries,
        dependencies_met,
        what_follows_fits,
        cuda_is_12_4,
        layers_are_apart,
        floors_hold,
        names_no_index,
        stale,
    )
}


def list_properties() -> list[Any]:
    """Each property of each environment; one CUDA version is asked of the default environment alone."""
    found = []
    for env in OURS:
        for name in PROPERTIES:
            if name != "cuda_is_12_4" or env.folder == ROOT:
                found.append(pytest.param(name, env, id=f"{env.name}-{name}"))
    return found


@pytest.mark.parametrize("name, env", list_properties())
def test_the_lock_is_sound(name: str, env: Environment) -> None:
    assert PROPERTIES[name](env.folder) == []


CONDA = "conda-lock.yml"
BROKEN: list[tuple[str, Change]] = [
    ("dependencies_met", replaced(CONDA, '"llvm-openmp": "<16', '"llvm-openmp": "<15')),
    ("dependencies_met", replaced(CONDA, '"mpmath": "[^"]*"', '"nowhere": ""')),
    (
        "dependencies_met",
        replaced(CONDA, '"torchtriton": "3.1.0', '"torchtriton": "3.1.0 py312'),
    ),
    (
        "dependencies_met",
        replaced("locks/virtual-packages.yml", '__glibc: "2.35"', '__glibc: "2.12"'),
    ),
    ("cuda_is_12_4", replaced(CONDA, "py3.11_cuda12.4_cudnn9.1.0_0", "py3.11_cpu_0")),
    ("layers_are_apart", replaced("locks/pip.txt", "accelerate==", "numpy==")),
    (
        "layers_are_apart",
        replaced("locks/pip.txt", "accelerate==", "nvidia-cublas-cu12=="),
    ),
    ("layers_are_apart", replaced("locks/pip.txt", "accelerate==", "torch==")),
    ("floors_hold", replaced("locks/pip.txt", "peft==[0-9.]+", "peft==0.5.0")),
    ("floors_hold", replaced("locks/flash-attn.txt", "==2[^ ]+", "==2.2.0")),
    (
        "names_no_index",
        replaced(
            "locks/pip.txt",
            "accelerate==",
            "--index-url https://index.example/simple\naccelerate==",
        ),
    ),
    ("names_no_index", replaced("requirements.txt", "# Written by", "# By")),
    ("what_follows_fits", replaced("requirements.txt", "scipy==[0-9.]+", "scipy==1.0")),
]
# The address of a package goes with its version, so these change both.
OTHER_VERSIONS = [
    ("cuda_is_12_4", "libcurand", "10.3.9.90"),
    ("cuda_is_12_4", "mkl", "2024.1.0"),
    ("floors_hold", "numpy", "1.23.0"),
    ("what_follows_fits", "gcc", "14.3.0"),
    ("what_follows_fits", "cuda-nvcc", "12.5.1"),
]


def other_version(name: str, version: str) -> Change:
    """The package of another version, at the address that it would have."""

    def change(root: Path) -> None:
        text = (root / CONDA).read_text()
        [line] = [line for line in text.splitlines() if f'"name": "{name}",' in line]
        changed = re.sub(version_of(name), f'"{name}", "version": "{version}"', line)
        changed = re.sub(rf"/{name}-[^-]+-", f"/{name}-{version}-", changed)
        assert changed != line
        (root / CONDA).write_text(text.replace(line, changed))

    return change


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_locks(tmp_path)


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_broken_lock_is_seen(number: int, copy: Path) -> None:
    name, change = BROKEN[number]
    change(copy)
    assert PROPERTIES[name](copy), f"{name} does not see it"


@pytest.mark.parametrize("proves, name, version", OTHER_VERSIONS)
def test_another_version_is_seen(
    proves: str, name: str, version: str, copy: Path
) -> None:
    other_version(name, version)(copy)
    assert PROPERTIES[proves](copy), f"{proves} does not see it"


def test_a_package_that_is_missing_is_seen(copy: Path) -> None:
    path = copy / CONDA
    lines = [
        line
        for line in path.read_text().splitlines()
        if '"name": "cuda-nvcc",' not in line
    ]
    count = int(lines[-1].split()[1]) - 1
    path.write_text("\n".join([*lines[:-1], f"# {count} packages"]) + "\n")
    assert cuda_is_12_4(copy) == ["cuda-nvcc is not locked"]
    assert what_follows_fits(copy)


CHANNELS = ["pytorch", "nvidia", "conda-forge"]


def test_the_specification() -> None:
    text = (ROOT / "environment.yml").read_text()
    spec = yaml.safe_load(text)
    assert spec["name"] == "maximalcai"
    assert spec["channels"] == [*CHANNELS, "nodefaults"]
    for line in text.splitlines():
        asked = line.split("#")[0]
        if re.search(r"<|[^>=]=[^=]", asked) and "libblas" not in asked:
            assert re.search(
                r"# .*https://", line
            ), f"a bound without its reason and link: {line}"
    specification = check.read_specification(ROOT / "environment.yml")
    given = {**specification.conda, **specification.pip}
    for floor in FLOORS:
        name = Requirement(floor).name
        if name == "flash-attn":
            assert floor in text  # floors_hold looks at the lock
        elif name != "torch":
            assert given[name].startswith(floor)


def test_an_exact_pin_of_the_current_environment_has_its_reason() -> None:
    text = (ROOT / "environments/current/environment.yml").read_text()
    pins = [line for line in text.splitlines() if "==" in line.split("#")[0]]
    assert pins
    for line in pins:
        assert re.search(
            r"# .*https://", line
        ), f"a pin without its reason and link: {line}"


def test_the_contributors_environment_stands_alone() -> None:
    text = (ROOT / "environment-dev.yml").read_text()
    asked = check.read_specification(ROOT / "environment-dev.yml")
    assert yaml.safe_load(text)["name"] == "maximalcai-dev"
    assert asked.conda["pytorch"] == "pytorch::pytorch=2.5.1"
    assert "cpuonly" in asked.conda
    assert asked.pip == check.read_specification(ROOT / "environment.yml").pip
    needed = "python conda-lock pytest pytest-cov black flake8 isort mypy sphinx shellcheck pip"
    assert set(needed.split()) <= set(asked.conda)
    for name, spec in asked.conda.items():
        assert "cuda" not in name
        assert not spec.startswith("nvidia::")
