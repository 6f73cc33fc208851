"""The locks are sound; each property is also seen to fail on a broken copy."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import rattler
import yaml
from conda_lock.lockfile import parse_conda_lock_file
from conftest import ROOT, apart, sh
from lockedenv.errors import Stop
from lockedenv.lock import relock
from lockedenv.spec import environment, locks
from lockedenv.spec.cuda import find_cuda
from lockedenv.spec.environment import Environment, Layer
from packaging.requirements import Requirement
from packaging.version import Version

CHANNELS = ["pytorch", "nvidia", "conda-forge"]
FLOORS = (
    "torch>=2.1.0 transformers>=4.35.0 accelerate>=0.24.0 bitsandbytes>=0.41.0 peft>=0.6.0 hf-transfer>=0.1.0 numpy>=1.24.0 "
    "scipy>=1.11.0 datasets>=2.14.0 tqdm>=4.66.0 flash-attn>=2.3.0 statsmodels>=0.14.0 pytest>=7.4.0"
).split()
FILES = (
    "environment.yml",
    "environment-dev.yml",
    "pyproject.toml",
    "conda-lock.yml",
    "requirements.txt",
    "requirements-dev.txt",
)
OURS = environment.ours()


# Each property gives what is wrong in a repository's root: a list, empty for a sound lock.


def conda_entries(root: Path) -> List[str]:
    wrong = []
    for package in locks.read_conda_lock(root / "conda-lock.yml").packages:
        if package.channel not in yaml.safe_load((root / "environment.yml").read_text())[
            "channels"
        ] or not package.url.startswith("https://conda.anaconda.org/"):
            wrong.append(f"{package.name}: {package.url} is of no channel of environment.yml")
        if not package.filename.startswith(f"{package.name}-{package.version}-"):
            wrong.append(f"{package.name}: its address is of another package")
    return wrong


def dependencies_met(root: Path) -> List[str]:
    virtual = yaml.safe_load((root / "locks/virtual-packages.yml").read_text())["subdirs"][
        "linux-64"
    ]["packages"]
    records = {
        p.name: rattler.PackageRecord(
            p.name, p.version, rattler.BuildString(p.build), 0, p.url.split("/")[-2]
        )
        for p in locks.read_conda_lock(root / "conda-lock.yml").packages
    }
    for name, value in virtual.items():
        version, _, build = str(value).partition(" ")
        records[name] = rattler.PackageRecord(
            name, version, rattler.BuildString(build or "0"), 0, "linux-64"
        )
    wrong = []
    for package in yaml.safe_load((root / "conda-lock.yml").read_text())["package"]:
        for name, version in package["dependencies"].items():
            spec = rattler.MatchSpec(f"{name} {version}")
            if name not in records or not spec.matches(records[name]):
                wrong.append(f"{package['name']} needs {spec}, locked is {records.get(name)}")
    return wrong


def cuda_is_12_4(root: Path) -> List[str]:
    packages = {p.name: p for p in locks.read_conda_lock(root / "conda-lock.yml").packages}
    wanted = {
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
    wrong = [f"{n} is not locked" for n in wanted if n not in packages]
    for name, (channel, version, build) in wanted.items():
        p = packages.get(name)
        if p and (p.channel, p.version) != (channel, version) or p and build and p.build != build:
            wrong.append(f"{name} is {p.channel} {p.version} {p.build}")
    for p in packages.values():
        if (
            p.channel == "nvidia"
            and p.name.startswith("cuda-")
            and not p.version.startswith("12.4")
        ):
            wrong.append(f"{p.name} is {p.version}")
        if p.name in (
            "gcc",
            "gxx",
            "gcc_impl_linux-64",
            "gxx_impl_linux-64",
        ) and not p.version.startswith("13."):
            wrong.append(f"{p.name} is {p.version}, nvcc 12.4 takes 13")
        if p.name == "mkl" and not rattler.Version(p.version) < rattler.Version("2024.1"):
            wrong.append(f"mkl is {p.version}")
        if p.name == "libblas" and "mkl" not in p.build:
            wrong.append(f"libblas is {p.build}")
    return wrong


def what_follows_fits(root: Path) -> List[str]:
    """The compilers and CUDA of the conda layer are those that its torch and the table of facts ask for."""
    env, packages = Environment(root), {p.name: p for p in Environment(root).conda()}
    cuda, wrong = env.cuda("conda"), []
    wanted = {"python": env.python}
    if env.torch_layer("conda") is Layer.CONDA:
        wanted["cuda-nvcc"] = cuda
        wanted["cuda-cudart-dev"] = cuda
        wanted["gcc"] = str(find_cuda(cuda).gcc)
    elif int(packages["gcc"].version.split(".")[0]) > find_cuda(cuda).gcc:
        wrong.append(f"gcc is {packages['gcc'].version}, newer than CUDA {cuda} takes")
    for name, version in wanted.items():
        if name not in packages or not packages[name].version.startswith(f"{version}."):
            wrong.append(f"{name} is {packages.get(name)}, not {version}")
    wheels = {p.name: p.version for p in env.wheels("pip")}
    if not cuda or wheels["torch"] != env.torch("conda"):
        wrong.append("no CUDA, or another torch from PyPI")
    if env.torch_layer("conda") is Layer.CONDA and not env.mkl:
        wrong.append("no MKL, which torch was built with")
    pairs = [
        (wheels[relock.pypi_name(n)], p)
        for n, p in packages.items()
        if relock.pypi_name(n) in wheels and (p.needs_python or n in relock.PROGRAMS)
    ]
    return wrong + [
        f"{p.name} is {p.version}, and {version} as a wheel"
        for version, p in pairs
        if version != p.version
    ]


def layers_are_apart(root: Path) -> List[str]:
    conda = {
        locks.canonical(relock.PYPI_NAMES.get(p.name, p.name))
        for p in locks.read_conda_lock(root / "conda-lock.yml").packages
        if p.needs_python or p.name in relock.PROGRAMS or p.name == "torchtriton"
    }
    pip = {p.name for p in locks.read_pip_lock(root / "locks/pip.txt")}
    wrong = [f"{name} comes from both layers" for name in conda & pip]
    if "torch" not in conda:
        return wrong
    return wrong + [
        f"{n} is in the pip layer"
        for n in pip
        if n in ("torch", "triton") or n.startswith("nvidia")
    ]


def floors_hold(root: Path) -> List[str]:
    versions = {
        relock.PYPI_NAMES.get(p.name, p.name): p.version
        for p in locks.read_conda_lock(root / "conda-lock.yml").packages
    }
    for name in ("pip.txt", "flash-attn.txt"):
        if (root / "locks" / name).exists():
            versions.update({p.name: p.version for p in locks.read_pip_lock(root / "locks" / name)})
    floors = {Requirement(f).name: Requirement(f).specifier for f in FLOORS}
    if Version(versions["huggingface-hub"]) >= Version("1"):
        del floors["hf-transfer"]  # the hub leaves it aside
    if "flash-attn-4" in versions:
        del floors["flash-attn"]
    return [
        f"{n} {versions.get(n)} is not {s}"
        for n, s in floors.items()
        if n not in versions or versions[n] not in s
    ]


def names_no_index(root: Path) -> List[str]:
    generated = [
        "conda-lock.yml",
        "requirements.txt",
        "requirements-dev.txt",
        "locks/pip.txt",
        "locks/flash-attn.txt",
    ]
    wrong = []
    for name in [*generated, "locks/tools.txt"]:
        if not (root / name).exists():
            continue
        text = (root / name).read_text()
        if not text.startswith("# Written by scripts/lock.sh"):
            wrong.append(f"{name} does not say what writes it")
        for address in re.findall(r"https?://([^/\s]+)", text):
            if address != "conda.anaconda.org" and (name, address) != (
                "locks/flash-attn.txt",
                "github.com",
            ):
                wrong.append(f"{name} names {address}")
    return wrong


def stale(root: Path) -> List[str]:
    return relock.stale(Environment(root))


PROPERTIES: Dict[str, Callable[[Path], List[str]]] = {
    f.__name__: f
    for f in (
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


@pytest.mark.parametrize("env", OURS, ids=lambda env: env.name)
@pytest.mark.parametrize("name", PROPERTIES)
def test_the_lock_is_sound(name: str, env: Environment) -> None:
    if name != "cuda_is_12_4" or env.folder == ROOT:
        assert PROPERTIES[name](env.folder) == []


def replaced(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert re.search(old, text), f"{path} has no {old}"
        (root / path).write_text(re.sub(old, new, text, count=1))

    return change


def version_of(name: str) -> str:
    return f'"{name}", "version": "[^"]*"'


BROKEN: List[Any] = [
    (
        "conda_entries",
        replaced("conda-lock.yml", "org/conda-forge/noarch/tqdm", "org/defaults/noarch/tqdm"),
    ),
    (
        "conda_entries",
        replaced("conda-lock.yml", "conda.anaconda.org/nvidia", "mirror.example/nvidia"),
    ),
    ("conda_entries", replaced("conda-lock.yml", r"noarch/tqdm-[\d.]+-", "noarch/tqdm-1.0-")),
    ("dependencies_met", replaced("conda-lock.yml", '"llvm-openmp": "<16', '"llvm-openmp": "<15')),
    ("dependencies_met", replaced("conda-lock.yml", '"mpmath": "[^"]*"', '"nowhere": ""')),
    (
        "dependencies_met",
        replaced("conda-lock.yml", '"torchtriton": "3.1.0', '"torchtriton": "3.1.0 py312'),
    ),
    (
        "dependencies_met",
        replaced("locks/virtual-packages.yml", '__glibc: "2.35"', '__glibc: "2.12"'),
    ),
    (
        "cuda_is_12_4",
        replaced("conda-lock.yml", version_of("libcurand"), '"libcurand", "version": "10.3.9.90"'),
    ),
    (
        "cuda_is_12_4",
        replaced("conda-lock.yml", '"name": "cuda-nvcc"', '"name": "cuda-nvcc-tools"'),
    ),
    ("cuda_is_12_4", replaced("conda-lock.yml", "py3.11_cuda12.4_cudnn9.1.0_0", "py3.11_cpu_0")),
    ("cuda_is_12_4", replaced("conda-lock.yml", version_of("mkl"), '"mkl", "version": "2024.1.0"')),
    ("layers_are_apart", replaced("locks/pip.txt", "accelerate==", "numpy==")),
    ("layers_are_apart", replaced("locks/pip.txt", "accelerate==", "nvidia-cublas-cu12==")),
    ("layers_are_apart", replaced("locks/pip.txt", "accelerate==", "torch==")),
    ("floors_hold", replaced("locks/pip.txt", "peft==[0-9.]+", "peft==0.5.0")),
    ("floors_hold", replaced("locks/flash-attn.txt", "==2[^ ]+", "==2.2.0")),
    (
        "floors_hold",
        replaced("conda-lock.yml", version_of("numpy"), '"numpy", "version": "1.23.0"'),
    ),
    (
        "names_no_index",
        replaced(
            "locks/pip.txt",
            "accelerate==",
            "--index-url https://index.example/simple\naccelerate==",
        ),
    ),
    ("names_no_index", replaced("requirements.txt", "# Written by", "# By")),
    ("stale", replaced("environment.yml", "scipy>=1.11.0", "scipy>=1.12.0")),
    ("stale", replaced("environment.yml", "peft>=0.6.0", "peft>=99")),
    ("stale", replaced("environment.yml", "datasets>=2.14.0", "datasets>=2.14.0\n      - trl")),
    ("stale", replaced("locks/virtual-packages.yml", '"2.35"', '"2.36"')),
    ("stale", replaced("pyproject.toml", '"vermin"', '"vermin", "ruff"')),
    ("stale", replaced("pyproject.toml", '"sphinx"', '"sphinx", "ruff"')),
    ("stale", replaced("locks/flash-attn.in", "flash-attn==2.8.3 ", "flash-attn>=3 ")),
    (
        "what_follows_fits",
        replaced("conda-lock.yml", version_of("gcc"), '"gcc", "version": "14.3.0"'),
    ),
    (
        "what_follows_fits",
        replaced("conda-lock.yml", version_of("cuda-nvcc"), '"cuda-nvcc", "version": "12.5.1"'),
    ),
    ("stale", replaced("locks/flash-attn.in", "sha256:....", "sha256:0000")),
    ("what_follows_fits", replaced("requirements.txt", "scipy==[0-9.]+", "scipy==1.0")),
    ("stale", replaced("requirements.txt", "numpy==[0-9.]+", "numpy==2.0.0")),
    ("stale", replaced("requirements.txt", "(accelerate==.*sha256:).", r"\1x")),
    ("stale", replaced("requirements.txt", "peft==.*\n", "")),
    ("stale", replaced("locks/pip.txt", "(peft==.*sha256:)....", r"\g<1>0000")),
    ("stale", replaced("conda-lock.yml", "linux-64: [0-9a-f]{8}", "linux-64: 00000000")),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in FILES:
        shutil.copy2(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "locks", tmp_path / "locks")
    return tmp_path


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_broken_lock_is_seen(number: int, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change = BROKEN[number]
    change(copy)
    monkeypatch.setattr(relock, "ROOT", copy)
    assert PROPERTIES[name](copy), f"{name} does not see it"


def test_every_wheel_fits_python_3_11_on_glibc_2_28() -> None:
    assert (
        relock.wheel_rank(
            "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", "3.11"
        )
        is not None
    )
    assert relock.wheel_rank("numpy-2.4.6-cp311-cp311-manylinux_2_34_x86_64.whl", "3.11") is None
    assert relock.wheel_rank("numpy-2.4.6-cp312-cp312-manylinux_2_28_x86_64.whl", "3.11") is None
    assert relock.wheel_rank("x-1-cp311-cp311-macosx_14_0_arm64.whl", "3.11") is None
    assert relock.wheel_rank("x-1-cp38-abi3-manylinux2014_x86_64.whl", "3.11") is not None
    # The locks hold the hash of the best fitting file; that it installs is shown by test_pip_backend.py.
    entry = {
        "name": "x",
        "version": "1",
        "wheels": [
            {"url": "a/x-1-py3-none-any.whl", "size": 1, "hashes": {"sha256": "a" * 64}},
            {
                "url": "a/x-1-cp311-cp311-manylinux_2_17_x86_64.whl",
                "size": 2,
                "hashes": {"sha256": "b" * 64},
            },
            {
                "url": "a/x-1-cp311-cp311-manylinux_2_40_x86_64.whl",
                "size": 3,
                "hashes": {"sha256": "c" * 64},
            },
        ],
    }
    assert (
        relock.pin(entry, "3.11").sha256 == "b" * 64
        and relock.pin(entry, "3.12").sha256 == "a" * 64
    )
    with pytest.raises(Stop, match="no wheel for Python 3.11"):
        relock.pin({**entry, "wheels": entry["wheels"][2:]}, "3.11")  # type: ignore[index]


def test_reading_agrees_with_yaml_and_with_conda_lock() -> None:
    data = yaml.safe_load((ROOT / "conda-lock.yml").read_text())
    read = locks.read_conda_lock(ROOT / "conda-lock.yml")
    parsed = parse_conda_lock_file(ROOT / "conda-lock.yml")
    assert (
        read.content_hash
        == data["metadata"]["content_hash"]["linux-64"]
        == parsed.metadata.content_hash["linux-64"]
    )
    ours = [(p.name, p.version, p.url, p.md5, p.sha256) for p in read.packages]
    theirs = [(p.name, p.version, p.url, p.hash.md5, p.hash.sha256) for p in parsed.package]
    assert sorted(ours) == sorted(theirs) and len(ours) > 90
    assert ours == [
        (p["name"], p["version"], p["url"], p["hash"]["md5"], p["hash"]["sha256"])
        for p in data["package"]
    ]
    assert {p.name: p.dependencies for p in parsed.package} == {
        p["name"]: p["dependencies"] for p in data["package"]
    }


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / "conda-lock.yml").read_text())
    read = locks.read_conda_lock(ROOT / "conda-lock.yml")
    for package, entry in zip(read.packages, data["package"]):
        entry["size"] = package.size
    assert sum(p.size > 0 for p in read.packages) > 90
    text = relock.conda_lock_text(data)
    assert text == (ROOT / "conda-lock.yml").read_text()
    # What JSON escapes means the same in YAML.
    first = data["package"][0]
    first["dependencies"] = {"a": '# "b": {c}, [d] - \\ \u00e9 \n'}
    written = yaml.safe_load(relock.conda_lock_text(data))["package"][0]
    assert written == {name: value for name, value in first.items() if name != "size"}


def test_the_sizes_are_what_the_solver_says() -> None:
    fetch = [
        {"url": "https://a/b-1-0.conda", "size": 3},
        {"url": "https://a/c-1-0.conda", "size": None},
        {"url": "https://a/d-1-0.conda"},
    ]
    plan = json.dumps({"actions": {"FETCH": fetch, "LINK": []}})
    assert relock.solver_sizes(f"warning: said before\n{plan}\n") == {"https://a/b-1-0.conda": 3}
    for said in (
        "",
        "no JSON",
        "{",
        "[]",
        '[{"name": "a"}, {"name": "b"}]',
        "{}",
        '{"actions": null}',
        '{"actions": {}}',
    ):
        assert relock.solver_sizes(said) == {}


def test_a_tool_that_fails_is_told_with_its_reason_and_without_its_traceback() -> None:
    program = "import json, sys; print('no candidates for scipy', file=sys.stderr); json.loads('x')"
    with pytest.raises(
        Stop,
        match=r"(?s)-c failed \(1\):\nno candidates for scipy\n.*JSONDecodeError: Expecting value",
    ) as error:
        relock.run(sys.executable, "-c", program)
    assert "decoder.py" not in str(error.value)
    with pytest.raises(Stop, match=r"no-such-tool x failed \(None\):\nNo such file or directory"):
        relock.run("no-such-tool", "x")


def test_the_difference_to_a_revision(tmp_path: Path) -> None:
    """Also to a revision whose conda-lock.yml is YAML of another layout, and to one without a lock."""
    (tmp_path / "locks").mkdir()
    for name in (*FILES, "locks/pip.txt", "locks/flash-attn.txt"):
        shutil.copy2(ROOT / name, tmp_path / name)
    git = ["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x"]
    lock = tmp_path / "conda-lock.yml"
    text = lock.read_text()
    lock.write_text(yaml.safe_dump(yaml.safe_load(text), sort_keys=False))
    for command in (
        ["init", "-q"],
        ["commit", "-q", "--allow-empty", "-m", "0"],
        ["add", "."],
        ["commit", "-q", "-m", "1"],
    ):
        sh(*git, *command)
    env = Environment(tmp_path)
    lock.write_text(text)
    assert relock.diff([env], "HEAD") == "No lock changed."
    replaced("conda-lock.yml", version_of("mkl"), '"mkl", "version": "2024.1.0"')(tmp_path)
    replaced("locks/pip.txt", "peft==[0-9.]+", "peft==0.5.0")(tmp_path)
    before = {
        p.name: f"{p.version} {p.build}"
        for p in locks.read_conda_lock(ROOT / "conda-lock.yml").packages
    }["mkl"]
    head, rule, *rows = relock.diff([env], "HEAD").splitlines()
    assert (head, rule) == (
        "| environment | layer | package | before | after |",
        "|---|---|---|---|---|",
    ) and len(rows) == 2
    assert rows[0] == f"| {tmp_path.name} | conda | mkl | {before} | 2024.1.0 {before.split()[1]} |"
    assert re.fullmatch(r"\| .* \| pip \| peft \| [\d.]+ \| 0\.5\.0 \|", rows[1])
    assert f"| {tmp_path.name} | conda | mkl |  | 2024.1.0 {before.split()[1]} |" in relock.diff(
        [env], "HEAD~"
    )
    lock.write_text(text[:-300])
    with pytest.raises(locks.LockError, match="is cut short"):
        relock.diff([env], "HEAD")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda text: text[: len(text) // 2], "is cut short"),
        (
            lambda text: text.replace("version: 1\n", "version: 2\n", 1),
            "not a conda-lock file of version 1",
        ),
        (
            lambda text: text.replace('"manager": "conda"', '"manager": "pip"', 1),
            "they belong in locks/pip.txt",
        ),
        (
            lambda text: text.replace('"hash":', '"hash"', 1),
            "conda-lock.yml:19: not as scripts/lock.sh writes it",
        ),
        (
            lambda text: text.replace('- {"name"', '<<<<<<< HEAD\n- {"name"', 1),
            "conda-lock.yml:19: not as scripts/lock.sh writes",
        ),
        (
            lambda text: re.sub(" bytes$", " byt", text, count=1, flags=re.M),
            "conda-lock.yml:19: not as scripts/lock.sh writes it",
        ),
        (
            lambda text: text.replace('"hash": {', '"hash": [], "no": {', 1),
            "conda-lock.yml:19: not as scripts/lock.sh writes it",
        ),
        (
            lambda text: text.replace("_openmp_mutex-4.5-7_kmp_llvm.conda", "x.conda"),
            "conda-lock.yml:19: not as scripts/lock.sh writes",
        ),
        (
            lambda text: re.sub('"sha256": "....', '"sha256": "zzzz', text, count=1),
            "conda-lock.yml:19: _openmp_mutex has a malformed hash",
        ),
        (
            lambda text: text.replace("https://conda", "data://conda", 1),
            "has a malformed hash or address",
        ),
        (
            lambda text: text.replace('"md5"', '"md6"', 1),
            "conda-lock.yml:19: this package has no 'md5'",
        ),
        (
            lambda text: text.replace('"url"', '"uri"', 1),
            "conda-lock.yml:19: this package has no 'url'",
        ),
        (lambda text: text.replace("linux-64: ", "osx-arm64: ", 1), "not locked for linux-64"),
        (
            lambda text: text.replace("  - linux-64\n", "  - osx-arm64\n", 1),
            "not locked for linux-64",
        ),
        (lambda text: text[: text.index("package:")], "has no package section"),
        (lambda text: text[: text.index("- {")] + "# 0 packages\n", "is cut short"),
        (lambda text: re.sub('- {"name": "tqdm".*\n', "", text), "is cut short"),
        (lambda text: "", "not a conda-lock file of version 1"),
    ],
)
def test_a_malformed_lock_is_refused_with_the_remedy(
    change: Callable[[str], str], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "conda-lock.yml"
    path.write_text(change((ROOT / "conda-lock.yml").read_text()))
    with pytest.raises(locks.LockError, match=re.escape(said)) as error:
        locks.read_conda_lock(path)
    assert str(error.value).startswith(f"{path}:")
    assert f"restore it with `git checkout -- {path}` or write it anew with scripts/lock.sh" in str(
        error.value
    )


def test_a_lock_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path, text = tmp_path / "conda-lock.yml", (ROOT / "conda-lock.yml").read_text()
    ends = [match.end() for match in re.finditer("\n", text)][:-1]
    for end in [*ends, *(end - 1 for end in ends), *range(0, len(text) - 1, 499), len(text) - 2]:
        path.write_text(text[:end])
        with pytest.raises(locks.LockError):
            locks.read_conda_lock(path)


def test_a_malformed_pip_lock_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pip.txt"
    with pytest.raises(locks.LockError, match="cannot be read"):
        locks.read_pip_lock(path)
    path.write_text("# nothing\n")
    with pytest.raises(
        locks.LockError, match="is cut short: it ends after 0 packages with '# nothing'"
    ):
        locks.read_pip_lock(path)
    path.write_text("# an environment without a pip layer\n# 0 packages\n")
    assert locks.read_pip_lock(path) == []
    path.write_text("numpy>=2\n")
    with pytest.raises(locks.LockError, match=r"pip.txt:1: not as scripts/lock.sh writes it"):
        locks.read_pip_lock(path)


def test_check_solves_nothing_and_reaches_nothing(tmp_path: Path) -> None:
    """lock.sh --check in a network namespace without a network, with no solver on PATH."""
    environ = {"PATH": "/usr/bin:/bin:" + str(Path(shutil.which("conda-lock") or "").parent)}
    offline = [*apart("--net"), ROOT / "scripts/lock.sh", "--check"]
    assert "the locks are current" in sh(*offline, env=environ).stdout


def test_check_says_what_is_stale(tmp_path: Path) -> None:
    for name in FILES:
        shutil.copy2(ROOT / name, tmp_path / name)
    for name in ("locks", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    replaced("environment.yml", "scipy>=1.11.0", "scipy>=1.12.0")(tmp_path)
    done = sh(tmp_path / "scripts/lock.sh", "--check", check=False)
    assert done.returncode == 1
    assert (
        "environment.yml or locks/virtual-packages.yml has changed" in done.stdout
        and "run scripts/lock.sh" in done.stdout
    )
    done = sh(tmp_path / "scripts/lock.sh", "--update", "tokenizers", check=False)
    assert (
        done.returncode == 1
        and "no environment.yml asks for it; asked for are: accelerate" in done.stdout
    )


def test_the_specification() -> None:
    spec = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert spec["name"] == "maximalcai" and spec["channels"] == [*CHANNELS, "nodefaults"]
    for line in (ROOT / "environment.yml").read_text().splitlines():
        asked = line.split("#")[0]
        if re.search(r"<|[^>=]=[^=]", asked) and not re.search(r"libblas", asked):
            assert re.search(r"# .*https://", line), f"a bound without its reason and link: {line}"
    asked = relock.read_spec(ROOT / "environment.yml")
    floors = {Requirement(f).name: f for f in FLOORS}
    given = {**asked.conda, **asked.pip}
    for name, floor in floors.items():
        if name == "flash-attn":
            assert floor in (ROOT / "environment.yml").read_text()  # floors_hold looks at the lock
        elif name != "torch":
            assert given[name].startswith(floor)


def test_the_contributors_environment_stands_alone() -> None:
    text = (ROOT / "environment-dev.yml").read_text()
    asked = relock.read_spec(ROOT / "environment-dev.yml")
    assert yaml.safe_load(text)["name"] == "maximalcai-dev"
    assert asked.conda["pytorch"] == "pytorch::pytorch=2.5.1" and "cpuonly" in asked.conda
    assert asked.pip == relock.read_spec(ROOT / "environment.yml").pip
    needed = (
        "python conda-lock pytest pytest-cov black flake8 isort mypy sphinx shellcheck pip".split()
    )
    assert not [name for name in needed if name not in asked.conda]
    assert not [
        name for name in asked.conda if "cuda" in name or asked.conda[name].startswith("nvidia::")
    ]
